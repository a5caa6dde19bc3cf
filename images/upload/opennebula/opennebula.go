// Package opennebula makes images and VM templates on OpenNebula by its XML-RPC
// API, as an ordinary user: no call needs oneadmin, a restricted attribute or a
// shell on the front-end.
//
// A version is an image NAME-VERSION; the family's stable name is a VM template
// NAME whose disk moves from image to image. OpenNebula takes no bytes: its
// front-end reads the file from a URL (package staging) or from its own disk. Every
// image has SHA1, the strongest digest that the front-end compares (it does not
// check the certificate of a URL), and the audit record as attributes IMAGECTL_*.
// Attributes are anybody's to write, and Sunstone's Clone copies them: what is ours has
// the record, the name that follows from it, and us as its owner (or a group that the
// configuration names).
//
// Calls and quirks are those of a real oned 7.5.80 with the fs driver; StorPool's
// driver was read, not tried (docs/upload-opennebula.md).
package opennebula

import (
	"context"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // The best that the front-end compares; it guards against damage, the manifest's SHA-256 against the rest.
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Config says where and how.
type Config struct {
	// Endpoint is the URL of the API, http://FRONTEND:2633/RPC2.
	Endpoint string
	// Session is USER:PASSWORD or USER:TOKEN.
	Session string
	// Datastore is the name or the number of an image datastore.
	Datastore string
	// Source gives the front-end the file, at a URL or in a directory that SAFE_DIRS of
	// the datastore has.
	Source upload.Source
	// Group is the name of a group whose members' images and templates count as ours, too;
	// empty for the user's alone.
	Group string
	// Machine is what the template says of virtual machines.
	Machine Machine
	// Client sends the calls; it has no time limit, for one.image.allocate answers
	// only when the front-end has looked at the file.
	Client *http.Client
	// Wait passes the time between two questions about the same thing.
	Wait func(ctx context.Context) error
}

// Target is an upload.Target. It may be used by several goroutines.
type Target struct {
	conf Config

	mu sync.Mutex
	me *caller
}

// New returns a target. It calls nobody.
func New(c Config) *Target { return &Target{conf: c} }

// Formats implements upload.Target: the front-end refuses a raw image that is
// compressed, and reads an uncompressed one eight times.
func (t *Target) Formats() []store.Format { return []store.Format{store.QCOW2, store.Raw} }

// Preflight implements upload.Target.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	// It says who we are, too, so that wrong credentials are told first.
	if _, err := t.caller(ctx); err != nil {
		return upload.Plan{}, err
	}
	ds, err := t.datastore(ctx)
	if err != nil {
		return upload.Plan{}, err
	}
	found, err := t.find(ctx, ds, img)
	if err != nil {
		return upload.Plan{}, err
	}
	var p upload.Plan
	if found != nil {
		switch found.stage() {
		case finished:
			o, err := t.object(ctx, *found)
			p.Found = &o
			return p, err
		case pending:
			p.Steps = append(p.Steps, fmt.Sprintf("wait for image %d, which the front-end is reading for another upload", found.ID))
			return p, nil
		case broken:
			p.Steps = append(p.Steps, fmt.Sprintf("delete image %d, which an earlier upload left in state ERROR: %s", found.ID, found.Template.Error))
		}
	}
	if err := ds.fits(img); err != nil {
		return p, err
	}
	p.Bytes = img.Size
	p.Steps = append(p.Steps,
		fmt.Sprintf("make image %s in datastore %s, with the SHA1 of the file", imageName(img), ds.Name),
		"have the front-end read the file, and wait until the image is READY")
	return p, nil
}

// Upload implements upload.Target.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	ds, err := t.datastore(ctx)
	if err != nil {
		return upload.Object{}, err
	}
	// Each round ends or removes one thing that was in the way; more would mean that
	// somebody makes broken images as fast as we delete them.
	const rounds = 5
	for range rounds {
		found, err := t.find(ctx, ds, img)
		if err != nil {
			return upload.Object{}, err
		}
		if found == nil {
			made, err := t.create(ctx, ds, img, j, ev)
			if errors.Is(err, upload.ErrTaken) {
				// Another upload of the same image may have been faster by a moment.
				if other, ferr := t.find(ctx, ds, img); ferr == nil && other != nil {
					continue
				}
			}
			if err != nil {
				return upload.Object{}, err
			}
			found = &made
		}
		switch found.stage() {
		case finished:
			return t.object(ctx, *found)
		case broken:
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("image %d is in state ERROR and is deleted: %s", found.ID, found.Template.Error)})
			if err := t.remove(ctx, found.ID); err != nil {
				return upload.Object{}, err
			}
		case pending:
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: fmt.Sprintf("image %d is %s", found.ID, found.state())})
			if _, err := t.settled(ctx, found.ID); err != nil && !errors.Is(err, upload.ErrNotFound) {
				return upload.Object{}, err
			}
		}
	}
	return upload.Object{}, fmt.Errorf("%w: image %s was broken %d times over", upload.ErrServer, imageName(img), rounds)
}

