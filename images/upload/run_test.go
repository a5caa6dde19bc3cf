package upload

import (
	"context"
	"errors"
	"testing"
)

// stuck is a target with a finished image, which promotes, and cannot clean.
type stuck struct {
	Target
	promoted string
}

var errStuck = errors.New("the server keeps it")

func (s *stuck) Preflight(context.Context, Image) (Plan, error) {
	return Plan{Found: &Object{ID: "7", Current: s.promoted == "7"}}, nil
}

func (s *stuck) Clean(context.Context, Leftover) error { return errStuck }

func (s *stuck) Promote(_ context.Context, o Object) error {
	s.promoted = o.ID
	return nil
}

// What an earlier upload left and nobody can remove does not keep the image from
// becoming current; it stays in the journal, and is an error.
func TestWhatCannotBeCleanedDoesNotKeepFromPromoting(t *testing.T) {
	t.Parallel()
	img := Image{Name: "a", Version: "1", Digest: "00"}
	j, err := OpenJournal(t.TempDir(), Key{Target: "t", Image: img})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Write(Leftover{Kind: "half", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	s := &stuck{}
	for range 2 {
		out, err := Run(t.Context(), s, img, j, func(Event) {}, true)
		if !errors.Is(err, errStuck) || !out.Object.Current || s.promoted != "7" || len(j.Left()) != 1 {
			t.Errorf("got %+v, %v; promoted is %q, and left is %v", out, err, s.promoted, j.Left())
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	s.promoted = ""
	if _, err := Run(over, s, img, j, func(Event) {}, true); !errors.Is(err, errStuck) || s.promoted != "" {
		t.Errorf("after its end: %v, promoted is %q", err, s.promoted)
	}
}
