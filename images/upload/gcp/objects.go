package gcp

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// filePrefix begins the IDs of files that were left in the bucket.
const filePrefix = "files/"

// List implements upload.Target. A file of ours is broken when it is a day old;
// until then somebody may be making an image of it.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	all, err := t.family(ctx, name)
	if err != nil {
		return nil, err
	}
	families := map[string][]image{}
	for _, i := range all {
		family := i.label(upload.LabelName)
		families[family] = append(families[family], i)
	}
	var out []upload.Object
	for family, members := range families {
		now, err := t.current(ctx, family)
		if err != nil {
			return nil, err
		}
		for _, i := range members {
			if i.finished() || i.broken() {
				out = append(out, describe(i, members, now))
			}
		}
	}
	files, err := t.objects(ctx)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		family := f.Metadata[upload.LabelName]
		if name != "" && family != name || t.conf.Now().Sub(f.Created) < abandoned {
			continue
		}
		digest, _ := strings.CutPrefix(f.Metadata[upload.LabelDigest], "sha256:")
		out = append(out, upload.Object{
			ID: filePrefix + f.Name, Name: family, Version: f.Metadata[upload.LabelVersion], Digest: digest,
			Broken: true, Created: f.Created, State: "file in the bucket",
		})
	}
	slices.SortFunc(out, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Promote implements upload.Target. The new one joins the family before the others
// are deprecated, so that the family always has one; what breaks off in between is
// ended by the next one.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	to, err := t.image(ctx, o.ID)
	if err != nil {
		return err
	}
	if !to.ours() || to.label(upload.LabelName) != o.Name || !to.finished() {
		return fmt.Errorf("promoting %s: %w: it is an image of %q and %s", o.ID, upload.ErrNotFound, to.label(upload.LabelName), to.Status)
	}
	now, err := t.current(ctx, o.Name)
	if err != nil {
		return err
	}
	if now.Name != "" && !now.ours() && now.Created.After(to.Created) {
		return fmt.Errorf("promoting %s: %w: family %s has image %s, which is newer and was not made by imagectl; deprecate it first", o.ID, upload.ErrTaken, o.Name, now.Name)
	}
	at := t.global("images/" + url.PathEscape(to.Name))
	if !to.active() {
		if err := t.change(ctx, http.MethodPost, at+"/deprecate", map[string]string{"state": "ACTIVE"}); err != nil {
			return err
		}
	}
	if to.Family != o.Name {
		if err := t.change(ctx, http.MethodPatch, at, map[string]string{"family": o.Name}); err != nil {
			return err
		}
	}
	all, err := t.family(ctx, o.Name)
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.Name == to.Name || i.Family != o.Name || !i.active() {
			continue
		}
		ask := map[string]string{"state": "DEPRECATED", "replacement": at, "deprecated": t.conf.Now().UTC().Format(time.RFC3339)}
		if err := t.change(ctx, http.MethodPost, t.global("images/"+url.PathEscape(i.Name))+"/deprecate", ask); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements upload.Target. Google deletes images that disks and templates
// were made of; the latter could start nothing any more, so it is asked here.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	if file, ok := strings.CutPrefix(o.ID, filePrefix); ok {
		return t.deleteFile(ctx, file)
	}
	i, err := t.image(ctx, o.ID)
	if err != nil {
		return err
	}
	if !i.ours() {
		return fmt.Errorf("deleting image %s: %w: it is not ours", i.Name, upload.ErrTaken)
	}
	family := i.label(upload.LabelName)
	now, err := t.current(ctx, family)
	if err != nil {
		return err
	}
	if now.Name == i.Name {
		return fmt.Errorf("deleting image %s: %w: family %s resolves to it", i.Name, upload.ErrInUse, family)
	}
	user, err := t.user(ctx, i.Name)
	if err != nil {
		return err
	}
	if user != "" {
		return fmt.Errorf("deleting image %s: %w: %s was made of it", i.Name, upload.ErrInUse, user)
	}
	return t.removeImage(ctx, i.Name)
}

func (t *Target) deleteFile(ctx context.Context, name string) error {
	f, err := t.look(ctx, name)
	switch {
	case err != nil:
		return err
	case f == nil:
		return fmt.Errorf("deleting file %s: %w", name, upload.ErrNotFound)
	case !f.ours():
		return fmt.Errorf("deleting file %s: %w: it is not ours", name, upload.ErrTaken)
	}
	return t.removeObject(ctx, name)
}

// user is a disk or an instance template of the project that was made of an image;
// none is "".
func (t *Target) user(ctx context.Context, name string) (string, error) {
	at := strings.TrimSuffix(t.global(""), "global/") + "aggregated/disks"
	q := url.Values{"filter": {`sourceImage="` + t.global("images/"+name) + `"`}}
	for {
		var page struct {
			Items map[string]struct{ Disks []struct{ Name string } }
			Next  string `json:"nextPageToken"`
		}
		if err := t.call(ctx, http.MethodGet, at+"?"+q.Encode(), nil, &page); err != nil {
			return "", err
		}
		for _, zone := range page.Items {
			if len(zone.Disks) > 0 {
				return "disk " + zone.Disks[0].Name, nil
			}
		}
		if page.Next == "" {
			break
		}
		q.Set("pageToken", page.Next)
	}
	type template struct {
		Name       string
		Properties struct {
			Disks []struct {
				Params struct{ SourceImage string } `json:"initializeParams"`
			}
		}
	}
	all, err := list[template](ctx, t, t.global("instanceTemplates"), url.Values{})
	if err != nil {
		return "", err
	}
	for _, m := range all {
		for _, d := range m.Properties.Disks {
			if names(d.Params.SourceImage, name) {
				return "instance template " + m.Name, nil
			}
		}
	}
	return "", nil
}

// Verify implements upload.Target.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	i, err := t.image(ctx, o.ID)
	if err != nil {
		return nil, err
	}
	return []upload.Check{
		upload.CompareLabels(i.label, img),
		upload.CompareFile(i.label(upload.LabelFile), img),
		upload.Compare("state", i.Status, "READY"),
		upload.Compare("size of the disk in GiB", strconv.FormatInt(i.SizeGB, 10), strconv.FormatInt((img.RawSize+t.unit-1)/t.unit, 10)),
		{Name: "stored bytes", Result: upload.Unprovable, Detail: "size and CRC32C of the file were compared before the image was made of it; Google keeps no digest of an image"},
	}, nil
}
