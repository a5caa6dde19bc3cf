package vsphere

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// leftItem is an item that is not finished. Its note is the session that sends into it.
const leftItem = "item"

// find looks for the version of an image; nil when there is none.
func (l *Library) find(ctx context.Context, img upload.Image) (*item, error) {
	all, err := l.items(ctx)
	if err != nil {
		return nil, err
	}
	var hit *item
	for n, i := range all {
		same := i.finished() && i.family() == img.Name
		switch {
		case !same && (i.Name == img.Name || i.Name == versionName(img.Name, img.Version)):
			return nil, fmt.Errorf("looking for %s in the library: %w: it was not made by imagectl; give the image another name, or another library", i.Name, upload.ErrTaken)
		case same && i.label(upload.LabelDigest) == "sha256:"+img.Digest:
			hit = &all[n]
		case same && i.label(upload.LabelVersion) == img.Version:
			return nil, fmt.Errorf("looking for %s: %w: it is there with the digest %s, and this disk has %s; a version never changes", i.Name, upload.ErrTaken, i.label(upload.LabelDigest), img.Digest)
		}
	}
	return hit, nil
}

// Preflight implements upload.Target. A library does not say how much space it has.
func (l *Library) Preflight(ctx context.Context, img upload.Image) (upload.Plan, error) {
	if err := checkNames(img); err != nil {
		return upload.Plan{}, err
	}
	hit, err := l.find(ctx, img)
	if err != nil {
		return upload.Plan{}, err
	}
	if hit != nil {
		o, err := l.object(ctx, *hit)
		return upload.Plan{Found: &o}, err
	}
	src, err := newSource(img)
	if err != nil {
		return upload.Plan{}, err
	}
	name := versionName(img.Name, img.Version)
	return upload.Plan{Bytes: src.size, Steps: []string{
		fmt.Sprintf("make an item in the content library %s", l.Name),
		fmt.Sprintf("send the OVF and %d bytes of its disk", src.size),
		"name the item " + name,
	}}, nil
}

