package upload

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestPruneDecides(t *testing.T) {
	t.Parallel()
	old, current, previous, broken := Object{}, Object{Current: true}, Object{Previous: true}, Object{Broken: true}
	for _, tt := range []struct {
		name string
		all  []Object
		keep int
		want string
	}{
		{"nothing", nil, 1, ""},
		{"fewer than to keep", []Object{old, old}, 3, "--"},
		{"the oldest go", []Object{old, old, old, old}, 2, "dd--"},
		{"what is current stays and counts", []Object{old, old, current}, 1, "dd-"},
		{"what is current stays whatever its age", []Object{current, old, old, old}, 1, "-dd-"},
		{"what rollback goes back to stays", []Object{old, previous, old, current}, 1, "d-d-"},
		{"what is broken is not pruned and does not count", []Object{old, old, broken}, 1, "d--"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := ""
			for _, p := range decidePrune(tt.all, tt.keep) {
				if p.Reason == "" {
					t.Error("no reason")
				}
				if p.Deleted {
					got += "d"
				} else {
					got += "-"
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// lists is a target of which only lists are asked for, each time the next, and that
// deletes.
type lists struct {
	Target
	all  [][]Object
	gone []string
}

func (l *lists) List(context.Context, string) ([]Object, error) {
	now := l.all[0]
	l.all = l.all[1:]
	return now, nil
}

func (l *lists) Delete(_ context.Context, o Object) error {
	l.gone = append(l.gone, o.ID)
	return nil
}

func TestPruneDeletesOnlyWhatWasAgreedTo(t *testing.T) {
	t.Parallel()
	a, b, c, d := Object{ID: "a"}, Object{ID: "b"}, Object{ID: "c"}, Object{ID: "d"}
	promoted := a
	promoted.Current = true
	l := &lists{all: [][]Object{
		{a, b, c, d},                   // a and b would go
		{promoted, b, c, d, {ID: "e"}}, // a was promoted, and c is not of the newest two any more
	}}
	got, err := Prune(t.Context(), l, "demo", 2, false, func(would []Pruned) error {
		if len(would) != 4 || !would[0].Deleted || !would[1].Deleted || would[2].Deleted {
			t.Errorf("asked about %+v", would)
		}
		return nil
	})
	if err != nil || fmt.Sprint(l.gone) != "[b]" {
		t.Errorf("deleted %v, %v", l.gone, err)
	}
	if len(got) != 5 || got[2].Deleted || got[2].Reason != "was not to be deleted when you were asked" {
		t.Errorf("says %+v", got)
	}
	l = &lists{all: [][]Object{{a, b, c, d}}}
	if _, err := Prune(t.Context(), l, "demo", 2, false, func([]Pruned) error { return errors.New("no") }); err == nil || len(l.gone) != 0 {
		t.Errorf("after a no: deleted %v, %v", l.gone, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name string
		err  error
		want error
	}{
		{"401", StatusError(401, "who?"), ErrAuth},
		{"404", StatusError(404, "no"), ErrNotFound},
		{"413", StatusError(413, "big"), ErrSpace},
		{"504", StatusError(504, "slow"), ErrTimeout},
		{"502", StatusError(502, "<h1>"), ErrServer},
		{"a connection that breaks", CallError(t.Context(), errors.New("reset")), ErrServer},
		{"one that takes too long", CallError(t.Context(), fmt.Errorf("reading: %w", context.DeadlineExceeded)), ErrTimeout},
		{"one that has a kind", CallError(t.Context(), fmt.Errorf("calling: %w", ErrSpace)), ErrSpace},
		{"one that was called off", CallError(gone, context.Canceled), context.Canceled},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v is no %v", tt.name, tt.err, tt.want)
		}
	}
	if err := StatusError(204, ""); err != nil {
		t.Errorf("204 is %v", err)
	}
	if err := CallError(gone, context.Canceled); errors.Is(err, ErrServer) || errors.Is(err, ErrTimeout) {
		t.Errorf("being called off is %v", err)
	}
}
