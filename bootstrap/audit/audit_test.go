package audit

import (
	"bytes"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func chain(t testing.TB, n int) ([][]byte, Tip) {
	t.Helper()
	var lines [][]byte
	var tip Tip
	for i := range n {
		line, next, err := Seal(tip, Entry{
			Time:   time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC),
			Actor:  Actor{Subject: "imagectl://demo/operator/ada", Serial: "01"},
			Action: "machine-armed", Machine: "cp1", Before: "approved", After: "armed",
		})
		if err != nil {
			t.Fatal(err)
		}
		lines, tip = append(lines, line), next
	}
	return lines, tip
}

func all(lines [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, l := range lines {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func TestVerifyNoticesEveryTampering(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		tamper func([][]byte) [][]byte
		want   string
	}{
		{"nothing", func(l [][]byte) [][]byte { return l }, ""},
		{"altered", func(l [][]byte) [][]byte {
			l[1] = bytes.Replace(l[1], []byte("ada"), []byte("bob"), 1)
			return l
		}, "reading audit entry 2: its content gives "},
		{"dropped", func(l [][]byte) [][]byte { return slices.Delete(l, 1, 2) }, "reading audit entry 2: found number 3; entries are missing or moved"},
		{"swapped", func(l [][]byte) [][]byte { l[0], l[1] = l[1], l[0]; return l }, "reading audit entry 1: found number 2"},
		{"cut off", func(l [][]byte) [][]byte { return l[:2] }, "verifying audit log: it ends with entry 2 ("},
		{"resealed alone", func(l [][]byte) [][]byte {
			line, _, err := Seal(Tip{Seq: 1, Hash: strings.Repeat("0", 64)}, Entry{Action: "lie"})
			if err != nil {
				t.Fatal(err)
			}
			l[1] = line
			return l
		}, "reading audit entry 2: it follows 000000000000…"},
	} {
		lines, tip := chain(t, 3)
		err := Verify(all(c.tamper(lines)), tip)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
}

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	t.Parallel()
	want := Entry{Time: time.Date(2026, 1, 1, 0, 0, 0, 5, time.UTC), Action: "x", Detail: "<&>  ü"}
	line, tip, err := Seal(Tip{}, want)
	if err != nil {
		t.Fatal(err)
	}
	got, after, err := Open(Tip{}, line)
	if err != nil || after != tip {
		t.Fatalf("got tip %v, %v; want %v", after, err, tip)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzOpen(f *testing.F) {
	lines, _ := chain(f, 1)
	f.Add(lines[0])
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, tip, err := Open(Tip{}, line); err == nil && tip.Seq != 1 {
			t.Errorf("accepted as entry %d", tip.Seq)
		}
	})
}