// Upload implements upload.Target.
func (l *Library) Upload(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (upload.Object, error) {
	if err := checkNames(img); err != nil {
		return upload.Object{}, err
	}
	for {
		hit, err := l.find(ctx, img)
		if err != nil {
			return upload.Object{}, err
		}
		if err := l.tidy(ctx, j, ev); err != nil {
			return upload.Object{}, err
		}
		if hit != nil {
			return l.object(ctx, *hit)
		}
		i, left, err := l.send(ctx, img, j, ev)
		if err != nil {
			return upload.Object{}, err
		}
		err = l.update(ctx, i.ID, versionName(img.Name, img.Version), "")
		if errors.Is(err, upload.ErrTaken) {
			// Another upload of the same image was quicker: its item is found now.
			ev(upload.Event{Phase: "removing what is there twice", Note: "another upload has made " + versionName(img.Name, img.Version)})
			continue
		}
		if err != nil {
			return upload.Object{}, err
		}
		if i, err = l.yield(ctx, i, img); err != nil {
			return upload.Object{}, err
		}
		if err := j.Forget(left); err != nil {
			return upload.Object{}, err
		}
		return l.object(ctx, i)
	}
}

// yield removes an item that has its version's name only because another upload's was
// promoted and left the name free, and gives that one.
func (l *Library) yield(ctx context.Context, mine item, img upload.Image) (item, error) {
	all, err := l.items(ctx)
	if err != nil {
		return mine, err
	}
	n := slices.IndexFunc(all, func(i item) bool {
		return i.ID != mine.ID && i.Name == img.Name && i.ours() && i.label(upload.LabelDigest) == "sha256:"+img.Digest
	})
	if n < 0 {
		return mine, nil
	}
	mine.Name = versionName(img.Name, img.Version)
	return all[n], l.remove(ctx, mine)
}

// tidy removes what earlier uploads of the image left.
func (l *Library) tidy(ctx context.Context, j upload.Journal, ev upload.Events) error {
	for _, left := range j.Left() {
		ev(upload.Event{Phase: "removing what an earlier upload left", Note: left.Name})
		if err := l.Clean(ctx, left); err != nil {
			return err
		}
		if err := j.Forget(left); err != nil {
			return err
		}
	}
	return nil
}

// Clean removes an item that is not finished: a finished one has another name.
func (l *Library) Clean(ctx context.Context, left upload.Leftover) error {
	if left.Kind != leftItem || left.Name == "" {
		return fmt.Errorf("cleaning %s %q: a content library has no such thing of ours", left.Kind, left.Name)
	}
	all, err := l.items(ctx)
	if err != nil {
		return err
	}
	n := slices.IndexFunc(all, func(i item) bool { return i.Name == left.Name && i.ours() })
	if n < 0 {
		return nil
	}
	if left.Note != "" {
		// One that has ended cannot be cancelled, and need not.
		_ = l.call(ctx, "cancelling the update of "+left.Name, http.MethodPost, idPath(updatePath, left.Note)+"?~action=cancel", nil, nil)
	}
	if err := l.remove(ctx, all[n]); !errors.Is(err, upload.ErrNotFound) {
		return err
	}
	return nil
}

// send makes an item under a name of its own and fills it. left is in the journal still.
func (l *Library) send(ctx context.Context, img upload.Image, j upload.Journal, ev upload.Events) (i item, left upload.Leftover, err error) {
	labels := img.Audit()
	labels[keyUploaded] = l.Now().UTC().Format(time.RFC3339Nano)
	if i.Description, err = describe(labels); err != nil {
		return i, left, err
	}
	mark := make([]byte, markSize)
	if _, err := io.ReadFull(l.Random, mark); err != nil {
		return i, left, fmt.Errorf("making a name: %w", err)
	}
	i.Name = versionName(img.Name, img.Version) + "." + hex.EncodeToString(mark)
	library, err := l.library(ctx)
	if err != nil {
		return i, left, err
	}
	left = upload.Leftover{Kind: leftItem, Name: i.Name}
	if err := j.Write(left); err != nil {
		return i, left, err
	}
	in := map[string]any{"create_spec": map[string]string{"library_id": library, "name": i.Name, "description": i.Description, "type": "ovf"}}
	if err := l.call(ctx, "making item "+i.Name, http.MethodPost, itemPath, in, &i.ID); err != nil {
		return i, left, err
	}
	left.ID = i.ID
	if err := j.Write(left); err != nil {
		return i, left, err
	}
	in = map[string]any{"create_spec": map[string]string{"library_item_id": i.ID}}
	if err := l.call(ctx, "beginning to send into item "+i.Name, http.MethodPost, updatePath, in, &left.Note); err != nil {
		return i, left, err
	}
	if err := j.Write(left); err != nil {
		return i, left, err
	}
	return i, left, l.fill(ctx, i, left.Note, img, ev)
}

// fill sends the files in a session, and ends that, whereupon vCenter compares them with
// their digests.
func (l *Library) fill(ctx context.Context, i item, session string, img upload.Image, ev upload.Events) error {
	src, err := newSource(img)
	if err != nil {
		return err
	}
	sum := img.SHA256
	if img.Format == store.OVA {
		h := sha256.New()
		if _, err := io.Copy(h, src.disk(img)); err != nil {
			return fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		sum = hex.EncodeToString(h.Sum(nil))
	}
	var sent int64
	disk := &counted{r: src.disk(img), tell: func(n int) {
		sent += int64(n)
		ev(upload.Event{Phase: "sending", Done: sent, Total: src.size})
	}}
	ovf := []byte(src.descriptor)
	digest := sha256.Sum256(ovf)
	err = alive(ctx, l.Beat, func(ctx context.Context) error {
		return l.call(ctx, "keeping the update alive", http.MethodPost, idPath(updatePath, session)+"?~action=keep-alive", nil, nil)
	}, func(ctx context.Context) error {
		if err := l.put(ctx, session, src.descriptorName, bytes.NewReader(ovf), int64(len(ovf)), hex.EncodeToString(digest[:])); err != nil {
			return err
		}
		return l.put(ctx, session, src.diskName, disk, src.size, sum)
	})
	if err != nil {
		return fmt.Errorf("sending into item %s: %w", i.Name, err)
	}
	if err := l.complete(ctx, session, ev); err != nil {
		return fmt.Errorf("ending the update of item %s: %w", i.Name, err)
	}
	return nil
}

// put sends one file, of which vCenter is told the digest before.
func (l *Library) put(ctx context.Context, session, name string, body io.Reader, size int64, sum string) error {
	var place struct {
		Endpoint struct {
			URI        string `json:"uri"`
			Thumbprint string `json:"ssl_certificate_thumbprint"`
		} `json:"upload_endpoint"`
	}
	in := map[string]any{"file_spec": map[string]any{
		"name": name, "source_type": "PUSH", "size": size, "checksum_info": map[string]string{"algorithm": "SHA256", "checksum": sum},
	}}
	if err := l.call(ctx, "asking where "+name+" goes", http.MethodPost, idPath(updateFilePath, session)+"?~action=add", in, &place); err != nil {
		return err
	}
	u, err := url.Parse(place.Endpoint.URI)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%w: vCenter names the place %q for %s", upload.ErrServer, place.Endpoint.URI, name)
	}
	if place.Endpoint.Thumbprint != "" && l.Trust != nil {
		if err := l.Trust(u.Host, place.Endpoint.Thumbprint); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), io.NopCloser(body))
	if err != nil {
		return fmt.Errorf("sending %s: %w", name, err)
	}
	r.ContentLength = size
	r.Header.Set("Content-Type", "application/octet-stream")
	if u.Scheme+"://"+u.Host == l.base {
		// Nobody else gets the login.
		token, _, err := l.login(ctx)
		if err != nil {
			return err
		}
		r.Header.Set(sessionHeader, token)
	}
	resp, err := l.Transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("sending %s to %s: %w", name, u.Host, upload.CallError(ctx, err))
	}
	defer resp.Body.Close()
	const most = 500
	text, _ := io.ReadAll(io.LimitReader(resp.Body, most))
	if err := upload.StatusError(resp.StatusCode, strings.Join(strings.Fields(string(text)), " ")); err != nil {
		return fmt.Errorf("sending %s to %s: %w", name, u.Host, err)
	}
	return nil
}

