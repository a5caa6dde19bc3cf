package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// record is image.json.
type record struct {
	// Imagectl is the format's version, and tells that the object is ours.
	Imagectl int    `json:"imagectl"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	Digest   string `json:"digest"`
	RawSize  int64  `json:"rawSize"`
	// Uploaded is when the first file of the version was finished: stores round their
	// own times to seconds.
	Uploaded time.Time         `json:"uploaded"`
	Labels   map[string]string `json:"labels"`
	// Files are sorted by name.
	Files []file `json:"files"`
}

type file struct {
	Name   string       `json:"name"`
	Format store.Format `json:"format,omitempty"` // none: a document
	Size   int64        `json:"size"`
	SHA256 string       `json:"sha256"`
}

// pointer is latest.json, for machines to read: Path is the key of the version's
// directory.
type pointer struct {
	Imagectl int    `json:"imagectl"`
	Name     string `json:"name"`
	Version  string `json:"version"`
	Digest   string `json:"digest"`
	Path     string `json:"path"`
	Previous string `json:"previous,omitempty"`
}

// smallLimit bounds what is read into memory: our own documents have a few KiB.
const smallLimit = 1 << 20

// tag is which edition of a small object was read; none when there was none.
type tag string

// read decodes a small object. When there is none, or somebody else's, found is
// false.
func (t *Target) read(ctx context.Context, key string, into any) (at tag, found bool, err error) {
	body, info, _, err := t.core.GetObject(ctx, t.bucket, key, minio.GetObjectOptions{})
	if missing(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, failed(ctx, "reading "+key, err)
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, smallLimit))
	if err != nil {
		return "", false, failed(ctx, "reading "+key, err)
	}
	var mark struct{ Imagectl int }
	if json.Unmarshal(b, &mark) != nil || mark.Imagectl != 1 || json.Unmarshal(b, into) != nil {
		return tag(info.ETag), false, nil
	}
	return tag(info.ETag), true, nil
}

// write puts a small object in the place of the edition that was read. done is
// false when somebody else was quicker. A store that knows no conditions is
// written to without.
func (t *Target) write(ctx context.Context, key string, at tag, content any) (done bool, err error) {
	b, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return false, fmt.Errorf("writing %s: %w", key, err)
	}
	b = append(b, '\n')
	o := minio.PutObjectOptions{ContentType: "application/json", CacheControl: "no-cache", UserMetadata: map[string]string{upload.LabelOurs: "1"}}
	conditional := o
	if at == "" {
		conditional.SetMatchETagExcept("*")
	} else {
		conditional.SetMatchETag(string(at))
	}
	err = t.put(ctx, key, bytes.NewReader(b), int64(len(b)), sha256.Sum256(b), conditional)
	switch {
	case changed(err):
		return false, nil
	case unconditional(err):
		err = t.put(ctx, key, bytes.NewReader(b), int64(len(b)), sha256.Sum256(b), o)
	}
	return err == nil, failed(ctx, "writing "+key, err)
}

// put sends content whose digest the store checks, for it is part of the request's
// signature.
func (t *Target) put(ctx context.Context, key string, content io.Reader, size int64, sum [sha256.Size]byte, o minio.PutObjectOptions) error {
	o.DisableContentSha256 = true // no signature per chunk besides
	_, err := t.core.PutObject(ctx, t.bucket, key, content, size, "", hex.EncodeToString(sum[:]), o)
	return err
}
