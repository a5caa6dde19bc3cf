package gcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// object is a file in the bucket.
type object struct {
	Name string `json:"name"`
	Size int64  `json:"size,string"`
	// CRC32C is of the content: of the two digests that storage keeps the one that it
	// advises to compare and has for every object, and that processors help with.
	CRC32C   string            `json:"crc32c"`
	Created  time.Time         `json:"timeCreated"`
	Metadata map[string]string `json:"metadata"`
}

func (o object) ours() bool { return o.Metadata[upload.LabelOurs] == "1" }

// objectPrefix begins the names of our files.
const objectPrefix = "imagectl/"

func (t *Target) objectURL(name string) string {
	return t.storage + "/storage/v1/b/" + url.PathEscape(t.conf.Bucket) + "/o/" + url.PathEscape(name)
}

// look is the file of a name; nil when there is none.
func (t *Target) look(ctx context.Context, name string) (*object, error) {
	var o object
	err := t.call(ctx, http.MethodGet, t.objectURL(name), nil, &o)
	if errors.Is(err, upload.ErrNotFound) {
		return nil, nil
	}
	return &o, err
}

func (t *Target) removeObject(ctx context.Context, name string) error {
	err := t.call(ctx, http.MethodDelete, t.objectURL(name), nil, nil)
	if errors.Is(err, upload.ErrNotFound) {
		return nil
	}
	return err
}

// objects are ours in the bucket, finished ones only: storage does not list others.
func (t *Target) objects(ctx context.Context) ([]object, error) {
	var all []object
	q := url.Values{"prefix": {objectPrefix}}
	for {
		var page struct {
			Items []object
			Next  string `json:"nextPageToken"`
		}
		if err := t.call(ctx, http.MethodGet, t.storage+"/storage/v1/b/"+url.PathEscape(t.conf.Bucket)+"/o?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		for _, o := range page.Items {
			if o.ours() {
				all = append(all, o)
			}
		}
		if page.Next == "" {
			return all, nil
		}
		q.Set("pageToken", page.Next)
	}
}

// begin opens a session that the file is sent in. Its address is its own permission,
// for a week.
func (t *Target) begin(ctx context.Context, img upload.Image, name string) (string, error) {
	meta := img.Audit()
	b, err := json.Marshal(fileMeta{Name: name, Metadata: meta})
	if err != nil {
		return "", fmt.Errorf("beginning to send %s: %w", name, err)
	}
	q := url.Values{"uploadType": {"resumable"}, "name": {name}}
	a, err := t.api.Do(ctx, rest.Request{
		Method: http.MethodPost, URL: t.storage + "/upload/storage/v1/b/" + url.PathEscape(t.conf.Bucket) + "/o?" + q.Encode(), Body: b, Repeatable: true,
		Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}, "X-Upload-Content-Type": {"application/gzip"}},
	})
	if err != nil {
		return "", fmt.Errorf("beginning to send %s to bucket %s: %w", name, t.conf.Bucket, err)
	}
	session := a.Header.Get("Location")
	if !strings.HasPrefix(session, t.storage+"/") {
		// It would get our token.
		return "", fmt.Errorf("beginning to send %s: %w: storage opened no session of its own", name, upload.ErrServer)
	}
	return session, nil
}

// fileMeta is what a file is begun with.
type fileMeta struct {
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata"`
}

// stand is how far a session is.
type stand struct {
	// next byte that it wants.
	next int64
	// done is the file when it has all.
	done *object
	// lost: there is no such session any more.
	lost bool
}

func standOf(a rest.Answer) (stand, error) {
	if a.Status != goOn {
		var o object
		if err := json.Unmarshal(a.Body, &o); err != nil {
			return stand{}, fmt.Errorf("%w: storage's answer cannot be read: %w", upload.ErrServer, err)
		}
		return stand{done: &o}, nil
	}
	r := a.Header.Get("Range")
	if r == "" {
		return stand{}, nil
	}
	last, err := strconv.ParseInt(strings.TrimPrefix(r, "bytes=0-"), 10, 64)
	if err != nil || last < 0 {
		return stand{}, fmt.Errorf("%w: storage says that it has %q", upload.ErrServer, r)
	}
	return stand{next: last + 1}, nil
}

