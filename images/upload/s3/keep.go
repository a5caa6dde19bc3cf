package s3

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Keep implements shelf.Place: an object for each artefact, PREFIX/SHA256. A target for
// that has a prefix of its own, since none of these objects is an image's.
func (t *Target) Keep(ctx context.Context, set string, artefacts []store.Artefact, dir string, ev upload.Events) error {
	for _, a := range artefacts {
		if err := t.keep(ctx, set, a, filepath.Join(dir, a.Name), ev); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) keep(ctx context.Context, set string, a store.Artefact, from string, ev upload.Events) error {
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("reading what was built: %w", err)
	}
	defer f.Close()
	img := upload.Image{Name: set, Digest: a.SHA256, Format: a.Format, File: f, Size: a.Size, SHA256: a.SHA256}
	there, err := t.isThere(ctx, img, t.kept(a))
	if err != nil || there {
		return err
	}
	// The store takes any bytes under this name.
	d, err := digest(io.NewSectionReader(f, 0, a.Size))
	if err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	if got := hex.EncodeToString(d.sha256[:]); got != a.SHA256 {
		return fmt.Errorf("%s was changed after it was built (its digest is %.12s…, the manifest says %.12s…): run imagectl build", from, got, a.SHA256)
	}
	return t.sendImage(ctx, img, t.kept(a), t.imageOptions(img), unwritten{}, ev)
}

// Open implements shelf.Place.
func (t *Target) Open(ctx context.Context, a store.Artefact) (io.ReadCloser, error) {
	r, _, _, err := t.core.GetObject(ctx, t.bucket, t.kept(a), minio.GetObjectOptions{})
	if err != nil {
		return nil, failed(ctx, "opening "+t.bucket+"/"+t.kept(a), err)
	}
	return r, nil
}

func (t *Target) kept(a store.Artefact) string { return path.Join(t.prefix, a.SHA256) }

// unwritten is a journal for what is found again by its key: parts that were sent before
// an upload broke off are the beginning of the next one.
type unwritten struct{}

func (unwritten) Left() []upload.Leftover      { return nil }
func (unwritten) Write(upload.Leftover) error  { return nil }
func (unwritten) Forget(upload.Leftover) error { return nil }
