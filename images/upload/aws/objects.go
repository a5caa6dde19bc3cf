package aws

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// List implements upload.Target. A snapshot of ours without AMI is broken when EBS
// gave it up, or when it is a day old; until then somebody may be sending it.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	images, err := t.images(ctx, ofFamily(name))
	if err != nil {
		return nil, err
	}
	snapshots, err := t.snapshots(ctx, ofFamily(name))
	if err != nil {
		return nil, err
	}
	pointers := map[string]pointer{}
	var out []upload.Object
	for _, a := range images {
		family := a.Tags.label(upload.LabelName)
		p, known := pointers[family]
		if !known {
			if p, err = t.pointer(ctx, family); err != nil {
				return nil, err
			}
			pointers[family] = p
		}
		out = append(out, describe(a, p))
	}
	for _, s := range snapshots {
		lost := s.Status == stateError || t.conf.Now().Sub(s.Started) > abandoned
		if !lost || slices.ContainsFunc(images, func(a ami) bool { return a.uses(s.ID) }) {
			continue
		}
		o := labelled(s.Tags)
		o.ID, o.Broken, o.Created, o.State = s.ID, true, s.Started, strings.TrimSpace("snapshot "+s.Status+" "+s.Message)
		out = append(out, o)
	}
	return out, nil
}

func labelled(all tags) upload.Object {
	digest, _ := strings.CutPrefix(all.label(upload.LabelDigest), "sha256:")
	return upload.Object{Name: all.label(upload.LabelName), Version: all.label(upload.LabelVersion), Digest: digest}
}

func describe(a ami, p pointer) upload.Object {
	o := labelled(a.Tags)
	o.ID, o.Broken, o.Created, o.State = a.ID, a.broken(), a.Created, a.State
	o.Current, o.Previous = p.ours && p.current == a.ID, p.ours && p.previous == a.ID
	return o
}

// object describes one AMI.
func (t *Target) object(ctx context.Context, a ami) (upload.Object, error) {
	p, err := t.pointer(ctx, a.Tags.label(upload.LabelName))
	return describe(a, p), err
}

// Delete implements upload.Target. Amazon lets anybody deregister what instances
// were started from; replacing one of them would fail later, so it is asked here.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	if strings.HasPrefix(o.ID, "snap-") {
		return t.deleteLost(ctx, o.ID)
	}
	a, err := t.image(ctx, o.ID)
	if err != nil {
		return err
	}
	if a.Tags.label(upload.LabelOurs) != "1" {
		return fmt.Errorf("deleting %s: %w: it is not ours", a.ID, upload.ErrTaken)
	}
	family := a.Tags.label(upload.LabelName)
	p, err := t.pointer(ctx, family)
	if err != nil {
		return err
	}
	if p.current == a.ID {
		return fmt.Errorf("deleting %s: %w: parameter %s names it", a.ID, upload.ErrInUse, t.parameter(family))
	}
	ids, err := t.instances(ctx, a.ID)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("deleting %s: %w: %d instances were started from it, %s among them", a.ID, upload.ErrInUse, len(ids), ids[0])
	}
	return t.deregister(ctx, a)
}

// deleteLost removes a snapshot that has no AMI.
func (t *Target) deleteLost(ctx context.Context, id string) error {
	all, err := t.snapshots(ctx, filters("snapshot-id", id))
	if err == nil && len(all) == 0 {
		err = upload.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("deleting %s: %w", id, err)
	}
	if all[0].Tags.label(upload.LabelOurs) != "1" {
		return fmt.Errorf("deleting %s: %w: it is not ours", id, upload.ErrTaken)
	}
	return t.deleteSnapshot(ctx, id)
}

// Promote implements upload.Target: it writes the family's parameter.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	a, err := t.image(ctx, o.ID)
	if err != nil {
		return err
	}
	if a.Tags.label(upload.LabelName) != o.Name || a.State != "available" {
		return fmt.Errorf("promoting %s: %w: it is an image of %q and %s", o.ID, upload.ErrNotFound, a.Tags.label(upload.LabelName), a.State)
	}
	p, err := t.pointer(ctx, o.Name)
	switch {
	case err != nil:
		return err
	case p.current == o.ID && p.ours:
		return nil
	case p.current != "" && !p.ours:
		return fmt.Errorf("promoting %s: %w: parameter %s was not written by imagectl", o.ID, upload.ErrTaken, t.parameter(o.Name))
	}
	if err := t.point(ctx, o); err != nil {
		return err
	}
	for range unseen {
		if p, err = t.pointer(ctx, o.Name); err != nil || p.current == o.ID {
			return err
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return fmt.Errorf("promoting %s: %w", o.ID, upload.CallError(ctx, err))
		}
	}
	return fmt.Errorf("promoting %s: %w: Systems Manager took the value and does not give it back: parameter %s says %s", o.ID, upload.ErrServer, t.parameter(o.Name), p.current)
}
