package upload

import (
	"context"
	"errors"
	"fmt"
)

// Pruned is what became of one object, and why.
type Pruned struct {
	Object Object `json:"object"`
	// Deleted or, in a dry run, to be deleted.
	Deleted bool   `json:"deleted"`
	Reason  string `json:"reason"`
}

// Prune deletes all finished objects of a family but the keep newest. What is
// current, what was so before, and what is in use stays whatever its age. keep is
// at least 1. dry changes nothing. agree is asked before anything is deleted, unless it
// is nil; its error ends all. Nothing goes but what it was shown, and of that only what
// is still to go then.
func Prune(ctx context.Context, t Target, name string, keep int, dry bool, agree func([]Pruned) error) ([]Pruned, error) {
	if name == "" || keep < 1 {
		return nil, fmt.Errorf("pruning %q: want a family's name and at least 1 to keep, got %d", name, keep)
	}
	out, err := planPrune(ctx, t, name, keep)
	if err != nil || dry {
		return out, err
	}
	if agree != nil {
		if err := agree(out); err != nil {
			return nil, err
		}
		// People take their time to answer.
		now, err := planPrune(ctx, t, name, keep)
		if err != nil {
			return nil, err
		}
		out = stillToGo(out, now)
	}
	var failed []error
	for i, p := range out {
		if !p.Deleted {
			continue
		}
		err := t.Delete(ctx, p.Object)
		switch {
		case err == nil, errors.Is(err, ErrNotFound):
		case errors.Is(err, ErrInUse):
			out[i].Deleted, out[i].Reason = false, err.Error()
		default:
			out[i].Deleted, out[i].Reason = false, err.Error()
			failed = append(failed, fmt.Errorf("deleting %s %s: %w", p.Object.Name, p.Object.Version, err))
		}
	}
	return out, errors.Join(failed...)
}

func planPrune(ctx context.Context, t Target, name string, keep int) ([]Pruned, error) {
	all, err := t.List(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", name, err)
	}
	return decidePrune(all, keep), nil
}

// stillToGo is now's plan without what was not in the one that was agreed to.
func stillToGo(agreed, now []Pruned) []Pruned {
	to := map[string]bool{}
	for _, p := range agreed {
		to[p.Object.ID] = p.Deleted
	}
	for i, p := range now {
		if p.Deleted && !to[p.Object.ID] {
			now[i].Deleted, now[i].Reason = false, "was not to be deleted when you were asked"
		}
	}
	return now
}

// decidePrune says for each object, oldest first, what shall become of it.
func decidePrune(all []Object, keep int) []Pruned {
	out := make([]Pruned, len(all))
	newer := 0
	for i := len(all) - 1; i >= 0; i-- {
		o := all[i]
		p := Pruned{Object: o}
		switch {
		case o.Broken:
			p.Reason = "is no finished image; imagectl upload cleanup removes it"
		case o.Current:
			p.Reason = "is current"
		case o.Previous:
			p.Reason = "is what rollback goes back to"
		case newer < keep:
			p.Reason = fmt.Sprintf("is one of the %d newest", keep)
		default:
			p.Deleted, p.Reason = true, fmt.Sprintf("%d are newer", newer)
		}
		if !o.Broken {
			newer++
		}
		out[i] = p
	}
	return out
}

// Cleaned is something that Cleanup removed, or could not.
type Cleaned struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	ID    string `json:"id,omitempty"`
	Error string `json:"error,omitempty"`
}

// Cleanup removes what broken uploads left at a target: what the journals in dir
// name, and objects of ours that the platform itself calls broken. It leaves
// uploads alone that run on this machine.
func Cleanup(ctx context.Context, t Target, dir, target string) ([]Cleaned, error) {
	paths, err := Journals(dir, target)
	if err != nil {
		return nil, err
	}
	var out []Cleaned
	var failed []error
	for _, path := range paths {
		j, err := openJournal(path, 0)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		left := j.Left()
		if err := settle(ctx, t, j); err != nil {
			failed = append(failed, err)
		}
		still := map[Leftover]bool{}
		for _, l := range j.Left() {
			still[l] = true
		}
		for _, l := range left {
			c := Cleaned{Kind: l.Kind, Name: l.Name, ID: l.ID}
			if still[l] {
				c.Error = "is still there"
			}
			out = append(out, c)
		}
		failed = append(failed, j.Close())
	}
	all, err := t.List(ctx, "")
	if err != nil {
		return out, errors.Join(append(failed, fmt.Errorf("listing what is there: %w", err))...)
	}
	for _, o := range all {
		if !o.Broken {
			continue
		}
		c := Cleaned{Kind: "broken image", Name: o.Name + " " + o.Version, ID: o.ID}
		if err := t.Delete(ctx, o); err != nil && !errors.Is(err, ErrNotFound) {
			c.Error = err.Error()
			failed = append(failed, fmt.Errorf("deleting broken %s: %w", o.ID, err))
		}
		out = append(out, c)
	}
	return out, errors.Join(failed...)
}
