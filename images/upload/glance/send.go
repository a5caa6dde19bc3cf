package glance

import (
	"context"
	"crypto/md5"  //nolint:gosec // One of what Glance may be set up to compute; the digests of ours are SHA-256.
	"crypto/sha1" //nolint:gosec // As above.
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/upload"
)

// leftImage is the only thing that a broken upload leaves: an image without data.
const leftImage = "image"

func versionName(img upload.Image) string { return img.Name + "_" + img.Version }

// find returns the image of a disk, the finished one if there are several; nil when
// there is none.
func (t *Target) find(ctx context.Context, img upload.Image) (image, error) {
	all, err := t.images(ctx, map[string]string{upload.LabelName: img.Name, upload.LabelDigest: "sha256:" + img.Digest})
	if err != nil {
		return nil, err
	}
	var hit image
	for _, i := range all {
		if hit == nil || hit.stage() != finished {
			hit = i
		}
	}
	return hit, nil
}

// Preflight asks Keystone who we are, and Glance what it has and can do.
func (t *Target) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	found, err := t.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	if found != nil && found.stage() == finished {
		o, err := t.object(ctx, found)
		return upload.Plan{Found: &o}, err
	}
	if err := t.methodIsThere(ctx); err != nil {
		return upload.Plan{}, err
	}
	p := upload.Plan{Bytes: img.Size}
	switch {
	case found == nil:
		p.Steps = append(p.Steps, fmt.Sprintf("make image %s, hidden, as %s", versionName(img), t.conf.Visibility))
	case found.stage() == pending:
		p.Steps = append(p.Steps, fmt.Sprintf("wait for image %s, into which another upload sends", found.id()))
	case found.stage() == broken:
		p.Steps = append(p.Steps, fmt.Sprintf("delete image %s, which is %s, and make it again", found.id(), found.text("status")))
	default:
		p.Steps = append(p.Steps, fmt.Sprintf("go on with image %s, which an earlier upload made", found.id()))
	}
	p.Steps = append(p.Steps, fmt.Sprintf("send %d bytes of %s by %s", img.Size, img.Format, t.conf.Method), "compare the digest that Glance computes")
	return p, nil
}

// methodIsThere asks which ways of import there are.
func (t *Target) methodIsThere(ctx context.Context) error {
	if t.conf.Method == Put {
		return nil
	}
	var info struct {
		Methods struct{ Value []Method } `json:"import-methods"`
	}
	if err := t.call(ctx, "asking for the ways of import", http.MethodGet, "info/import", nil, &info, nil); err != nil {
		return err
	}
	if !slices.Contains(info.Methods.Value, t.conf.Method) {
		return fmt.Errorf("%w: this Glance imports by %v, and not by %s; set option import to one of them, or leave it out", upload.ErrServer, info.Methods.Value, t.conf.Method)
	}
	return nil
}

// Upload makes the image, sends the file and compares the digest.
func (t *Target) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	// Each round ends, waits or removes one thing that was in the way; more removals
	// would mean that somebody makes broken images as fast as we delete them.
	const removals = 5
	sum := ""
	for removed := 0; removed < removals; {
		found, err := t.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		if found == nil {
			if found, err = t.create(ctx, img, j); err != nil {
				return upload.Object{}, err
			}
		}
		switch at := found.stage(); {
		case at == finished:
			return t.finish(ctx, found, img, sum, j)
		case at == broken || at == pending && halfImported(found, j):
			ev(upload.Event{Phase: "removing what an earlier upload left", Note: fmt.Sprintf("image %s is %s and is deleted", found.id(), found.text("status"))})
			if err := t.remove(ctx, found.id()); err != nil && !gone(err) {
				return upload.Object{}, err
			}
			removed++
		case at == pending || at == empty && t.othersToSend(found, j):
			ev(upload.Event{Phase: "waiting for an upload that is under way", Note: fmt.Sprintf("image %s is %s; if nobody sends into it any more, delete it", found.id(), found.text("status"))})
			if err := t.changed(ctx, found.id(), at); err != nil {
				return upload.Object{}, err
			}
		default:
			if sum, err = t.send(ctx, found.id(), img, j, ev); err != nil {
				return upload.Object{}, err
			}
		}
	}
	return upload.Object{}, fmt.Errorf("%w: image %s of ours was broken %d times over", upload.ErrServer, versionName(img), removals)
}

// halfImported: the file was sent to staging by an upload of ours that broke off
// before it asked for the import. Nobody else will ask for it.
func halfImported(i image, j upload.Journal) bool {
	return i.text("status") == "uploading" && mine(i, j)
}

