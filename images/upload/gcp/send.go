package gcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// Kinds of what a broken upload leaves.
const (
	// leftObject is a file in the bucket; its note is the address of the session that
	// it is sent in, which is a permission and so in the journal alone.
	leftObject = "object"
	leftImage  = "image"
)

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := fits(img); err != nil {
		return upload.Plan{}, err
	}
	found, err := t.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var p upload.Plan
	switch {
	case found != nil && found.finished():
		o, err := t.object(ctx, *found)
		p.Found = &o
		return p, err
	case found != nil && found.broken():
		p.Steps = append(p.Steps, fmt.Sprintf("delete image %s, which an earlier upload left as %s", found.Name, found.Status))
	case found != nil:
		p.Steps = append(p.Steps, fmt.Sprintf("wait for image %s, which is %s", found.Name, found.Status))
		return p, nil
	}
	if _, err := t.objects(ctx); err != nil {
		return p, fmt.Errorf("looking into bucket %s: %w", t.conf.Bucket, err)
	}
	if p.Bytes, err = sparse.DataBytes(img.File, img.Size); err != nil {
		return p, err
	}
	p.Steps = append(p.Steps,
		fmt.Sprintf("pack the disk and send it to bucket %s", t.conf.Bucket),
		fmt.Sprintf("make image %s in project %s of it, and delete the file", imageName(img), t.conf.Project))
	return p, nil
}

// object describes one image.
func (t *Target) object(ctx context.Context, i image) (upload.Object, error) {
	family := i.label(upload.LabelName)
	now, err := t.current(ctx, family)
	if err != nil {
		return upload.Object{}, err
	}
	all, err := t.family(ctx, family)
	return describe(i, all, now), err
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := fits(img); err != nil {
		return upload.Object{}, err
	}
	// Each round ends or removes one thing that was in the way.
	const rounds = 5
	for range rounds {
		found, err := t.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		switch {
		case found == nil:
			if err := t.create(ctx, img, j, ev); err != nil && !exists(err) {
				return upload.Object{}, err
			}
		case found.finished():
			return t.object(ctx, *found)
		case found.broken():
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("image %s is %s and is deleted", found.Name, found.Status)})
			if err := t.removeImage(ctx, found.Name); err != nil && !errors.Is(err, upload.ErrNotFound) {
				return upload.Object{}, err
			}
		default:
			ev(upload.Event{Phase: "waiting for the image", Note: fmt.Sprintf("image %s is %s", found.Name, found.Status)})
			if _, err := t.settled(ctx, found.Name); err != nil && !errors.Is(err, upload.ErrNotFound) {
				return upload.Object{}, err
			}
		}
	}
	return upload.Object{}, fmt.Errorf("%w: image %s was broken %d times over", upload.ErrServer, imageName(img), rounds)
}

// create sends the file and has the image made of it.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) error {
	file, err := t.file(ctx, img, j, ev)
	if err != nil {
		return err
	}
	left := upload.Leftover{Kind: leftImage, Name: imageName(img)}
	if err := j.Write(left); err != nil {
		return err
	}
	ev(upload.Event{Phase: "making the image"})
	if err := t.insert(ctx, img, file.Name); err != nil {
		return err
	}
	made, err := t.settled(ctx, imageName(img))
	if err != nil || !made.finished() {
		return err
	}
	if err := j.Forget(left); err != nil {
		return err
	}
	if err := t.removeObject(ctx, file.Name); err != nil {
		return err
	}
	return j.Forget(file)
}

// file goes on with the one that the journal has, or begins one, and returns it when
// the bucket has all of it.
func (t *Target) file(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Leftover, error) {
	left := upload.Leftover{Kind: leftObject, Name: objectPrefix + imageName(img) + "-" + strings.ToLower(rand.Text()[:8]) + ".tar.gz"}
	var at stand
	if i := slices.IndexFunc(j.Left(), func(l upload.Leftover) bool { return l.Kind == leftObject }); i >= 0 {
		left = j.Left()[i]
		var err error
		if at, err = t.where(ctx, left); err != nil {
			return left, err
		}
		if at.done != nil || at.next > 0 {
			ev(upload.Event{Phase: "sending", Note: fmt.Sprintf("an earlier upload sent a part of %s: going on from there", left.Name)})
		}
	} else {
		at.lost = true
	}
	if at.lost {
		left.Note = ""
		if err := j.Write(left); err != nil {
			return left, err
		}
		session, err := t.begin(ctx, img, left.Name)
		if err != nil {
			return left, err
		}
		left.Note = session
		if err := j.Write(left); err != nil {
			return left, err
		}
		at = stand{}
	}
	_, err := t.send(ctx, img, left.Note, at, ev)
	if errors.Is(err, errDiffers) {
		// It may have been packed by another imagectl. What is there is of no use.
		if rerr := t.removeObject(ctx, left.Name); rerr != nil {
			return left, errors.Join(err, rerr)
		}
		return left, errors.Join(err, j.Forget(left))
	}
	return left, err
}

// where finds out how far an earlier upload came.
func (t *Target) where(ctx context.Context, left upload.Leftover) (stand, error) {
	there, err := t.look(ctx, left.Name)
	if err != nil || there != nil {
		return stand{done: there}, err
	}
	if left.Note == "" {
		return stand{lost: true}, nil
	}
	at, err := t.ask(ctx, left.Note)
	if at.done != nil {
		// It was there, and is not any more.
		return stand{lost: true}, err
	}
	return at, err
}

// Clean implements upload.Target. An image that is being made is waited for: what
// it is made of must stay till then.
func (t *Target) Clean(ctx context.Context, left upload.Leftover) error {
	switch left.Kind {
	case leftImage:
		i, err := t.settled(ctx, left.Name)
		if errors.Is(err, upload.ErrNotFound) {
			return nil
		}
		if err != nil || i.finished() || !i.ours() {
			return err
		}
		if err := t.removeImage(ctx, left.Name); err != nil && !errors.Is(err, upload.ErrNotFound) {
			return err
		}
		return nil
	case leftObject:
		if !strings.HasPrefix(left.Name, objectPrefix) {
			return fmt.Errorf("cleaning %q: it is no file of imagectl's", left.Name)
		}
		if left.Note != "" {
			// Storage says 499 when it has called a session off, and forgets it in a week
			// anyway.
			a, err := t.api.Do(ctx, rest.Request{Method: http.MethodDelete, URL: left.Note, Repeatable: true})
			if err != nil && (a.Status < 400 || a.Status >= 500 || errors.Is(err, upload.ErrAuth)) {
				return fmt.Errorf("calling off the upload of %s: %w", left.Name, err)
			}
		}
		return t.removeObject(ctx, left.Name)
	}
	return fmt.Errorf("cleaning %s %q: Google has no such thing", left.Kind, left.Name)
}
