package audit

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// after are the lines that a server sends.
func after(lines [][]byte, seq uint64) iter.Seq2[[]byte, error] {
	return all(lines[min(int(seq), len(lines)):])
}

// made seals n entries; those after the first same are others than true ones.
func made(t *testing.T, n, same int) (lines [][]byte, tips []Tip) {
	t.Helper()
	var tip Tip
	for i := range n {
		e := Entry{Action: "test", Detail: fmt.Sprint(i)}
		if i >= same {
			e.Detail = "forged"
		}
		line, next, err := Seal(tip, e)
		if err != nil {
			t.Fatal(err)
		}
		lines, tips, tip = append(lines, line), append(tips, next), next
	}
	return lines, tips
}

// A node never says of a chain that it goes on from what it said before, when it does not.
func TestAWitnessFollowsWhatExtendsOnly(t *testing.T) {
	t.Parallel()
	honest, tips := made(t, 9, 9)
	forged, others := made(t, 9, 3)
	begin := Witness{Cluster: "demo", Node: "cp1", Tip: tips[4], Since: tips[1], At: noon}
	later := noon.Add(time.Hour)
	lost := func(to Tip) Witness {
		return Witness{Cluster: "demo", Node: "cp1", Tip: to, Since: to, At: later, Lost: []Loss{{Tip: tips[4], At: later}}}
	}
	grown := begin
	grown.Tip, grown.At = tips[8], later
	gone := errors.New("the server went away")
	broken := func(yield func([]byte, error) bool) { _ = yield(honest[5], nil) && yield(nil, gone) }
	for what, c := range map[string]struct {
		lines iter.Seq2[[]byte, error]
		to    Tip
		want  Witness
		err   string
	}{
		"the same":                    {all(nil), tips[4], begin, ""},
		"it grew":                     {after(honest, 5), tips[8], grown, ""},
		"it grew meanwhile":           {after(honest, 5), tips[6], func() Witness { w := begin; w.Tip, w.At = tips[6], later; return w }(), ""},
		"made anew":                   {after(forged, 5), others[8], lost(others[8]), ""},
		"made anew, and honest lines": {after(honest, 5), others[8], lost(others[8]), ""},
		"cut off":                     {after(honest[:4], 5), tips[3], lost(tips[3]), ""},
		"another last one":            {after(forged, 5), others[4], lost(others[4]), ""},
		"one removed":                 {after(slices.Delete(slices.Clone(honest), 6, 7), 5), tips[8], lost(tips[8]), ""},
		"one changed": {func() iter.Seq2[[]byte, error] {
			l := slices.Clone(honest)
			l[6] = bytes.Replace(l[6], []byte("test"), []byte("lies"), 1)
			return after(l, 5)
		}(), tips[8], lost(tips[8]), ""},
		"two swapped": {func() iter.Seq2[[]byte, error] {
			l := slices.Clone(honest)
			l[5], l[6] = l[6], l[5]
			return after(l, 5)
		}(), tips[8], lost(tips[8]), ""},
		"lines end too early": {after(honest[:7], 5), tips[8], begin, "its end is entry 9, and entries come up to 7 only"},
		"no line comes":       {all(nil), tips[8], begin, "entries come up to 5 only"},
		"lines fail":          {broken, tips[8], begin, "the server went away"},
	} {
		got, err := begin.Follow(c.lines, c.to, later)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", what, diff)
		}
		if c.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: got %v, want %s", what, err, c.err)
		}
	}
	first, err := Witness{Cluster: "demo", Node: "cp1"}.Follow(all(nil), tips[2], noon)
	if want := (Witness{Cluster: "demo", Node: "cp1", Tip: tips[2], Since: tips[2], At: noon}); err != nil || cmp.Diff(want, first) != "" {
		t.Errorf("the first: %+v, %v", first, err)
	}
	w := first
	for i := range 3 * lostHeads {
		if w, err = w.Follow(all(nil), Tip{Seq: 1, Hash: fmt.Sprint(i)}, noon); err != nil {
			t.Fatal(err)
		}
	}
	if len(w.Lost) != lostHeads || w.Lost[0].Tip != tips[2] {
		t.Errorf("%d are remembered, first %v", len(w.Lost), w.Lost[0])
	}
	b, err := w.Statement()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseWitness(b); err != nil || cmp.Diff(w, back) != "" {
		t.Errorf("read back: %+v, %v", back, err)
	}
}

func FuzzParseWitness(f *testing.F) {
	f.Add([]byte(`{"cluster":"demo","node":"cp1","seq":3,"hash":"aa","since":{"seq":1,"hash":"bb"},"at":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if w, err := ParseWitness(b); err == nil && (w.Seq < w.Since.Seq || w.Node == "") {
			t.Errorf("accepted %+v", w)
		}
	})
}