// ask finds out how far a session is.
func (t *Target) ask(ctx context.Context, session string) (stand, error) {
	a, err := t.api.Do(ctx, rest.Request{Method: http.MethodPut, URL: session, Header: http.Header{"Content-Range": {"bytes */*"}}, Repeatable: true})
	if a.Status == http.StatusNotFound || a.Status == http.StatusGone {
		return stand{lost: true}, nil
	}
	if err != nil {
		return stand{}, fmt.Errorf("asking how much was sent: %w", err)
	}
	return standOf(a)
}

// send packs the disk and sends what the session has not got; the file is compared
// with what was packed. With a session that is done it only compares.
func (t *Target) send(ctx context.Context, img upload.Image, session string, at stand, ev upload.Events) (object, error) {
	ctx, stop := context.WithCancel(ctx)
	r, w := io.Pipe()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	pieces := make(chan piece)
	var work sync.WaitGroup
	work.Go(func() { w.CloseWithError(archive(ctx, w, img, t.unit)) })
	work.Go(func() { cut(ctx, io.TeeReader(r, sum), t.conf.ChunkSize, pieces) })
	defer func() {
		stop()
		r.Close()
		work.Wait()
	}()
	size := int64(0)
	for {
		var p piece
		select {
		case p = <-pieces:
		case <-ctx.Done():
			p.err = ctx.Err()
		}
		if p.err != nil {
			return object{}, upload.CallError(ctx, p.err)
		}
		ev(upload.Event{Phase: "sending", Done: size})
		start, end := size, size+int64(len(p.b))
		if at.done == nil && at.next < end {
			var err error
			if at, err = t.sendChunk(ctx, session, max(start, at.next), end, p.b[max(start, at.next)-start:], p.last); err != nil {
				return object{}, err
			}
		}
		if size = end; p.last {
			break
		}
	}
	if at.done == nil {
		return object{}, fmt.Errorf("sending to bucket %s: %w: storage has %d bytes of all and does not say that it is done", t.conf.Bucket, upload.ErrServer, at.next)
	}
	if want := base64.StdEncoding.EncodeToString(sum.Sum(nil)); at.done.CRC32C != want || at.done.Size != size {
		return *at.done, fmt.Errorf("sending to bucket %s: %w: storage has %s with %d bytes and the CRC32C %s, and %d with %s were sent", t.conf.Bucket, errDiffers, at.done.Name, at.done.Size, at.done.CRC32C, size, want)
	}
	return *at.done, nil
}

// errDiffers: the bytes there are not those here.
var errDiffers = fmt.Errorf("%w: other bytes arrived", upload.ErrServer)

// sendChunk sends the bytes from start to end. After a failure it asks what arrived.
func (t *Target) sendChunk(ctx context.Context, session string, start, end int64, b []byte, last bool) (stand, error) {
	total := "*"
	if last {
		total = strconv.FormatInt(end, 10)
	}
	for try := 1; ; try++ {
		h := http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%s", start, end-1, total)}, "Content-Type": {"application/gzip"}}
		a, err := t.api.Do(ctx, rest.Request{Method: http.MethodPut, URL: session, Header: h, Body: b})
		var at stand
		if err == nil {
			at, err = standOf(a)
		}
		if err != nil {
			if try >= t.conf.Tries || ctx.Err() != nil || !errors.Is(err, upload.ErrServer) && !errors.Is(err, upload.ErrTimeout) {
				return at, fmt.Errorf("sending bytes %d to %d: %w", start, end, err)
			}
			if werr := t.wait(ctx, "sending"); werr != nil {
				return at, errors.Join(werr, err)
			}
			var aerr error
			if at, aerr = t.ask(ctx, session); aerr != nil {
				return at, errors.Join(aerr, err)
			}
			if at.lost {
				return at, fmt.Errorf("sending bytes %d to %d: %w: the session is gone; run it again", start, end, upload.ErrServer)
			}
		}
		switch {
		case at.done != nil || at.next == end && !last:
			return at, nil
		case at.next < start || at.next > end || at.next == start && err == nil:
			return at, fmt.Errorf("sending bytes %d to %d: %w: storage says that it has %d", start, end, upload.ErrServer, at.next)
		}
		// Storage may keep less than it was sent.
		b = b[at.next-start:]
		start = at.next
	}
}