// noResource is what vCenter calls a datastore that is full, as shown in
// ansible-collections/vmware.vmware_rest, pull request 299.
const noResource = "com.vmware.vdcs.util.unable_to_allocate_resource"

// complete ends a session and waits until vCenter has looked at the files.
func (l *Library) complete(ctx context.Context, session string, ev upload.Events) error {
	at := idPath(updatePath, session)
	if err := l.call(ctx, "saying that all was sent", http.MethodPost, at+"?~action=complete", nil, nil); err != nil {
		return err
	}
	ev(upload.Event{Phase: "vCenter looking at the files"})
	for {
		var s struct {
			State string `json:"state"`
			Error struct {
				ID   string `json:"id"`
				Text string `json:"default_message"`
			} `json:"error_message"`
		}
		if err := l.call(ctx, "asking how the update is", http.MethodGet, at, nil, &s); err != nil {
			return err
		}
		switch s.State {
		case "DONE":
			return nil
		case "ACTIVE":
		default:
			kind := upload.ErrServer
			if s.Error.ID == noResource {
				kind = upload.ErrSpace
			}
			return fmt.Errorf("%w: the update is %s: %s", kind, s.State, s.Error.Text)
		}
		if err := l.Wait(ctx); err != nil {
			return fmt.Errorf("waiting for vCenter: %w", upload.CallError(ctx, err))
		}
	}
}
