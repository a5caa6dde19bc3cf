package azure

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/upload"
)

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := fits(img); err != nil {
		return upload.Plan{}, err
	}
	if _, err := t.ask(ctx, http.MethodGet, t.galleryPath(), apiGallery, nil, nil); err != nil {
		return upload.Plan{}, fmt.Errorf("looking for gallery %s: %w", t.conf.Gallery, err)
	}
	all, err := t.versions(ctx, img.Name)
	if err != nil {
		return upload.Plan{}, err
	}
	found, err := find(all, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var p upload.Plan
	switch {
	case found != nil && found.finished():
		o := describe(*found, all)
		p.Found = &o
		return p, nil
	case found != nil && found.broken():
		p.Steps = append(p.Steps, fmt.Sprintf("delete version %s, which an earlier upload left as %s", found.id(), found.Properties.Stage))
	case found != nil:
		p.Steps = append(p.Steps, fmt.Sprintf("wait for version %s, which is %s", found.id(), found.Properties.Stage))
		return p, nil
	}
	if p.Bytes, err = sparse.DataBytes(img.File, img.Size); err != nil {
		return p, err
	}
	p.Steps = append(p.Steps,
		fmt.Sprintf("send the pages that are not zero to a new disk in %s", t.conf.Location),
		fmt.Sprintf("make version %s of %s in gallery %s of it, and delete the disk", number(img), img.Name, t.conf.Gallery))
	return p, nil
}

// fits says no to what Azure would refuse after all bytes were sent.
func fits(img upload.Image) error {
	const unit, footer = 1 << 20, 512
	if (img.Size-footer)%unit != 0 {
		return fmt.Errorf("reading %s: a VHD for Azure has whole MiB and a footer of %d bytes; this one has %d bytes", img.File.Name(), footer, img.Size)
	}
	if !named.MatchString(img.Name) || len(img.Name) > 80 {
		return fmt.Errorf("naming %q in the gallery: want at most 80 letters, digits and -._", img.Name)
	}
	return nil
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := fits(img); err != nil {
		return upload.Object{}, err
	}
	// Each round ends or removes one thing that was in the way.
	const rounds = 5
	for range rounds {
		all, err := t.versions(ctx, img.Name)
		if err != nil {
			return upload.Object{}, err
		}
		found, err := find(all, img)
		if err != nil {
			return upload.Object{}, err
		}
		switch {
		case found == nil:
			if err := t.create(ctx, img, j, ev); err != nil && !conflicts(err) {
				return upload.Object{}, err
			}
		case found.finished():
			return describe(*found, all), nil
		case found.broken():
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("version %s is %s and is deleted", found.id(), found.Properties.Stage)})
			if err := t.remove(ctx, t.versionPath(img.Name, found.Name), apiGallery); err != nil {
				return upload.Object{}, err
			}
		default:
			ev(upload.Event{Phase: "waiting for the gallery", Note: fmt.Sprintf("version %s is %s", found.id(), found.Properties.Stage)})
			if _, err := t.settled(ctx, img.Name, found.Name); err != nil && !errors.Is(err, upload.ErrNotFound) {
				return upload.Object{}, err
			}
		}
	}
	return upload.Object{}, fmt.Errorf("%w: version %s of %s was broken %d times over", upload.ErrServer, number(img), img.Name, rounds)
}

// create makes the disk, and the version of it.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) error {
	if err := t.family(ctx, img.Name); err != nil {
		return err
	}
	from, err := t.disk(ctx, img, j, ev)
	if err != nil {
		return err
	}
	left := upload.Leftover{Kind: leftVersion, Name: img.Name + "/" + number(img)}
	if err := j.Write(left); err != nil {
		return err
	}
	ev(upload.Event{Phase: "making the version"})
	if _, err := t.ask(ctx, http.MethodPut, t.versionPath(img.Name, number(img)), apiGallery, t.version(img, t.diskPath(from.Name)), nil); err != nil {
		return err
	}
	v, err := t.settled(ctx, img.Name, number(img))
	if err != nil || !v.finished() {
		return err
	}
	if err := j.Forget(left); err != nil {
		return err
	}
	if err := t.removeDisk(ctx, from.Name); err != nil {
		return err
	}
	return j.Forget(from)
}

// settled waits until a version is neither being made nor changed.
func (t *Target) settled(ctx context.Context, name, number string) (version, error) {
	for {
		v, err := t.oneVersion(ctx, name, number)
		if err != nil || v.finished() || v.broken() {
			return v, err
		}
		if err := t.wait(ctx, fmt.Sprintf("waiting for version %s, which is %s", v.id(), v.Properties.Stage)); err != nil {
			return v, err
		}
	}
}

// Clean implements upload.Target. A version that is being made of a disk is waited
// for, since nobody can call it off.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	switch left.Kind {
	case leftDisk:
		return t.removeDisk(ctx, left.Name)
	case leftVersion:
		name, number, ok := strings.Cut(left.Name, "/")
		if !ok {
			return fmt.Errorf("cleaning version %q: want FAMILY/NUMBER", left.Name)
		}
		v, err := t.settled(ctx, name, number)
		if errors.Is(err, upload.ErrNotFound) {
			return nil
		}
		if err != nil || v.finished() || !v.ours() {
			return err
		}
		return t.remove(ctx, t.versionPath(name, number), apiGallery)
	}
	return fmt.Errorf("cleaning %s %q: a gallery has no such thing", left.Kind, left.Name)
}
