package azure

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

// List implements upload.Target. A disk of ours is broken when it is a day old;
// until then somebody may be sending to it.
func (t *Target) List(ctx context.Context, name string) ([]upload.Object, error) {
	names := []string{name}
	if name == "" {
		all, err := list[struct{ Name string }](ctx, t, t.galleryPath()+"/images", apiGallery)
		if err != nil {
			return nil, err
		}
		names = nil
		for _, d := range all {
			names = append(names, d.Name)
		}
	}
	var out []upload.Object
	for _, n := range names {
		all, err := t.versions(ctx, n)
		if err != nil {
			return nil, err
		}
		for _, v := range all {
			if v.ours() && (v.finished() || v.broken()) {
				out = append(out, describe(v, all))
			}
		}
	}
	disks, err := list[disk](ctx, t, t.group()+compute+"/disks", apiDisks)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		family := d.Tags[tagOf(upload.LabelName)]
		if d.Tags[upload.LabelOurs] != "1" || name != "" && family != name || t.conf.Now().Sub(d.Properties.Created) < abandoned {
			continue
		}
		digest, _ := strings.CutPrefix(d.Tags[tagOf(upload.LabelDigest)], "sha256:")
		out = append(out, upload.Object{
			ID: diskPrefix + d.Name, Name: family, Version: d.Tags[tagOf(upload.LabelVersion)], Digest: digest,
			Broken: true, Created: d.Properties.Created, State: "disk " + d.Properties.State,
		})
	}
	slices.SortStableFunc(out, func(a, b upload.Object) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// diskPrefix begins the IDs of disks.
const diskPrefix = "disks/"

// Promote implements upload.Target. The new one is included before the others are
// excluded, so that there always is a latest; what breaks off in between is ended
// by the next one.
func (t *Target) Promote(ctx context.Context, o upload.Object) error {
	all, err := t.versions(ctx, o.Name)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(v version) bool { return v.id() == o.ID && v.ours() && v.finished() })
	if i < 0 {
		return fmt.Errorf("promoting %s: %w among the finished versions of %s", o.ID, upload.ErrNotFound, o.Name)
	}
	to := all[i]
	for _, v := range all {
		if !v.ours() && !v.Properties.Publishing.Excluded && higher(v, to) > 0 {
			return fmt.Errorf("promoting %s: %w: version %s is higher and was not made by imagectl; exclude it from latest first", o.ID, upload.ErrTaken, v.id())
		}
	}
	if to.Properties.Publishing.Excluded {
		if err := t.change(ctx, o.Name, to, func(v *version) { v.Properties.Publishing.Excluded = false }); err != nil {
			return err
		}
	}
	at := t.conf.Now().UTC().Format(time.RFC3339)
	for _, v := range all {
		if v.Name == to.Name || !v.ours() || !v.finished() || v.Properties.Publishing.Excluded {
			continue
		}
		err := t.change(ctx, o.Name, v, func(v *version) {
			v.Properties.Publishing.Excluded = true
			v.Tags[tagOf(tagReplacedBy)], v.Tags[tagOf(tagReplacedAt)] = to.Name, at
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// change writes a version anew with something changed, and waits until it is.
func (t *Target) change(ctx context.Context, name string, v version, how func(*version)) error {
	path := t.versionPath(name, v.Name)
	how(&v)
	v.ID, v.Name, v.Properties.Stage, v.Properties.Publishing.Published = "", "", "", nil
	if _, err := t.ask(ctx, http.MethodPut, path, apiGallery, v, nil); err != nil {
		return err
	}
	for {
		var now version
		if _, err := t.ask(ctx, http.MethodGet, path, apiGallery, nil, &now); err != nil {
			return err
		}
		switch now.Properties.Stage {
		case "Succeeded":
			return nil
		case "Failed", "Canceled":
			return fmt.Errorf("changing %s: %w: Azure says it has %s", shortPath(path), upload.ErrServer, now.Properties.Stage)
		}
		if err := t.wait(ctx, "changing "+shortPath(path)); err != nil {
			return err
		}
	}
}

// Delete implements upload.Target. Azure deletes versions that machines and scale
// sets were made of; the latter could not grow any more, so it is asked here.
func (t *Target) Delete(ctx context.Context, o upload.Object) error {
	if name, ok := strings.CutPrefix(o.ID, diskPrefix); ok {
		return t.removeDisk(ctx, name)
	}
	name, number, ok := strings.Cut(o.ID, "/")
	if !ok {
		return fmt.Errorf("deleting version %q: %w: want FAMILY/NUMBER", o.ID, upload.ErrNotFound)
	}
	all, err := t.versions(ctx, name)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(v version) bool { return v.Name == number })
	if i < 0 {
		return fmt.Errorf("deleting version %s: %w", o.ID, upload.ErrNotFound)
	}
	if !all[i].ours() {
		return fmt.Errorf("deleting version %s: %w: it is not ours", o.ID, upload.ErrTaken)
	}
	if now, ok := latest(all); ok && now.Name == number {
		return fmt.Errorf("deleting version %s: %w: it is the latest of %s", o.ID, upload.ErrInUse, name)
	}
	user, err := t.user(ctx, name, number)
	if err != nil {
		return err
	}
	if user != "" {
		return fmt.Errorf("deleting version %s: %w: %s was made of it", o.ID, upload.ErrInUse, user)
	}
	return t.remove(ctx, t.versionPath(name, number), apiGallery)
}

// machine is a virtual machine or a scale set.
type machine struct {
	Name       string
	Properties struct {
		storage
		Profile struct{ storage } `json:"virtualMachineProfile"`
	}
}

type storage struct {
	Storage struct {
		Image struct {
			ID    string `json:"id"`
			Exact string `json:"exactVersion"`
		} `json:"imageReference"`
	} `json:"storageProfile"`
}

// user is a machine or a scale set of the subscription that was made of a version;
// none is "".
func (t *Target) user(ctx context.Context, name, number string) (string, error) {
	family := t.familyPath(name)
	for _, kind := range []string{"virtualMachines", "virtualMachineScaleSets"} {
		all, err := list[machine](ctx, t, "/subscriptions/"+t.conf.Subscription+compute+"/"+kind, apiMachines)
		if err != nil {
			return "", err
		}
		for _, m := range all {
			for _, s := range []storage{m.Properties.storage, m.Properties.Profile.storage} {
				id := s.Storage.Image.ID
				if strings.EqualFold(id, family+"/versions/"+number) || strings.EqualFold(id, family) && s.Storage.Image.Exact == number {
					return m.Name, nil
				}
			}
		}
	}
	return "", nil
}

// Verify implements upload.Target.
func (t *Target) Verify(ctx context.Context, o upload.Object, img upload.Image) ([]upload.Check, error) {
	name, number, ok := strings.Cut(o.ID, "/")
	if !ok {
		return nil, fmt.Errorf("verifying version %q: %w: want FAMILY/NUMBER", o.ID, upload.ErrNotFound)
	}
	v, err := t.oneVersion(ctx, name, number)
	if err != nil {
		return nil, err
	}
	return []upload.Check{
		upload.CompareLabels(v.label, img),
		upload.CompareFile(v.label(upload.LabelFile), img),
		upload.Compare("state", v.Properties.Stage, "Succeeded"),
		{Name: "stored bytes", Result: upload.Unprovable, Detail: "Azure compared the MD5 of each range as it arrived, keeps no digest of a version, and gives no way to read one back but a disk made of it"},
	}, nil
}
