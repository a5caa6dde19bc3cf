package gcp

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/imagectl/imagectl/images/upload"
)

// diskUnit is what Compute Engine counts disks in, in bytes.
const diskUnit = 1 << 30

// archive writes the disk as Compute Engine wants it: disk.raw in a gzipped tar of
// GNU's form, and whole units. The same image gives the same bytes.
func archive(ctx context.Context, w io.Writer, img upload.Image, unit int64) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	t := tar.NewWriter(z)
	whole := (img.RawSize + unit - 1) / unit * unit
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "disk.raw", Size: whole, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatGNU}
	if err := t.WriteHeader(h); err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	disk := io.MultiReader(io.NewSectionReader(img.File, 0, img.RawSize), io.LimitReader(zeros{}, whole-img.RawSize))
	const step = 16 << 20
	for left := whole; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(t, disk, min(step, left))
		if err != nil {
			return fmt.Errorf("packing %s: %w", img.File.Name(), err)
		}
		left -= n
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
