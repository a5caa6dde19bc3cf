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

// What servers of before there were Arguments and Result have written.
const chainOfBefore = `{"seq":1,"prev":"","hash":"f6eda127b214b59ff62b2fd69a40f9bb9abec26903501e4c3353a23e1d305c00","entry":{"time":"2026-01-01T00:00:00Z","actor":{"subject":"imagectl://demo/operator/ada","serial":"01"},"action":"machine-armed","machine":"cp1","before":"approved","after":"armed"}}
{"seq":2,"prev":"f6eda127b214b59ff62b2fd69a40f9bb9abec26903501e4c3353a23e1d305c00","hash":"a66b5e8d2333946bc9df81f86bcee58af3a5e536c5267246a50a8986e1236c2c","entry":{"time":"2026-01-01T00:00:01Z","actor":{"subject":"imagectl://demo/node/cp1","serial":"02","source":"192.0.2.1"},"action":"node-called","machine":"cp1","detail":"Units"}}
`

// A log goes on where a server of before has left it: its entries verify, and one that has none of
// what is new is the same bytes as ever.
func TestAChainOfBeforeGoesOn(t *testing.T) {
	t.Parallel()
	var lines [][]byte
	var tip, again Tip
	for line := range bytes.Lines([]byte(chainOfBefore)) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		e, next, err := Open(tip, line)
		if err != nil {
			t.Fatal(err)
		}
		same, to, err := Seal(again, e)
		if err != nil || !bytes.Equal(same, line) {
			t.Errorf("sealed again: %v\n%s\nwant\n%s", err, same, line)
		}
		lines, tip, again = append(lines, line), next, to
	}
	line, end, err := Seal(tip, Entry{Action: "call-refused", Arguments: strings.Repeat("a", 64), Result: "permission_denied"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(all(append(lines, line)), end); err != nil || len(lines) != 2 {
		t.Errorf("%d entries of before, %v", len(lines), err)
	}
	for what, forged := range map[string][]byte{
		"another result":    bytes.Replace(line, []byte("permission_denied"), []byte("done"), 1),
		"another call":      bytes.Replace(line, []byte("aaaa"), []byte("aaab"), 1),
		"its result is out": bytes.Replace(line, []byte(`,"result":"permission_denied"`), nil, 1),
	} {
		if err := Verify(all(append(slices.Clone(lines), forged)), end); err == nil {
			t.Errorf("%s: it verifies", what)
		}
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
