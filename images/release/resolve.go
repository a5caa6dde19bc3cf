package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
)

// Options of Resolve. Store and Now must be set.
type Options struct {
	Store *store.Store
	// Dir is cluster.yaml's directory; relative sources start there.
	Dir string
	// Previous is the lock file so far; the zero value when there is none.
	Previous lock.Lock
	// Update forgets the previous lock: every source is looked at anew.
	Update bool
	// Now is the clock, for signatures from the future.
	Now time.Time
	// Watch, when set, tells who watches an input; it and what it returns are used
	// by several goroutines.
	Watch func(id lock.ID) Watch
}

// Result is a new lock and how it differs from the previous one.
type Result struct {
	Lock lock.Lock
	// Added, Changed and Removed are sorted.
	Added, Changed, Removed []lock.ID
	// Stale are local inputs that were kept as locked although the file at their
	// source is another one by now.
	Stale []lock.ID
}

// parallel is how many inputs are fetched at a time.
const parallel = 4

// Resolve brings every wanted input into the store and describes it. An input
// whose source is in the previous lock keeps its digest: the source must still
// give the same bytes, or the store must have them. All failing inputs are
// reported, not only the first.
func Resolve(ctx context.Context, wants []Want, o Options) (Result, error) {
	blobs := make([]lock.Blob, len(wants))
	stale := make([]bool, len(wants))
	errs := make([]error, len(wants))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, w := range wants {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			blobs[i], stale[i], errs[i] = resolveOne(ctx, w, o)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return Result{}, err
	}
	l, err := lock.New(Digest(wants), blobs)
	if err != nil {
		return Result{}, err
	}
	r := compare(o.Previous, l)
	for i, w := range wants {
		if stale[i] {
			r.Stale = append(r.Stale, w.ID)
		}
	}
	return r, nil
}

func resolveOne(ctx context.Context, w Want, o Options) (lock.Blob, bool, error) {
	if old, ok := o.Previous.Find(w.ID); ok && !o.Update && keeps(old, w) {
		old.Mirrors = w.Mirrors
		if _, err := Fetch(ctx, o.Store, o.Dir, old, o.watch(w.ID)); err != nil {
			return lock.Blob{}, false, err
		}
		stale, err := differs(ctx, o.Dir, old)
		return old, stale, err
	}
	b := lock.Blob{ID: w.ID, Source: w.Source, Mirrors: w.Mirrors}
	req := request(b, o.Dir, "")
	watch := o.watch(w.ID)
	req.Progress, req.Skipped = watch.Progress, watch.Skipped
	if w.Signed != nil {
		check, err := signatureCheck(ctx, w, o, &b.Signer)
		if err != nil {
			return lock.Blob{}, false, fmt.Errorf("locking %s: %w", w.ID, err)
		}
		req.Check = check
	}
	got, err := o.Store.Fetch(ctx, req)
	if err != nil {
		return lock.Blob{}, false, fmt.Errorf("locking %s: %w", w.ID, err)
	}
	b.SHA256, b.Size = got.SHA256, got.Size
	return b, false, nil
}

// Watch is told how the fetching of one input goes; its zero value is nobody. The
// functions are as those of store.Request.
type Watch struct {
	Progress func(done, total int64)
	Skipped  func(err error)
}

// Fetch brings a locked input into the store, unless it is there.
func Fetch(ctx context.Context, s *store.Store, dir string, b lock.Blob, w Watch) (store.Blob, error) {
	req := request(b, dir, "")
	req.SHA256, req.Size, req.Progress, req.Skipped = b.SHA256, b.Size, w.Progress, w.Skipped
	got, err := s.Fetch(ctx, req)
	if err != nil {
		return store.Blob{}, fmt.Errorf("getting locked input %s: %w", b.ID, err)
	}
	return got, nil
}

// request asks for an input, or for what lies beside it under its name and a
// suffix.
func request(b lock.Blob, dir, suffix string) store.Request {
	r := store.Request{Source: Locate(dir, b.Source) + suffix}
	for _, m := range b.Mirrors {
		r.Mirrors = append(r.Mirrors, Locate(dir, m)+suffix)
	}
	return r
}

