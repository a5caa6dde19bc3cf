package diag

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFprintShowsTheLineACaretAndTheHint(t *testing.T) {
	read := func(name string) ([]byte, error) {
		if name != "cluster.yaml" {
			return nil, errors.New("no such file")
		}
		return []byte("version: 1\n\tclustr: a\r\nx: \x1b[31m\n"), nil
	}
	l := List{
		{Pos: Pos{"cluster.yaml", 2, 2}, Path: "clustr", Message: "unknown key", Hint: "write\ncluster: a"},
		{Pos: Pos{"cluster.yaml", 3, 1}, Severity: Warning, Message: "colours"},
		{Pos: Pos{"cluster.yaml", 99, 1}, Message: "past the end"},
		{Pos: Pos{File: "gone.yaml", Line: 1}, Message: "unreadable"},
		{Message: "nowhere"},
	}
	var b strings.Builder
	if err := Fprint(&b, l, read); err != nil {
		t.Fatal(err)
	}
	want := "cluster.yaml:2:2: error: clustr: unknown key\n" +
		"    2 | \tclustr: a\n" +
		"      | \t^\n" +
		"      = hint: write\n" +
		"              cluster: a\n" +
		"cluster.yaml:3:1: warning: colours\n" +
		"    3 | x: \uFFFD[31m\n" +
		"      | ^\n" +
		"cluster.yaml:99:1: error: past the end\n" +
		"gone.yaml:1: error: unreadable\n" +
		"error: nowhere\n"
	if diff := cmp.Diff(b.String(), want); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
}

func TestSortOrdersByPlaceAndDropsRepetitions(t *testing.T) {
	at := func(file string, line, col int) Finding {
		return Finding{Pos: Pos{file, line, col}, Message: "m"}
	}
	l := List{at("b", 1, 1), at("a", 2, 1), at("a", 1, 5), at("a", 1, 5), at("a", 1, 2)}
	l.Sort()
	want := List{at("a", 1, 2), at("a", 1, 5), at("a", 2, 1), at("b", 1, 1)}
	if diff := cmp.Diff(l, want); diff != "" {
		t.Error("got -, want +\n" + diff)
	}
}

func TestErrIgnoresWarnings(t *testing.T) {
	l := List{{Severity: Warning, Message: "w"}}
	if err := l.Err(); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	l = append(l, Finding{Pos: Pos{"f", 1, 2}, Message: "e"})
	if got, want := l.Err().Error(), "f:1:2: error: e"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestJSONRoundTrip(t *testing.T) {
	in := Finding{Severity: Warning, Pos: Pos{"f", 1, 2}, Path: "a.b", Message: "m", Hint: "h"}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), `{"severity":"warning","file":"f","line":1,"column":2,"path":"a.b","message":"m","hint":"h"}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var out Finding
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(out, in); diff != "" {
		t.Error(diff)
	}
}