// mine: an upload with this journal made the image, and has not ended.
func mine(i image, j upload.Journal) bool {
	return slices.ContainsFunc(j.Left(), func(l upload.Leftover) bool {
		return l.ID == i.id() && l.Note == i.text(markKey)
	})
}

// othersToSend: only who made the image may send into it. Into an image Glance lets one
// send, but into staging it lets two, and then breaks both (25.1). After a day nobody
// is at it any more.
func (t *Target) othersToSend(i image, j upload.Journal) bool {
	return t.conf.Method == Direct && !mine(i, j) && t.conf.Now().Sub(i.created()) < abandoned
}

// create makes an image without data. Its ID is the first of a row, made from the
// digest, that no image has or had: Glance remembers those of deleted ones.
func (t *Target) create(ctx context.Context, img upload.Image, j upload.Journal) (image, error) {
	_, project, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	left := upload.Leftover{Kind: leftImage, Name: versionName(img), Note: t.conf.Mark()}
	const row = 1000
	for n := range row {
		left.ID = uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "imagectl:glance:%s:%s:%s:%d", project, img.Name, img.Digest, n)).String()
		if err := j.Write(left); err != nil {
			return nil, err
		}
		var made image
		err := t.call(ctx, "making image "+left.Name, http.MethodPost, "images", t.description(img, left), &made, nil)
		if err == nil {
			return made, nil
		}
		if !conflict(err) {
			var no *refusal
			if errors.As(err, &no) && no.status < http.StatusInternalServerError {
				// Refused, so nothing was made.
				err = errors.Join(err, j.Forget(left))
			}
			return nil, err
		}
		if err := j.Forget(left); err != nil {
			return nil, err
		}
		there, err := t.get(ctx, left.ID)
		if err != nil || there != nil {
			return there, err
		}
	}
	return nil, fmt.Errorf("making image %s: %w: this image was deleted %d times; glance-manage db purge forgets that", left.Name, upload.ErrTaken, row)
}

const gib = 1 << 30

// description is a new image as Glance is told of it.
func (t *Target) description(img upload.Image, left upload.Leftover) map[string]any {
	d := map[string]any{}
	for k, v := range t.conf.Properties {
		d[k] = v
	}
	d["os_distro"], d["os_version"] = "flatcar", img.Labels["flatcar"]
	for k, v := range img.Audit() {
		d[label(k)] = v
	}
	maps.DeleteFunc(d, func(_ string, v any) bool { return v == "" })
	maps.Copy(d, map[string]any{
		"id": left.ID, "name": left.Name, markKey: left.Note, createdKey: t.conf.Now().UTC().Format(time.RFC3339Nano), "tags": []string{tag},
		"visibility": t.conf.Visibility, "os_hidden": true,
		"disk_format": string(img.Format), "container_format": "bare",
		"min_disk": (img.RawSize + gib - 1) / gib,
	})
	return d
}

// send gives an image its data, and returns the SHA-512 of them if they were sent from
// here. That somebody else is at it is no error: the caller looks again.
func (t *Target) send(ctx context.Context, id string, img upload.Image, j upload.Journal, ev upload.Events) (sum string, err error) {
	path := "images/" + id
	switch t.conf.Method {
	case Put:
		sum, err = t.putFile(ctx, path+"/file", img, ev)
	case Direct:
		if sum, err = t.putFile(ctx, path+"/stage", img, ev); err == nil {
			err = t.importing(ctx, id, map[string]any{"name": Direct}, ev)
		}
	case Download:
		url, release, serr := t.conf.Source.Stage(ctx, upload.Wanted{Name: versionName(img) + "." + string(img.Format), Image: img}, j, ev)
		if serr != nil {
			return "", fmt.Errorf("making %s readable for Glance: %w", versionName(img), serr)
		}
		defer release()
		err = t.importing(ctx, id, map[string]any{"name": Download, "uri": url}, ev)
	}
	if conflict(err) || gone(err) {
		ev(upload.Event{Phase: "waiting for an upload that is under way", Note: "Glance says: " + err.Error()})
		if werr := t.conf.Wait(ctx); werr != nil {
			return "", failed(ctx, "sending the file", errors.Join(werr, err))
		}
		return "", nil
	}
	return sum, err
}

// putFile sends the file, and computes its SHA-512 beside that: one after the other
// would take twice as long.
func (t *Target) putFile(ctx context.Context, path string, img upload.Image, ev upload.Events) (string, error) {
	whole := func() *io.SectionReader { return io.NewSectionReader(img.File, 0, img.Size) }
	sum := sha512.New()
	group, gctx := errgroup.WithContext(ctx)
	group.Go(func() error { return upload.Sum(gctx, sum, whole()) })
	group.Go(func() error {
		// A body for each try: the library may be reading the one before still.
		body := func() io.Reader { return &counted{r: whole(), total: img.Size, ev: ev} }
		return t.put(gctx, path, body, img.Size)
	})
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			// Computing may have noticed it first.
			err = upload.CallError(ctx, err)
		}
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// counted says how much was read.
type counted struct {
	r           io.Reader
	done, total int64
	ev          upload.Events
}

