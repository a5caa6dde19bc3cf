package gcp

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/imagectl/imagectl/images/compress"
	"github.com/imagectl/imagectl/images/upload"
)

// diskUnit is what the size of a disk is a multiple of.
const diskUnit = 1 << 30

// level of compression: the line is to be full.
const level = 1

// archive writes what Google makes an image of: a compressed archive with the file
// disk.raw, filled up with zeros to whole units. The bytes follow from the disk alone,
// so that an upload can go on in the middle.
func archive(ctx context.Context, w io.Writer, img upload.Image, unit int64) error {
	whole := (img.RawSize + unit - 1) / unit * unit
	var head bytes.Buffer
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "disk.raw", Size: whole, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatGNU}
	if err := tar.NewWriter(&head).WriteHeader(h); err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	// The file fills whole records of 512 bytes, and two empty ones end the archive.
	const end = 2 * 512
	if err := compress.GzipAround(ctx, w, img.File, compress.Around{Before: head.Bytes(), Zeros: whole - img.RawSize + end, Level: level}); err != nil {
		return fmt.Errorf("packing the disk: %w", err)
	}
	return nil
}
