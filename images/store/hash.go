package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"os"

	"github.com/imagectl/imagectl/images/sparse"
)

// HashFile returns the SHA-256 digest and the size of a file. Holes are hashed
// without being read.
func HashFile(ctx context.Context, path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	h := sha256.New()
	if err := hashRange(ctx, h, f, st.Size()); err != nil {
		return "", 0, fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), st.Size(), nil
}

func hashRange(ctx context.Context, h hash.Hash, f *os.File, size int64) error {
	buf, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; {
		data, ok, err := sparse.Next(f, off, size)
		if err != nil {
			return err
		}
		if !ok {
			data.Offset = size
		}
		for off < data.Offset {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int64(len(zeros)), data.Offset-off)
			h.Write(zeros[:n])
			off += n
		}
		for end := data.Offset + data.Length; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int64(len(buf)), end-off)
			if _, err := f.ReadAt(buf[:n], off); err != nil {
				return err
			}
			h.Write(buf[:n])
			off += n
		}
	}
	return nil
}