// create allocates the image and waits until the front-end has it.
func (t *Target) create(ctx context.Context, ds datastore, img upload.Image, j upload.Journal, ev upload.Events) (image, error) {
	if err := ds.fits(img); err != nil {
		return image{}, err
	}
	sum, err := sha1Of(ctx, img, ev)
	if err != nil {
		return image{}, err
	}
	name := imageName(img)
	// A raw image is asked for by HEAD, too.
	path, release, err := t.conf.Source.Stage(ctx, upload.Wanted{Name: name + "." + string(img.Format), Image: img, Plain: img.Format == store.Raw}, j, ev)
	if err != nil {
		return image{}, fmt.Errorf("making %s readable for the front-end: %w", name, err)
	}
	defer release()
	left := upload.Leftover{Kind: "image", Name: name, Note: rand.Text()}
	text, err := imageTemplate(img, path, sum, left.Note)
	if err != nil {
		return image{}, err
	}
	if err := j.Write(left); err != nil {
		return image{}, err
	}
	ev(upload.Event{Phase: "front-end looking at the file"})
	answer, err := t.call(ctx, "one.image.allocate", text, ds.ID, false)
	var no *refusal
	if errors.As(err, &no) {
		// Refused, so nothing was made.
		return image{}, errors.Join(fmt.Errorf("making image %s: %w", name, err), j.Forget(left))
	}
	id, err := t.allocated(ctx, left.Note, answer, err)
	if err != nil {
		return image{}, fmt.Errorf("making image %s: %w", name, err)
	}
	left.ID = strconv.Itoa(id)
	if err := j.Write(left); err != nil {
		return image{}, err
	}
	made, err := t.settled(ctx, id)
	if err != nil {
		return image{}, err
	}
	if made.stage() == broken {
		if err := t.remove(ctx, id); err != nil {
			return image{}, err
		}
		kind := upload.ErrServer
		if errors.Is(&refusal{text: made.Template.Error}, upload.ErrSpace) {
			kind = upload.ErrSpace
		}
		return image{}, errors.Join(fmt.Errorf("importing image %s: %w: OpenNebula says: %s; image %d was deleted", name, kind, made.Template.Error, id), j.Forget(left))
	}
	return made, j.Forget(left)
}

// allocated is the number of an image that was asked for. oned answers only when
// the front-end has looked at the file, and a proxy before it may not wait that
// long: without an answer, the image is looked for by its mark.
func (t *Target) allocated(ctx context.Context, mark, answer string, failed error) (int, error) {
	if failed == nil {
		id, err := strconv.Atoi(answer)
		if err != nil {
			return 0, fmt.Errorf("%w: the answer %q is no number", upload.ErrServer, answer)
		}
		return id, nil
	}
	if !errors.Is(failed, upload.ErrServer) {
		return 0, failed
	}
	all, err := t.everybodys(ctx)
	if err != nil {
		return 0, failed
	}
	for _, i := range all {
		if i.Template.Upload == mark {
			return i.ID, nil
		}
	}
	return 0, failed
}

// settled waits until an image is no longer pending.
func (t *Target) settled(ctx context.Context, id int) (image, error) {
	for {
		i, err := t.image(ctx, id)
		if err != nil || i.stage() != pending {
			return i, err
		}
		if err := t.conf.Wait(ctx); err != nil {
			return image{}, fmt.Errorf("waiting for image %d, which is %s: %w", id, i.state(), upload.CallError(ctx, err))
		}
	}
}

// remove deletes an image; one that is gone is fine.
func (t *Target) remove(ctx context.Context, id int) error {
	_, err := t.call(ctx, "one.image.delete", id)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}

func imageName(img upload.Image) string { return versionName(img.Name, img.Version) }

func versionName(family, version string) string { return family + "-" + version }

// sha1Of reads the whole file.
func sha1Of(ctx context.Context, img upload.Image, ev upload.Events) (string, error) {
	h := sha1.New() //nolint:gosec // See the import.
	r := io.NewSectionReader(img.File, 0, img.Size)
	for done := int64(0); done < img.Size; {
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("reading %s: %w", img.File.Name(), upload.CallError(ctx, err))
		}
		n, err := io.CopyN(h, r, min(16<<20, img.Size-done))
		if err != nil {
			return "", fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		done += n
		ev(upload.Event{Phase: "hashing", Done: done, Total: img.Size})
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
