package azure

import (
	"context"
	"crypto/md5" //nolint:gosec // The digest that storage compares on arrival; it guards against damage.
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/sparse"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// pages writes page blobs, by URLs that are their own permission.
type pages struct{ api rest.API }

const (
	// storageVersion is the version of storage's API.
	storageVersion = "2021-08-06"
	// pageSize is what ranges are multiples of, in bytes.
	pageSize = 512
	// rangeSize is the most that one request may write, in bytes.
	rangeSize = 4 << 20
	// rangesAtOnce fill a line whose answer takes longer than its bytes, while the digest of
	// another is computed; with them 16 MiB are in memory.
	rangesAtOnce = 4
)

// span is a run of pages that are there: from the first byte to the last.
type span struct {
	Start int64 `xml:"Start"`
	End   int64 `xml:"End"`
}

func (p pages) call(ctx context.Context, method, blob, what string, h http.Header, body []byte) (rest.Answer, error) {
	h.Set("X-Ms-Version", storageVersion)
	return p.api.Do(ctx, rest.Request{Method: method, URL: blob + "&" + what, Header: h, Body: body, Repeatable: true})
}

// there lists what a blob has, in order.
func (p pages) there(ctx context.Context, blob string) ([]span, error) {
	var all []span
	for marker := ""; ; {
		what := "comp=pagelist"
		if marker != "" {
			what += "&marker=" + marker
		}
		a, err := p.call(ctx, http.MethodGet, blob, what, http.Header{}, nil)
		if err != nil {
			return nil, fmt.Errorf("listing the pages of the disk: %w", err)
		}
		var page struct {
			PageRange  []span
			NextMarker string
		}
		if err := xml.Unmarshal(a.Body, &page); err != nil {
			return nil, fmt.Errorf("listing the pages of the disk: %w: the answer cannot be read: %w", upload.ErrServer, err)
		}
		all = append(all, page.PageRange...)
		if page.NextMarker == "" || page.NextMarker == marker {
			return all, nil
		}
		marker = page.NextMarker
	}
}

// covered tells whether one of the runs has all of n bytes.
func covered(all []span, off, n int64) bool {
	end := off + n - 1
	for _, s := range all {
		// Runs that touch may be told as several.
		if s.Start <= off && off <= s.End {
			if s.End >= end {
				return true
			}
			off = s.End + 1
		}
	}
	return false
}

// send writes what of the file is neither zero nor there, several ranges at once.
func (p pages) send(ctx context.Context, img upload.Image, blob string, ev upload.Events) error {
	have, err := p.there(ctx, blob)
	if err != nil {
		return err
	}
	if len(have) > 0 {
		ev(upload.Event{Phase: "sending", Note: "an earlier upload sent a part: going on from there"})
	}
	// What was sent well is used again: left to the garbage collector it would double
	// the memory. Of what was not the transport may be reading still.
	buffers := sync.Pool{New: func() any { return new([rangeSize]byte) }}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(rangesAtOnce)
	for off := int64(0); off < img.Size && gctx.Err() == nil; {
		r, ok, err := sparse.Next(img.File, off, img.Size)
		if err != nil || !ok {
			return errors.Join(err, group.Wait())
		}
		// Ranges begin at the same places in each run.
		off = max(off, r.Offset/rangeSize*rangeSize)
		for ; off < r.Offset+r.Length && gctx.Err() == nil; off += rangeSize {
			at, n := off, min(rangeSize, img.Size-off)
			if covered(have, at, n) {
				continue
			}
			group.Go(func() error {
				whole := buffers.Get().(*[rangeSize]byte) //nolint:forcetypeassert // It has nothing else.
				b := whole[:n]
				if _, err := io.ReadFull(io.NewSectionReader(img.File, at, n), b); err != nil {
					return fmt.Errorf("reading %s at %d: %w", img.File.Name(), at, err)
				}
				if !sparse.IsZero(b) {
					if err := p.write(gctx, blob, at, b); err != nil {
						return err
					}
				}
				buffers.Put(whole)
				ev(upload.Event{Phase: "sending", Done: at + n, Total: img.Size})
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func (p pages) write(ctx context.Context, blob string, off int64, b []byte) error {
	sum := md5.Sum(b) //nolint:gosec // See the import.
	h := http.Header{}
	h.Set("X-Ms-Page-Write", "update")
	h.Set("X-Ms-Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(b))-1))
	h.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
	h.Set("Content-Type", "application/octet-stream")
	if _, err := p.call(ctx, http.MethodPut, blob, "comp=page", h, b); err != nil {
		return fmt.Errorf("sending %d bytes at %d: %w", len(b), off, err)
	}
	return nil
}

// checkBlob wants a URL that carries its permission.
func checkBlob(blob string) error {
	if scheme, _, ok := strings.Cut(blob, "://"); !ok || scheme != "http" && scheme != "https" || !strings.Contains(blob, "?") {
		return fmt.Errorf("%w: Azure gave no address to write the disk to", upload.ErrServer)
	}
	return nil
}
