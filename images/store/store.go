// Package store is the cache directory: inputs by digest, and what was derived
// from them, in a form that several processes may use at once.
//
//	DIR/blobs/sha256/ab/abcd…   a verified input; its name is its digest
//	DIR/derived/KEY             something made from inputs that KEY names
//	DIR/partial/KEY…            a download in progress, resumed by the next one
//
// A file appears under its final name only when it is complete, verified and on
// the disk. Nothing is deleted: the directory is a cache, and removing it while
// nobody uses it is always safe. The package does not know what inputs mean.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var (
	// ErrDigest says that something is not what was locked.
	ErrDigest = errors.New("the content has another digest")
	// ErrTruncated says that a source ended too early.
	ErrTruncated = errors.New("the content is too short")
)

// Store is a cache directory. It is safe for concurrent use, also by several
// processes.
type Store struct {
	dir string
	// derived is where files are made from inputs, dir unless Apart.
	derived string
	client  *http.Client
	// pause and now are the clock.
	pause func(context.Context, time.Duration) error
	now   func() time.Time
	// patience is how long a server may be silent in the middle of a download.
	patience time.Duration
}

// Open makes the directory when it is missing. client fetches URLs; nil means
// one that follows proxies from the environment and never decompresses.
func Open(dir string, client *http.Client) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening cache: %w", err)
	}
	for _, d := range []string{"blobs/sha256", "derived", "partial"} {
		if err := os.MkdirAll(filepath.Join(abs, d), 0o755); err != nil {
			return nil, fmt.Errorf("opening cache: %w", err)
		}
	}
	if client == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.DisableCompression = true
		client = &http.Client{Transport: t}
	}
	return &Store{dir: abs, derived: abs, client: client, pause: sleep, now: time.Now, patience: idleLimit}, nil
}

// Apart returns a store with the same inputs that derives everything anew, in a
// directory of the caller's: for a build that must not take what another left.
func (s *Store) Apart(dir string) (*Store, error) {
	for _, d := range []string{"derived", "partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("making a place apart: %w", err)
		}
	}
	apart := *s
	apart.derived = dir
	return &apart, nil
}

// Path is where the blob with this digest lies, whether it is there or not.
func (s *Store) Path(sha256 string) string {
	prefix := sha256
	if len(prefix) > 2 {
		prefix = prefix[:2]
	}
	return filepath.Join(s.dir, "blobs", "sha256", prefix, sha256)
}

// Has tells whether the blob is there with the right size. It trusts the digest
// that was checked when the blob came in; Verify reads it again.
func (s *Store) Has(sha256 string, size int64) bool {
	st, err := os.Stat(s.Path(sha256))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// Verify reads a blob and compares its digest; ErrDigest when it has rotted.
func (s *Store) Verify(ctx context.Context, sha256 string) error {
	got, _, err := HashFile(ctx, s.Path(sha256))
	if err != nil {
		return fmt.Errorf("verifying cached blob: %w", err)
	}
	if got != sha256 {
		return fmt.Errorf("verifying cached blob %s: it now has sha256 %s: %w; delete it to have it fetched again", s.Path(sha256), got, ErrDigest)
	}
	return nil
}

// Derived returns the path of a file that fill makes the first time anybody
// asks for key, a digest over everything that fill's result depends on. Other
// processes that want the same wait. fill writes to an empty file.
func (s *Store) Derived(ctx context.Context, key string, fill func(f *os.File) error) (path string, err error) {
	path = filepath.Join(s.derived, "derived", key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp := filepath.Join(s.derived, "partial", key+".derived")
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return "", fmt.Errorf("making a file in the cache: %w", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(tmp)
		}
	}()
	if err := fill(f); err != nil {
		return "", fmt.Errorf("making %s: %w", path, explainSpace(err))
	}
	if err := publish(f, path); err != nil {
		return "", fmt.Errorf("making %s: %w", path, explainSpace(err))
	}
	return path, nil
}

// lock takes the lock of a key in the partial directory, across processes. The
// lock file stays: deleting it would let two processes hold "the" lock.
func (s *Store) lock(ctx context.Context, key string) (unlock func(), err error) {
	name := filepath.Join(s.dir, "partial", key+".lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	// flock(2) cannot be cancelled, so it waits in a goroutine; when the caller
	// gives up, that goroutine gives the lock back as soon as it has it.
	got := make(chan error, 1)
	go func() { got <- flock(f) }()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", name, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-got
			f.Close()
		}()
		return nil, ctx.Err()
	}
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			return err
		}
	}
}

// publish makes a complete file visible under its final name, read-only.
func publish(f *os.File, path string) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// explainSpace adds what to do when the cache's disk is full.
func explainSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: the cache's file system is full; free some space or point IMAGECTL_CACHE (or --cache) to a larger one", err)
	}
	return err
}

// ctxReader stops reading once its context is over.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
