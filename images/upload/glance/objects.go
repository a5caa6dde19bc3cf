package glance

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// family has the finished images of a family, or of all, oldest first, and those
// that lie unfinished for long as broken. Those that are being made are left out.
func (t *Target) family(ctx context.Context, name string) ([]image, []upload.Turned, error) {
	labels := map[string]string{}
	if name != "" {
		labels[upload.LabelName] = name
	}
	all, err := t.images(ctx, labels)
	if err != nil {
		return nil, nil, err
	}
	all = slices.DeleteFunc(all, func(i image) bool {
		s := i.stage()
		return (s == empty || s == pending) && t.conf.Now().Sub(i.created()) < abandoned
	})
	slices.SortFunc(all, func(a, b image) int {
		return cmp.Or(a.created().Compare(b.created()), strings.Compare(a.id(), b.id()))
	})
	out := make([]upload.Turned, len(all))
	for n, i := range all {
		out[n] = upload.Turned{Turn: i.turn(), Object: upload.Object{
			ID: i.id(), Name: i.text(label(upload.LabelName)), Version: i.text(label(upload.LabelVersion)),
			Digest: strings.TrimPrefix(i.text(label(upload.LabelDigest)), "sha256:"),
			Broken: i.stage() != finished, Created: i.created(), State: i.text("status"),
		}}
	}
	return all, out, nil
}

// List implements upload.Target.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	_, all, err := t.family(ctx, name)
	return upload.Point(all), err
}

// object describes one image.
func (t *Target) object(ctx context.Context, i image) (upload.Object, error) {
	all, err := t.List(ctx, i.text(label(upload.LabelName)))
	if err != nil {
		return upload.Object{}, err
	}
	n := slices.IndexFunc(all, func(o upload.Object) bool { return o.ID == i.id() })
	if n < 0 {
		return upload.Object{}, fmt.Errorf("looking for image %s: %w: it was there a moment ago", i.id(), upload.ErrNotFound)
	}
	return all[n], nil
}

// Promote gives an image the family's name, and then takes it from the one that had
// it. For a moment two have it; then OpenStack's clients refuse the name.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	all, turned, err := t.family(ctx, o.Name)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(turned, func(there upload.Turned) bool { return there.ID == o.ID && !there.Broken })
	if n < 0 {
		return fmt.Errorf("promoting image %s: %w", o.ID, upload.ErrNotFound)
	}
	turn := strconv.Itoa(upload.NextTurn(turned, o.ID))
	if i := all[n]; i.text(turnKey) != turn || !i.standsFor(o.Name) {
		if err := t.patch(ctx, i.id(), map[string]any{"name": o.Name, "os_hidden": false, "protected": true, turnKey: turn}); err != nil {
			return err
		}
	}
	for k, i := range all {
		if k == n || i.standsBack() {
			continue
		}
		if err := t.patch(ctx, i.id(), map[string]any{"name": o.Name + "_" + turned[k].Version, "os_hidden": true, "protected": false}); err != nil {
			return err
		}
	}
	return nil
}

// standsFor: the image is what a family's name means.
func (i image) standsFor(family string) bool {
	return i.text("name") == family && i.flag("protected") && !i.flag("os_hidden")
}

// standsBack: the image is none that a family's name means.
func (i image) standsBack() bool {
	return i.text("name") != i.text(label(upload.LabelName)) && !i.flag("protected") && i.flag("os_hidden")
}

// Delete implements upload.Target. Glance itself refuses where machines or volumes
// lie on the image's data, which is so on Ceph; with a store of files they have
// copies.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	i, err := t.get(ctx, o.ID)
	if err != nil {
		return err
	}
	switch {
	case i == nil:
		return fmt.Errorf("deleting image %s: %w", o.ID, upload.ErrNotFound)
	case !i.ours():
		return fmt.Errorf("deleting image %s: %w: it is not ours", o.ID, upload.ErrTaken)
	case i.flag("protected"):
		return fmt.Errorf("deleting image %s: %w: it is protected; openstack image set --unprotect %s", o.ID, upload.ErrInUse, o.ID)
	}
	return t.remove(ctx, o.ID)
}

// Clean removes the very image that a broken upload made, unless somebody has
// finished it.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	if mine, err := upload.CleanStaged(ctx, t.conf.Source, left); mine {
		return err
	}
	if left.Kind != leftImage || left.ID == "" || left.Note == "" {
		return fmt.Errorf("cleaning %s %q: OpenStack has no such thing", left.Kind, left.Name)
	}
	i, err := t.get(ctx, left.ID)
	if err != nil || i == nil || i.text(markKey) != left.Note || i.stage() == finished {
		return err
	}
	if err := t.remove(ctx, left.ID); err != nil && !gone(err) {
		return err
	}
	return nil
}

// Verify compares the labels, and Glance's own digest of what it stores.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	i, err := t.get(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	if i == nil {
		return nil, fmt.Errorf("verifying image %s: %w", o.ID, upload.ErrNotFound)
	}
	sum, err := stored(i, img, "")
	if err != nil {
		return nil, err
	}
	checks := []upload.Check{
		upload.Compare("status", i.text("status"), "active"),
		upload.CompareLabels(func(key string) string { return i.text(label(key)) }, img),
		sum,
	}
	if i.text(label(upload.LabelFile)) == "sha256:"+img.SHA256 && !converted(i, img) {
		checks = append(checks, upload.Compare("size of the file", i.number("size"), strconv.FormatInt(img.Size, 10)))
	}
	return checks, nil
}

var _ upload.Target = (*Target)(nil)
