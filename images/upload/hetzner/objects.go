package hetzner

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
)

// family has the snapshots of a family, or of all, that are no longer being made,
// oldest first.
func (t *Target) family(ctx context.Context, name string) ([]snapshot, []upload.Turned, error) {
	all, err := t.snapshots(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	all = slices.DeleteFunc(all, func(s snapshot) bool { return s.Status == "creating" })
	slices.SortFunc(all, func(a, b snapshot) int { return cmp.Or(a.made().Compare(b.made()), cmp.Compare(a.ID, b.ID)) })
	out := make([]upload.Turned, len(all))
	for n, s := range all {
		out[n] = upload.Turned{Turn: s.turn(), Object: s.object(strconv.FormatInt(s.ID, 10), s.Status)}
		out[n].Broken = s.Status != snapshotReady
	}
	return all, out, nil
}

func (l labelled) object(id, state string) upload.Object {
	return upload.Object{
		ID: id, Name: l.label(upload.LabelName), Version: l.label(upload.LabelVersion),
		Digest: strings.TrimPrefix(l.label(upload.LabelDigest), digestPrefix), Created: l.made(), State: state,
	}
}

// List implements upload.Target. A server of an upload that was begun a day ago is
// listed as broken: it costs money until somebody deletes it.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	_, turned, err := t.family(ctx, name)
	if err != nil {
		return nil, err
	}
	all := upload.Point(turned)
	hosts, err := t.servers(ctx, oursSelector)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if h.ours() && t.conf.Now().Sub(h.made()) >= abandoned && (name == "" || h.label(upload.LabelName) == name) {
			o := h.object(serverPrefix+strconv.FormatInt(h.ID, 10), "server "+h.Status)
			o.Broken = true
			all = append(all, o)
		}
	}
	return all, nil
}

// object describes one snapshot.
func (t *Target) object(ctx context.Context, id int64) (upload.Object, error) {
	_, turned, err := t.family(ctx, "")
	if err != nil {
		return upload.Object{}, err
	}
	for _, o := range upload.Point(turned) {
		if o.ID == strconv.FormatInt(id, 10) {
			return o, nil
		}
	}
	return upload.Object{}, fmt.Errorf("looking for snapshot %d: %w: it was there a moment ago", id, upload.ErrNotFound)
}

// Promote describes a snapshot by the family's name, and then the one that was so
// before by its version's. For a moment there are two.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	all, turned, err := t.family(ctx, o.Name)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(turned, func(there upload.Turned) bool { return there.ID == o.ID && !there.Broken })
	if n < 0 {
		return fmt.Errorf("promoting snapshot %s: %w", o.ID, upload.ErrNotFound)
	}
	turn := upload.NextTurn(turned, o.ID)
	if s := all[n]; s.turn() != turn || s.Description != o.Name {
		if err := t.describe(ctx, s, o.Name, turn); err != nil {
			return err
		}
	}
	for k, s := range all {
		if k == n || s.Description != o.Name {
			continue
		}
		if err := t.describe(ctx, s, versionName(o.Name, turned[k].Version), s.turn()); err != nil {
			return err
		}
	}
	return nil
}

// describe writes description and turn. Hetzner replaces all labels at once.
func (t *Target) describe(ctx context.Context, s snapshot, text string, turn int) error {
	labels := maps.Clone(s.Labels)
	if turn > 0 {
		labels[turnLabel] = strconv.Itoa(turn)
	}
	return t.api.Do(ctx, http.MethodPut, fmt.Sprintf("/images/%d", s.ID), map[string]any{"description": text, "labels": labels}, nil)
}

// get reads a snapshot of ours.
func (t *Target) get(ctx context.Context, id string) (snapshot, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return snapshot{}, fmt.Errorf("looking at snapshot %q: %w: it is no number", id, upload.ErrNotFound)
	}
	var a struct{ Image snapshot }
	if err := t.api.Do(ctx, http.MethodGet, fmt.Sprintf("/images/%d", n), nil, &a); err != nil {
		return snapshot{}, err
	}
	if !a.Image.ours() {
		return snapshot{}, fmt.Errorf("looking at image %d: %w: it is not ours", n, upload.ErrTaken)
	}
	return a.Image, nil
}

// Delete implements upload.Target. Servers have copies, so nothing is in use but
// what is protected. An abandoned server goes with its key.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	id, is := strings.CutPrefix(o.ID, serverPrefix)
	if !is {
		s, err := t.get(ctx, o.ID)
		if err != nil {
			return err
		}
		return t.drop(ctx, "images", s.ID)
	}
	hosts, err := t.servers(ctx, oursSelector)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if strconv.FormatInt(h.ID, 10) == id && h.ours() {
			return t.Clean(ctx, upload.Leftover{Kind: leftServer, Name: h.Name, Note: h.Labels[markLabel]})
		}
	}
	return fmt.Errorf("deleting %s: %w", o.ID, upload.ErrNotFound)
}

// Verify compares the labels; a snapshot cannot be read but by starting a server
// from it.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	s, err := t.get(ctx, o.ID)
	if err != nil {
		return nil, fmt.Errorf("verifying snapshot %s: %w", o.ID, err)
	}
	return []upload.Check{
		upload.Compare("status", s.Status, snapshotReady),
		upload.CompareLabels(s.label, img),
		{Name: "stored bytes", Result: upload.Unprovable, Detail: "Hetzner keeps no digest of a snapshot; the disk's was compared before the snapshot was made"},
	}, nil
}

var _ upload.Target = (*Target)(nil)
