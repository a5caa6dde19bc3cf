package upload

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Outcome of Run.
type Outcome struct {
	Object Object `json:"object"`
	// Unchanged: it was there already, and nothing was done.
	Unchanged bool `json:"unchanged"`
	// Promoted: the stable name points to it since this run.
	Promoted bool `json:"promoted"`
	// Renewed: it was current before, and its template has got the options of now.
	Renewed bool `json:"renewed,omitempty"`
}

// Run uploads an image unless it is there, and makes it current when promote is
// set or the family has nothing that is. Of one that is current already promote renews
// the template where the target's options have changed (Templates). What an earlier run left is used or
// removed; what cannot be removed is an error, but the image is promoted none the less.
func Run(ctx context.Context, t Target, img Image, j Journal, ev Events, promote bool) (Outcome, error) {
	out, err := run(ctx, t, img, j, ev, promote)
	// The calls that were under way say that they were called off, and not why.
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrTimeout) && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return out, err
}

func run(ctx context.Context, t Target, img Image, j Journal, ev Events, promote bool) (Outcome, error) {
	plan, err := t.Preflight(ctx, img)
	if err != nil {
		return Outcome{}, fmt.Errorf("looking at the target: %w", err)
	}
	var out Outcome
	if plan.Found != nil && len(plan.Steps) == 0 {
		out = Outcome{Object: *plan.Found, Unchanged: true}
	} else if out.Object, err = t.Upload(ctx, img, j, ev); err != nil {
		return Outcome{}, fmt.Errorf("uploading %s %s: %w", img.Name, img.Version, err)
	}
	// What cannot be removed is in nobody's way: the image is whole without it.
	left := settle(ctx, t, j)
	if left != nil && ctx.Err() != nil {
		return out, left
	}
	if out.Object.Current {
		err := renew(ctx, t, &out, promote, ev)
		return out, errors.Join(err, left)
	}
	if !promote {
		id, err := current(ctx, t, img.Name)
		if err != nil || id != "" {
			// Another upload of the same image may have made it current meanwhile.
			out.Object.Current = id == out.Object.ID
			return out, errors.Join(err, left)
		}
	}
	ev(Event{Phase: "promoting"})
	if err := t.Promote(ctx, out.Object); err != nil {
		return out, errors.Join(fmt.Errorf("promoting %s %s: %w", img.Name, img.Version, err), left)
	}
	out.Object.Current, out.Promoted, out.Unchanged = true, true, false
	return out, left
}

// renew writes the template of what is current anew, if its options are others now. It
// is not done unasked: people may have reasons for what they changed.
func renew(ctx context.Context, t Target, out *Outcome, promote bool, ev Events) error {
	stale, err := Stale(ctx, t, out.Object)
	if !promote && (stale || err != nil) {
		ev(Event{Phase: "looking at the template", Note: staleNote(err)})
		return nil
	}
	if err != nil || !stale {
		return err
	}
	ev(Event{Phase: "renewing the template"})
	if err := t.Promote(ctx, out.Object); err != nil {
		return fmt.Errorf("renewing the template of %s %s: %w", out.Object.Name, out.Object.Version, err)
	}
	out.Renewed, out.Unchanged = true, false
	return nil
}

func staleNote(err error) string {
	if err != nil {
		return "whether the template has the options of now is not known: " + err.Error()
	}
	return "the template has other options than cluster.yaml has now: --promote renews it"
}

// Stale tells whether the template that starts an object says something else than the
// target's options; never for a target without templates.
func Stale(ctx context.Context, t Target, o Object) (bool, error) {
	with, is := t.(Templates)
	if !is {
		return false, nil
	}
	stale, err := with.Stale(ctx, o)
	if err != nil {
		return false, fmt.Errorf("looking at the template of %s %s: %w", o.Name, o.Version, err)
	}
	return stale, nil
}

// settle removes what is still in the journal, newest first.
func settle(ctx context.Context, t Target, j Journal) error {
	left := j.Left()
	slices.Reverse(left)
	var failed []error
	for _, l := range left {
		if err := t.Clean(ctx, l); err != nil {
			failed = append(failed, fmt.Errorf("cleaning up %s %s: %w", l.Kind, l.Name, err))
			continue
		}
		if err := j.Forget(l); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// current is the ID of what a family's stable name points to; empty for nothing.
func current(ctx context.Context, t Target, name string) (string, error) {
	all, err := t.List(ctx, name)
	if err != nil {
		return "", fmt.Errorf("listing %s: %w", name, err)
	}
	for _, o := range all {
		if o.Current {
			return o.ID, nil
		}
	}
	return "", nil
}

// Find returns the object of a family that ref names: an ID, a version, or a
// digest's beginning of eight or more digits.
func Find(ctx context.Context, t Target, name, ref string) (Object, error) {
	all, err := t.List(ctx, name)
	if err != nil {
		return Object{}, fmt.Errorf("listing %s: %w", name, err)
	}
	var hits []Object
	for _, o := range all {
		if o.ID == ref || o.Version == ref || len(ref) >= 8 && len(o.Digest) >= len(ref) && o.Digest[:len(ref)] == ref {
			hits = append(hits, o)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		return Object{}, fmt.Errorf("finding %s: %w among %d of ours; imagectl upload list TARGET shows them", ref, ErrNotFound, len(all))
	}
	return Object{}, fmt.Errorf("finding %s: it names %d objects, %s of %s and %s of %s among them; give an ID", ref, len(hits), hits[0].ID, hits[0].Name, hits[1].ID, hits[1].Name)
}

// Rollback makes current what was so before: what the platform says it was, or
// else the newest finished object older than the current one.
func Rollback(ctx context.Context, t Target, name string) (from, to Object, err error) {
	all, err := t.List(ctx, name)
	if err != nil {
		return from, to, fmt.Errorf("listing %s: %w", name, err)
	}
	now := slices.IndexFunc(all, func(o Object) bool { return o.Current })
	if now < 0 {
		return from, to, fmt.Errorf("rolling back %s: %w: nothing is current; imagectl upload promote makes something so", name, ErrNotFound)
	}
	before := slices.IndexFunc(all, func(o Object) bool { return o.Previous && !o.Broken && !o.Current })
	for i := now - 1; i >= 0 && before < 0; i-- {
		if !all[i].Broken {
			before = i
		}
	}
	if before < 0 {
		return from, to, fmt.Errorf("rolling back %s: %w: there is nothing older than %s", name, ErrNotFound, all[now].Version)
	}
	if err := t.Promote(ctx, all[before]); err != nil {
		return from, to, fmt.Errorf("rolling back %s to %s: %w", name, all[before].Version, err)
	}
	return all[now], all[before], nil
}
