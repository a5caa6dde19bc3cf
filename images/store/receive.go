package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Receive reads size bytes from r and stores them when their digest is sha256;
// ErrDigest or ErrTruncated otherwise, and then nothing is stored. What is there
// already is read and compared all the same, but not written again. progress may
// be nil.
func (s *Store) Receive(ctx context.Context, r io.Reader, sha256 string, size int64, progress func(done, total int64)) (Blob, error) {
	b, err := s.receive(ctx, r, sha256, size, progress)
	if err != nil {
		return Blob{}, fmt.Errorf("storing %s: %w", sha256, explainSpace(err))
	}
	return b, nil
}

func (s *Store) receive(ctx context.Context, r io.Reader, digest string, size int64, progress func(done, total int64)) (Blob, error) {
	b := Blob{SHA256: digest, Size: size, Path: s.Path(digest)}
	if s.Has(digest, size) {
		return b, Check(ctx, r, digest, size, progress)
	}
	unlock, err := s.lock(ctx, digest)
	if err != nil {
		return Blob{}, err
	}
	defer unlock()
	p := &partial{path: filepath.Join(s.dir, "partial", digest)}
	f, err := p.create()
	if err != nil {
		return Blob{}, err
	}
	defer f.Close()
	if err := fill(ctx, f, b, r, progress); err != nil {
		p.remove()
		return Blob{}, err
	}
	return b, nil
}

func fill(ctx context.Context, f *os.File, b Blob, r io.Reader, progress func(done, total int64)) error {
	if err := copyChecked(ctx, f, r, b.SHA256, b.Size, progress); err != nil {
		return err
	}
	return publish(f, b.Path)
}

// Check reads size bytes from r and compares their digest: ErrDigest or
// ErrTruncated when it is not sha256. progress may be nil.
func Check(ctx context.Context, r io.Reader, sha256 string, size int64, progress func(done, total int64)) error {
	return copyChecked(ctx, io.Discard, r, sha256, size, progress)
}

// copyChecked copies size bytes and compares their digest.
func copyChecked(ctx context.Context, w io.Writer, r io.Reader, digest string, size int64, progress func(done, total int64)) error {
	h := sha256.New()
	out := &progressWriter{w: io.MultiWriter(h, w), total: size, report: progress}
	n, err := io.CopyN(out, ctxReader{ctx, r}, size)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("it ended after %d of %d bytes: %w", n, size, ErrTruncated)
	}
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("it has sha256 %s: %w", got, ErrDigest)
	}
	return nil
}
