package upload

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTurnsSayWhatIsCurrent(t *testing.T) {
	t.Parallel()
	o := func(id, family string, turn int) Turned {
		return Turned{Object: Object{ID: id, Name: family}, Turn: turn}
	}
	for _, tt := range []struct {
		name              string
		all               []Turned
		current, previous string
		next              int // for a
	}{
		{"nothing is", nil, "", "", 1},
		{"nothing was promoted", []Turned{o("a", "f", 0), o("b", "f", 0)}, "", "", 1},
		{"one was promoted, and again", []Turned{o("a", "f", 3), o("b", "f", 0)}, "a", "", 3},
		{"the other was promoted after it", []Turned{o("a", "f", 3), o("b", "f", 4)}, "b", "a", 5},
		{"whatever the order", []Turned{o("c", "f", 5), o("a", "f", 1), o("b", "f", 4)}, "c", "b", 6},
		{"two took one number at once", []Turned{o("b", "f", 2), o("a", "f", 2), o("c", "f", 1)}, "b", "a", 3},
	} {
		// Another family has no say.
		all := append(tt.all, o("z", "other", 9))
		current, previous := "", ""
		for _, got := range Point(all) {
			if got.Name == "other" && (!got.Current || got.Previous) {
				t.Errorf("%s: the other family's is %+v", tt.name, got)
			}
			if got.Name == "f" && got.Current {
				current += got.ID
			}
			if got.Name == "f" && got.Previous {
				previous += got.ID
			}
		}
		got, want := []any{current, previous, NextTurn(tt.all, "a")}, []any{tt.current, tt.previous, tt.next}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}