// Locate is where a source really is: a URL as it stands, a relative path from
// cluster.yaml's directory.
func Locate(dir, source string) string {
	if isURL(source) || filepath.IsAbs(source) {
		return source
	}
	return filepath.Join(dir, source)
}

func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// keeps tells whether a locked input still answers a want.
func keeps(b lock.Blob, w Want) bool {
	if b.Source != w.Source || (b.Signer == nil) != (w.Signed == nil) {
		return false
	}
	return w.Signed == nil || b.Signer.Primary == normalise(w.Signed.Primary)
}

// differs tells whether a local source is another file than the locked one. One
// that is gone is not an error: the store has the bytes.
func differs(ctx context.Context, dir string, b lock.Blob) (bool, error) {
	if isURL(b.Source) {
		return false, nil
	}
	digest, _, err := store.HashFile(ctx, Locate(dir, b.Source))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("comparing %s with the lock: %w", b.ID, err)
	}
	return digest != b.SHA256, nil
}

// signatureCheck fetches key and signature first, so that a file that nobody
// signed is not downloaded.
func signatureCheck(ctx context.Context, w Want, o Options, signer **lock.Signer) (func(io.ReaderAt, int64) error, error) {
	key, err := readKey(o.Dir, *w.Signed)
	if err != nil {
		return nil, err
	}
	if w.Signed.Form == Digests {
		return digestsCheck(ctx, key, w, o, signer)
	}
	sig, err := beside(ctx, w, o, ".sig", maxSignature)
	if errors.Is(err, fs.ErrNotExist) && w.Signed.Form == Any {
		check, derr := digestsCheck(ctx, key, w, o, signer)
		if derr != nil {
			return nil, fmt.Errorf("it has no signature that can be used: %w", errors.Join(err, derr))
		}
		return check, nil
	}
	if err != nil {
		return nil, err
	}
	return func(content io.ReaderAt, size int64) error {
		s, err := key.Verify(io.NewSectionReader(content, 0, size), sig, o.Now)
		if err != nil {
			return err
		}
		*signer = &s
		return nil
	}, nil
}

// digestsCheck verifies the list of digests at once and the file against it later.
func digestsCheck(ctx context.Context, key Key, w Want, o Options, signer **lock.Signer) (func(io.ReaderAt, int64) error, error) {
	const suffix = ".DIGESTS.asc"
	list, err := beside(ctx, w, o, suffix, maxDigests)
	if err != nil {
		return nil, err
	}
	sums, s, err := key.VerifyDigests(list, o.Now)
	if err != nil {
		return nil, fmt.Errorf("checking %s: %w", Locate(o.Dir, w.Source)+suffix, err)
	}
	name := path.Base(filepath.ToSlash(w.Source))
	return func(content io.ReaderAt, size int64) error {
		if err := sums.Check(name, io.NewSectionReader(content, 0, size)); err != nil {
			return err
		}
		*signer = &s
		return nil
	}, nil
}

// beside reads a small file that lies beside an input.
func beside(ctx context.Context, w Want, o Options, suffix string, limit int64) ([]byte, error) {
	req := request(lock.Blob{Source: w.Source, Mirrors: w.Mirrors}, o.Dir, suffix)
	req.Skipped = o.watch(w.ID).Skipped
	blob, err := o.Store.Fetch(ctx, req)
	if err != nil {
		return nil, err
	}
	if blob.Size > limit {
		return nil, fmt.Errorf("reading %s: it has %d bytes, more than %d", req.Source, blob.Size, limit)
	}
	b, err := os.ReadFile(blob.Path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", req.Source, err)
	}
	return b, nil
}

// watch binds an input's ID.
func (o Options) watch(id lock.ID) Watch {
	if o.Watch == nil {
		return Watch{}
	}
	return o.Watch(id)
}

func compare(old, now lock.Lock) Result {
	r := Result{Lock: now}
	for _, b := range now.Inputs {
		switch was, ok := old.Find(b.ID); {
		case !ok:
			r.Added = append(r.Added, b.ID)
		case was.SHA256 != b.SHA256 || was.Source != b.Source || !slices.Equal(was.Mirrors, b.Mirrors):
			r.Changed = append(r.Changed, b.ID)
		}
	}
	for _, b := range old.Inputs {
		if _, ok := now.Find(b.ID); !ok {
			r.Removed = append(r.Removed, b.ID)
		}
	}
	return r
}
