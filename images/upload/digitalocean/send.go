package digitalocean

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/bearer"
)

// leftImage is the only thing that a broken upload leaves.
const leftImage = "image"

// find returns the image of a disk: the finished one if there are several, else
// that with the lowest number that may become one; nil when there is none.
func (t *Target) find(ctx context.Context, img upload.Image) (*image, error) {
	all, err := t.images(ctx, img.Name)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i image) bool { return i.label(upload.LabelDigest) != "sha256:"+img.Digest })
	if len(all) == 0 {
		return nil, nil
	}
	slices.SortFunc(all, func(a, b image) int { return cmp.Or(cmp.Compare(a.stage(), b.stage()), cmp.Compare(a.ID, b.ID)) })
	return &all[0], nil
}

// Preflight implements upload.Target. Nothing tells what an account may still make.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if img.RawSize >= sizeLimit {
		return upload.Plan{}, fmt.Errorf("%w: the disk has %d bytes, and DigitalOcean takes less than %d", upload.ErrSpace, img.RawSize, int64(sizeLimit))
	}
	found, err := t.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var p upload.Plan
	if found != nil {
		switch found.stage() {
		case finished:
			o, err := t.object(ctx, found.ID)
			return upload.Plan{Found: &o}, err
		case pending:
			p.Steps = append(p.Steps, fmt.Sprintf("wait for image %d, which DigitalOcean imports already", found.ID))
			return p, nil
		case broken:
			p.Steps = append(p.Steps, fmt.Sprintf("delete image %d, whose import came to nothing: %s", found.ID, found.Error))
		}
	}
	p.Bytes = img.Size
	p.Steps = append(p.Steps,
		fmt.Sprintf("make image %s in %s", versionName(img.Name, img.Version), t.conf.Region),
		fmt.Sprintf("have DigitalOcean fetch %s, and wait until the image is available", fileName(img)))
	return p, nil
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	// Each round ends, waits or removes one thing that was in the way.
	const removals = 5
	for removed := 0; removed < removals; {
		found, err := t.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		if found == nil {
			if found, err = t.create(ctx, img, j, ev); err != nil {
				return upload.Object{}, err
			}
			if found == nil {
				continue
			}
		}
		switch found.stage() {
		case finished:
			return t.object(ctx, found.ID)
		case broken:
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("image %d is %s and is deleted: %s", found.ID, found.Status, found.Error)})
			if err := t.remove(ctx, strconv.Itoa(found.ID)); err != nil {
				return upload.Object{}, err
			}
			removed++
		case pending:
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: fmt.Sprintf("image %d is %s", found.ID, found.Status)})
			if _, err := t.settled(ctx, found.ID); err != nil && !errors.Is(err, upload.ErrNotFound) {
				return upload.Object{}, err
			}
		}
	}
	return upload.Object{}, fmt.Errorf("%w: image %s was broken %d times over", upload.ErrServer, versionName(img.Name, img.Version), removals)
}

// create makes an image and waits until DigitalOcean has it. It is nil when another
// upload was faster.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (*image, error) {
	name := versionName(img.Name, img.Version)
	left := upload.Leftover{Kind: leftImage, Name: name, Note: t.conf.Mark()}
	text, err := record{Labels: img.Audit(), Upload: left.Note, Created: t.conf.Now().UTC()}.text()
	if err != nil {
		return nil, fmt.Errorf("describing image %s: %w", name, err)
	}
	// DigitalOcean takes no query, and asks by HEAD first.
	url, release, err := t.conf.Source.Stage(ctx, upload.Wanted{Name: fileName(img), Image: img, Plain: true}, j, ev)
	if err != nil {
		return nil, fmt.Errorf("making %s readable for DigitalOcean: %w", name, err)
	}
	defer release()
	if err := j.Write(left); err != nil {
		return nil, err
	}
	var a struct{ Image image }
	err = t.api.Do(ctx, http.MethodPost, "/v2/images", map[string]any{
		"name": name, "url": url, "region": t.conf.Region, "distribution": "Unknown", "description": text, "tags": []string{tag},
	}, &a)
	if err != nil {
		var no *bearer.Refusal
		if errors.As(err, &no) && no.Status < http.StatusInternalServerError {
			// Refused, so nothing was made.
			err = errors.Join(err, j.Forget(left))
		}
		return nil, fmt.Errorf("making image %s: %w", name, err)
	}
	left.ID = strconv.Itoa(a.Image.ID)
	if err := j.Write(left); err != nil {
		return nil, err
	}
	first, err := t.find(ctx, img)
	if err != nil {
		return nil, err
	}
	if first != nil && first.ID < a.Image.ID && first.stage() != broken {
		ev(upload.Event{Phase: "removing the second image", Note: fmt.Sprintf("another upload made image %d first; %d is deleted", first.ID, a.Image.ID)})
		if err := t.remove(ctx, left.ID); err != nil {
			return nil, err
		}
		return nil, j.Forget(left)
	}
	ev(upload.Event{Phase: "DigitalOcean importing"})
	made, err := t.settled(ctx, a.Image.ID)
	if errors.Is(err, upload.ErrNotFound) {
		return nil, j.Forget(left)
	}
	if err != nil {
		return nil, err
	}
	if made.stage() == broken {
		if err := t.remove(ctx, left.ID); err != nil {
			return nil, err
		}
		return nil, errors.Join(fmt.Errorf("importing image %s: %w: DigitalOcean says: %s %s; image %d was deleted", name, upload.ErrServer, made.Status, made.Error, made.ID), j.Forget(left))
	}
	return &made, j.Forget(left)
}

// settled waits until an image is no longer pending.
func (t *Target) settled(ctx context.Context, id int) (image, error) {
	for {
		i, err := t.get(ctx, strconv.Itoa(id))
		if err != nil || i.stage() != pending {
			return i, err
		}
		if err := t.conf.Wait(ctx, poll); err != nil {
			return image{}, fmt.Errorf("waiting for image %d, which is %s: %w", id, i.Status, upload.CallError(ctx, err))
		}
	}
}
