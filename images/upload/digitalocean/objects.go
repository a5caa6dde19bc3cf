package digitalocean

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// family has the images of a family, or of all, that are finished or broken, oldest
// first. Those that are being imported are left out.
func (t *Target) family(ctx context.Context, name string) ([]image, []upload.Turned, error) {
	all, err := t.images(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	all = slices.DeleteFunc(all, func(i image) bool { return i.stage() == pending })
	slices.SortFunc(all, func(a, b image) int {
		return cmp.Or(a.record.Created.Compare(b.record.Created), cmp.Compare(a.ID, b.ID))
	})
	out := make([]upload.Turned, len(all))
	for n, i := range all {
		out[n] = upload.Turned{Turn: i.record.Turn, Object: upload.Object{
			ID: strconv.Itoa(i.ID), Name: i.label(upload.LabelName), Version: i.label(upload.LabelVersion),
			Digest: strings.TrimPrefix(i.label(upload.LabelDigest), "sha256:"),
			Broken: i.stage() == broken, Created: i.record.Created, State: i.Status,
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
func (t *Target) object(ctx context.Context, id int) (upload.Object, error) {
	all, err := t.List(ctx, "")
	if err != nil {
		return upload.Object{}, err
	}
	n := slices.IndexFunc(all, func(o upload.Object) bool { return o.ID == strconv.Itoa(id) })
	if n < 0 {
		return upload.Object{}, fmt.Errorf("looking for image %d: %w: it was there a moment ago", id, upload.ErrNotFound)
	}
	return all[n], nil
}

// Promote gives an image the family's name, and then takes it from the one that had
// it. For a moment two have it.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	all, turned, err := t.family(ctx, o.Name)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(turned, func(there upload.Turned) bool { return there.ID == o.ID && !there.Broken })
	if n < 0 {
		return fmt.Errorf("promoting image %s: %w", o.ID, upload.ErrNotFound)
	}
	turn := upload.NextTurn(turned, o.ID)
	if i := all[n]; i.record.Turn != turn || i.Name != o.Name {
		i.record.Turn = turn
		if err := t.rename(ctx, i, o.Name); err != nil {
			return err
		}
	}
	for k, i := range all {
		if k == n || i.Name != o.Name {
			continue
		}
		if err := t.rename(ctx, i, versionName(o.Name, turned[k].Version)); err != nil {
			return err
		}
	}
	return nil
}

// rename writes an image's name and record.
func (t *Target) rename(ctx context.Context, i image, name string) error {
	text, err := i.record.text()
	if err != nil {
		return fmt.Errorf("describing image %d: %w", i.ID, err)
	}
	return t.api.Do(ctx, http.MethodPut, "/v2/images/"+strconv.Itoa(i.ID), map[string]string{"name": name, "description": text}, nil)
}

// Delete implements upload.Target. Droplets have copies, so nothing is in use.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	if _, err := t.get(ctx, o.ID); err != nil {
		return err
	}
	return t.remove(ctx, o.ID)
}

// Clean removes the very image that a broken upload made, unless it is finished.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	if mine, err := upload.CleanStaged(ctx, t.conf.Source, left); mine {
		return err
	}
	if left.Kind != leftImage || left.Note == "" {
		return fmt.Errorf("cleaning %s %q: DigitalOcean has no such thing", left.Kind, left.Name)
	}
	all, err := t.images(ctx, "")
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.record.Upload == left.Note && i.stage() != finished {
			if err := t.remove(ctx, strconv.Itoa(i.ID)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Verify compares the labels; DigitalOcean has no digest, and gives no image back.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	i, err := t.get(ctx, o.ID)
	if errors.Is(err, upload.ErrNotFound) {
		return nil, fmt.Errorf("verifying image %s: %w", o.ID, err)
	}
	if err != nil {
		return nil, err
	}
	return []upload.Check{
		upload.Compare("status", i.Status, "available"),
		upload.CompareLabels(i.label, img),
		{Name: "stored bytes", Result: upload.Unprovable, Detail: "DigitalOcean keeps no digest of what it stores, and gives no way to read it back"},
	}, nil
}

var _ upload.Target = (*Target)(nil)