// Read implements io.Reader.
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done += int64(n)
	c.ev(upload.Event{Phase: "sending", Done: c.done, Total: c.total})
	return n, err
}

// importing asks for an import and waits for its end. The answer comes before it has
// begun, so the image's status alone does not tell.
func (t *Target) importing(ctx context.Context, id string, method map[string]any, ev upload.Events) error {
	if err := t.call(ctx, "asking for the import", http.MethodPost, "images/"+id+"/import", map[string]any{"method": method}, nil, nil); err != nil {
		return err
	}
	ev(upload.Event{Phase: "Glance importing"})
	for {
		i, err := t.get(ctx, id)
		if err != nil || i == nil || i.stage() == finished || i.stage() == broken {
			return err
		}
		var list struct {
			Tasks []struct{ Status, Message, Created_at string }
		}
		if err := t.call(ctx, "asking for the import's task", http.MethodGet, "images/"+id+"/tasks", nil, &list, nil); err != nil {
			return err
		}
		newest, status, said := "", "", ""
		for _, k := range list.Tasks {
			if k.Created_at >= newest {
				newest, status, said = k.Created_at, k.Status, k.Message
			}
		}
		if status == "failure" {
			return fmt.Errorf("importing: %w: Glance says: %s", upload.ErrServer, said)
		}
		if err := t.conf.Wait(ctx); err != nil {
			return failed(ctx, "waiting for the import", err)
		}
	}
}

// changed waits until an image is at another stage.
func (t *Target) changed(ctx context.Context, id string, from stage) error {
	for {
		i, err := t.get(ctx, id)
		if err != nil || i == nil || i.stage() != from {
			return err
		}
		if err := t.conf.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for image %s, which is %s: %w", id, i.text("status"), upload.CallError(ctx, err))
		}
	}
}

// finish compares what Glance computed over what arrived, and deletes an image that
// is another. sum is the file's SHA-512, where it is known.
func (t *Target) finish(ctx context.Context, i image, img upload.Image, sum string, j upload.Journal) (upload.Object, error) {
	check, err := stored(i, img, sum)
	if err != nil {
		return upload.Object{}, err
	}
	if check.Result == upload.Bad {
		err := fmt.Errorf("comparing image %s: %w: %s: %s; it is deleted", i.id(), upload.ErrServer, check.Name, check.Detail)
		return upload.Object{}, errors.Join(err, t.remove(ctx, i.id()))
	}
	for _, l := range j.Left() {
		if l.ID == i.id() {
			if err := j.Forget(l); err != nil {
				return upload.Object{}, err
			}
		}
	}
	return t.object(ctx, i)
}

// stored holds Glance's own digest against the file's, whose SHA-512 may be known.
func stored(i image, img upload.Image, sum string) (upload.Check, error) {
	algorithm, there := i.text("os_hash_algo"), i.text("os_hash_value")
	c := upload.Check{Name: "digest that Glance computed", Result: upload.Unprovable}
	h := hasher(algorithm)
	switch {
	case there == "":
		c.Detail = "this Glance keeps none"
	case h == nil:
		c.Detail = fmt.Sprintf("it is a %s, which is not known here", algorithm)
	case i.text(label(upload.LabelFile)) != "sha256:"+img.SHA256:
		c.Detail = "the image was made of another file with the same disk"
	case converted(i, img):
		c.Detail = fmt.Sprintf("this site made %s of the %s that was sent", i.text("disk_format"), img.Format)
	case algorithm == "sha512" && sum != "":
		return upload.Compare(c.Name+", "+algorithm, there, sum), nil
	default:
		if _, err := io.Copy(h, io.NewSectionReader(img.File, 0, img.Size)); err != nil {
			return c, fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		return upload.Compare(c.Name+", "+algorithm, there, hex.EncodeToString(h.Sum(nil))), nil
	}
	return c, nil
}

// converted: a plug-in of Glance's import has made another file of ours.
func converted(i image, img upload.Image) bool { return i.text("disk_format") != string(img.Format) }

func hasher(algorithm string) hash.Hash {
	switch algorithm {
	case "sha512":
		return sha512.New()
	case "sha384":
		return sha512.New384()
	case "sha256":
		return sha256.New()
	case "sha1":
		return sha1.New() //nolint:gosec // See the import.
	case "md5":
		return md5.New() //nolint:gosec // See the import.
	}
	return nil
}
