package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Request asks for one blob.
type Request struct {
	// Source is an http(s) URL or a path of this host.
	Source string
	// Mirrors are other places of the same content, tried in their order when
	// Source fails.
	Mirrors []string
	// SHA256 and Size are what must come; an empty SHA256 means that they are
	// not known yet and the result tells.
	SHA256 string
	Size   int64
	// Check, when set, must accept the complete content before it becomes
	// visible in the store.
	Check func(content io.ReaderAt, size int64) error
	// Progress, when set, is called from time to time from the fetching
	// goroutine. total is -1 when it is not known.
	Progress func(done, total int64)
	// Skipped, when set, is told why a source is left for the next one.
	Skipped func(err error)
}

// Blob is what is in the store now.
type Blob struct {
	SHA256 string
	Size   int64
	Path   string
}

// Fetch brings a blob into the store, unless a blob with the wanted digest is
// there already; then no source is touched. A broken download is resumed, by this
// call and by later ones. When a source fails, whatever the reason, the next one
// is tried; the error has a line for each. ErrDigest and ErrTruncated tell content
// that is wrong from content that is incomplete, fs.ErrNotExist that a source has
// none.
func (s *Store) Fetch(ctx context.Context, r Request) (Blob, error) {
	if b, ok := s.found(r); ok {
		return b, nil
	}
	var failed []error
	for i, source := range append([]string{r.Source}, r.Mirrors...) {
		b, err := s.fetch(ctx, source, r)
		if err == nil {
			return b, nil
		}
		err = fmt.Errorf("fetching %s: %w", source, explainSpace(err))
		failed = append(failed, err)
		if ctx.Err() != nil || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			break
		}
		if i < len(r.Mirrors) && r.Skipped != nil {
			r.Skipped(err)
		}
	}
	return Blob{}, errors.Join(failed...)
}

func (s *Store) fetch(ctx context.Context, source string, r Request) (Blob, error) {
	key := partialKey(source, r.SHA256)
	unlock, err := s.lock(ctx, key)
	if err != nil {
		return Blob{}, err
	}
	defer unlock()
	if b, ok := s.found(r); ok {
		return b, nil
	}
	p := &partial{path: filepath.Join(s.dir, "partial", key)}
	if isURL(source) {
		err = s.download(ctx, p, source, r)
	} else {
		err = copyLocal(ctx, p, source, r)
	}
	if err != nil {
		return Blob{}, err
	}
	b, err := s.admit(ctx, p, r)
	if err != nil && ctx.Err() == nil {
		// The content is complete and wrong: resuming it would never help.
		p.remove()
	}
	return b, err
}

func (s *Store) found(r Request) (Blob, bool) {
	if r.SHA256 == "" || r.Check != nil || !s.Has(r.SHA256, r.Size) {
		return Blob{}, false
	}
	return Blob{SHA256: r.SHA256, Size: r.Size, Path: s.Path(r.SHA256)}, true
}

// admit checks a complete file and makes it visible.
func (s *Store) admit(ctx context.Context, p *partial, r Request) (Blob, error) {
	f, err := os.OpenFile(p.path, os.O_RDWR, 0)
	if err != nil {
		return Blob{}, err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, ctxReader{ctx, f})
	if err != nil {
		return Blob{}, err
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if r.SHA256 != "" && digest != r.SHA256 {
		return Blob{}, fmt.Errorf("it is %d bytes with sha256 %s, locked are %d bytes with %s: %w; if the change is wanted, run imagectl lock --update", size, digest, r.Size, r.SHA256, ErrDigest)
	}
	if r.Check != nil {
		if err := r.Check(f, size); err != nil {
			return Blob{}, err
		}
	}
	b := Blob{SHA256: digest, Size: size, Path: s.Path(digest)}
	if s.Has(digest, size) {
		p.remove()
		return b, nil
	}
	if err := publish(f, b.Path); err != nil {
		return Blob{}, err
	}
	p.remove()
	return b, nil
}

// Put stores bytes that were made here, such as a rendered file.
func (s *Store) Put(ctx context.Context, content []byte) (Blob, error) {
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	b := Blob{SHA256: digest, Size: int64(len(content)), Path: s.Path(digest)}
	if s.Has(b.SHA256, b.Size) {
		return b, nil
	}
	unlock, err := s.lock(ctx, digest)
	if err != nil {
		return Blob{}, err
	}
	defer unlock()
	p := &partial{path: filepath.Join(s.dir, "partial", digest)}
	f, err := p.create()
	if err != nil {
		return Blob{}, fmt.Errorf("storing %d bytes: %w", len(content), err)
	}
	defer f.Close()
	if _, err := io.Copy(f, bytes.NewReader(content)); err != nil {
		p.remove()
		return Blob{}, fmt.Errorf("storing %d bytes: %w", len(content), explainSpace(err))
	}
	if err := publish(f, b.Path); err != nil {
		return Blob{}, fmt.Errorf("storing %d bytes: %w", len(content), explainSpace(err))
	}
	return b, nil
}

// copyLocal copies a file of this host into a partial file.
func copyLocal(ctx context.Context, p *partial, source string, r Request) error {
	src, err := os.Open(source)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	if r.SHA256 != "" && st.Size() != r.Size {
		return wrongSize(st.Size(), r)
	}
	dst, err := p.create()
	if err != nil {
		return err
	}
	defer dst.Close()
	w := &progressWriter{w: dst, total: st.Size(), report: r.Progress}
	if _, err := io.Copy(w, ctxReader{ctx, src}); err != nil {
		p.remove()
		return err
	}
	return nil
}

// progressWriter reports after every write; the caller's function decides how
// often that is shown.
type progressWriter struct {
	w           io.Writer
	done, total int64
	report      func(done, total int64)
}

func (p *progressWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.done += int64(n)
	if p.report != nil {
		p.report(p.done, p.total)
	}
	return n, err
}

func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

// partialKey names the download of a source; different expectations do not share
// a partial file.
func partialKey(source, digest string) string {
	sum := sha256.Sum256([]byte(source + "\n" + digest))
	return hex.EncodeToString(sum[:])
}
