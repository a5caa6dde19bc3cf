// Package shelf brings what servers serve out of a store that they share, so that one
// of them needs no copy of a build's output directory but the manifest in it.
//
// The manifest is what is trusted: it says which bytes are right. The store, and the way
// to it, are not. What comes is kept in the cache once its digest is the manifest's, and
// what was kept before is read again before it is used.
package shelf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// Place is a store. Its errors wrap those of package upload.
type Place interface {
	// Keep sends artefacts out of a directory, each under its digest; what is there is
	// not sent again. set names what belongs together.
	Keep(ctx context.Context, set string, artefacts []store.Artefact, dir string, ev upload.Events) error
	// Open reads an artefact from its beginning. The caller closes it, and believes
	// nothing of it. One that is not there is upload.ErrNotFound.
	Open(ctx context.Context, a store.Artefact) (io.ReadCloser, error)
}

// tries is how often an artefact is read whose end does not come; Places repeat single
// requests by themselves.
const tries = 3

// Bring returns the path of an artefact in the cache, where it lies with the digest that
// the manifest says. progress may be nil.
func Bring(ctx context.Context, cache *store.Store, from Place, a store.Artefact, progress func(done, total int64)) (string, error) {
	path := cache.Path(a.SHA256)
	if cache.Has(a.SHA256, a.Size) {
		err := cache.Verify(ctx, a.SHA256)
		if err == nil || !errors.Is(err, store.ErrDigest) {
			return path, err
		}
	}
	// Nothing, or a file that was torn or has rotted.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("removing what is not %s any more: %w", a.Name, err)
	}
	for n := 1; ; n++ {
		err := receive(ctx, cache, from, a, progress)
		if err == nil {
			return path, nil
		}
		if n == tries || final(err) || ctx.Err() != nil {
			return "", fmt.Errorf("getting %s from the store that servers share: %w", a.Name, err)
		}
	}
}

func receive(ctx context.Context, cache *store.Store, from Place, a store.Artefact, progress func(done, total int64)) error {
	r, err := from.Open(ctx, a)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = cache.Receive(ctx, r, a.SHA256, a.Size, progress)
	return err
}

// final says that reading once more would give the same.
func final(err error) bool {
	for _, kind := range []error{store.ErrDigest, upload.ErrNotFound, upload.ErrAuth, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
