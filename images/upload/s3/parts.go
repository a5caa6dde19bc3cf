package s3

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/upload"
)

// partSizeFor is the size of all parts but the last.
func partSizeFor(size, usual int64) int64 {
	const step = 1 << 20
	least := (size + maxParts - 1) / maxParts
	if least <= usual {
		return usual
	}
	return (least + step - 1) / step * step
}

// section is part number n, which counts from 1.
func section(img upload.Image, partSize int64, n int) *io.SectionReader {
	offset := int64(n-1) * partSize
	return io.NewSectionReader(img.File, offset, min(partSize, img.Size-offset))
}

func partCount(size, partSize int64) int { return int((size + partSize - 1) / partSize) }

// digests are what a store is told of a part.
type digests struct {
	sha256 [sha256.Size]byte
	size   int64
}

func (d digests) base64() string { return base64.StdEncoding.EncodeToString(d.sha256[:]) }

func digest(r *io.SectionReader) (digests, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return digests{}, err
	}
	d := digests{size: n}
	h.Sum(d.sha256[:0])
	_, err = r.Seek(0, io.SeekStart)
	return d, err
}

// holds tells whether the part that the store lists is the section's bytes. Where
// a store keeps no SHA-256, the ETag of a part is its MD5 nearly everywhere, and
// where it is not the part goes up again.
func holds(part minio.ObjectPart, d digests, r *io.SectionReader) (bool, error) {
	if part.Size != d.size {
		return false, nil
	}
	if part.ChecksumSHA256 != "" {
		return part.ChecksumSHA256 == d.base64(), nil
	}
	h := md5.New()
	if _, err := io.Copy(h, r); err != nil {
		return false, err
	}
	_, err := r.Seek(0, io.SeekStart)
	return part.ETag == hex.EncodeToString(h.Sum(nil)), err
}

// sendParts puts what is missing of a multipart upload, several parts at once, and
// returns all of them in order.
func (t *Target) sendParts(ctx context.Context, img upload.Image, key, id string, have map[int]minio.ObjectPart, partSize int64, ev upload.Events) ([]minio.CompletePart, error) {
	parts := make([]minio.CompletePart, partCount(img.Size, partSize))
	var done atomic.Int64
	tell := func(n int64) { ev(upload.Event{Phase: "sending", Done: done.Add(n), Total: img.Size}) }
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(partsAtOnce)
	for i := range parts {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			n := i + 1
			r := section(img, partSize, n)
			d, err := digest(r)
			if err != nil {
				return fmt.Errorf("reading %s: %w", img.File.Name(), err)
			}
			part, listed := have[n]
			if listed {
				if listed, err = holds(part, d, r); err != nil {
					return fmt.Errorf("reading %s: %w", img.File.Name(), err)
				}
			}
			if listed {
				tell(d.size)
			} else if part, err = t.sendPart(ctx, key, id, n, &counted{SectionReader: r, tell: tell}, d); err != nil {
				return err
			}
			parts[i] = minio.CompletePart{PartNumber: n, ETag: part.ETag, ChecksumSHA256: part.ChecksumSHA256}
			return nil
		})
	}
	return parts, group.Wait()
}

func (t *Target) sendPart(ctx context.Context, key, id string, n int, r io.Reader, d digests) (minio.ObjectPart, error) {
	o := minio.PutObjectPartOptions{
		Sha256Hex:            hex.EncodeToString(d.sha256[:]),
		DisableContentSha256: true, // the line above is the signature's
		CustomHeader:         http.Header{"X-Amz-Checksum-Sha256": {d.base64()}},
	}
	part, err := t.core.PutObjectPart(ctx, t.bucket, key, id, n, r, d.size, o)
	if err != nil {
		return part, &partError{err, failed(ctx, fmt.Sprintf("sending part %d of %s", n, key), err)}
	}
	return part, nil
}

// partError keeps what the store answered beside what is told.
type partError struct{ answer, told error }

func (e *partError) Error() string   { return e.told.Error() }
func (e *partError) Unwrap() []error { return []error{e.told, e.answer} }

// counted tells of bytes as they are read, and takes them back when the library
// starts again.
type counted struct {
	*io.SectionReader
	tell func(int64)
	read int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.SectionReader.Read(p)
	c.read += int64(n)
	if n > 0 {
		c.tell(int64(n))
	}
	return n, err
}

func (c *counted) Seek(offset int64, whence int) (int64, error) {
	at, err := c.SectionReader.Seek(offset, whence)
	if err == nil && at != c.read {
		c.tell(at - c.read)
		c.read = at
	}
	return at, err
}

// listParts has what the store holds of an upload, by number. found is false when
// the upload is gone.
func (t *Target) listParts(ctx context.Context, key, id string) (have map[int]minio.ObjectPart, found bool, err error) {
	have = map[int]minio.ObjectPart{}
	for marker := 0; ; {
		page, err := t.core.ListObjectParts(ctx, t.bucket, key, id, marker, 0)
		if missing(err) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, failed(ctx, "listing the parts of "+key, err)
		}
		for _, p := range page.ObjectParts {
			p.ETag = trimQuotes(p.ETag)
			have[p.PartNumber] = p
		}
		if !page.IsTruncated || page.NextPartNumberMarker <= marker {
			return have, true, nil
		}
		marker = page.NextPartNumberMarker
	}
}

func trimQuotes(s string) string {
	if len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// unfinished lists the multipart uploads below a prefix.
func (t *Target) unfinished(ctx context.Context, prefix string) ([]minio.ObjectMultipartInfo, error) {
	var all []minio.ObjectMultipartInfo
	for key, id := "", ""; ; {
		page, err := t.core.ListMultipartUploads(ctx, t.bucket, prefix, key, id, "", 0)
		if err != nil {
			return nil, failed(ctx, "listing unfinished uploads below "+prefix, err)
		}
		all = append(all, page.Uploads...)
		if !page.IsTruncated || page.NextKeyMarker == key && page.NextUploadIDMarker == id {
			return all, nil
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// wholeSum is what a store says about an object made of parts: the digest of the
// parts' digests, and their number.
func wholeSum(img upload.Image, partSize int64) (string, error) {
	h := sha256.New()
	n := partCount(img.Size, partSize)
	for i := range n {
		d, err := digest(section(img, partSize, i+1))
		if err != nil {
			return "", fmt.Errorf("reading %s: %w", img.File.Name(), err)
		}
		h.Write(d.sha256[:])
	}
	return fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(h.Sum(nil)), n), nil
}
