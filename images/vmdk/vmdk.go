// Package vmdk writes disk images as streamOptimized VMDK, the form that vSphere
// imports (inside an OVA or by itself), that AWS and VirtualBox read and that
// qemu-img converts. It follows VMware's "Virtual Disk Format 5.0" and, where
// that is silent, what ESXi is known to insist on (see format.go).
//
// A grain of 64 KiB that is all zeros is left out. Every other one is compressed
// by itself, on all processors, and written in order, so the file goes to any
// io.Writer and its bytes follow from the image, [Options] and this package
// alone. Reading and changing VMDKs is not this package's job.
package vmdk

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zlib"

	"github.com/imagectl/imagectl/images/chunk"
)

// GrainSize is the unit that is compressed, or left out when it is zero, in bytes.
const GrainSize = 64 << 10

// MaxSize of an image, in bytes: what VMware's sparse formats could ever hold.
const MaxSize = 2 << 40

// level of deflate. Measured on built images, mostly squashfs: files are 1 % larger
// than zlib's at its own level 6 (5 % where all is programs) for a tenth of the
// processor time; the next level halves that difference and takes five times as long.
const level = 6

// Options say what does not follow from the image.
type Options struct {
	// ContentID names the content, such as the first bytes of a digest of the
	// image. VMware compares it to tell disks apart.
	ContentID [16]byte
}

// Capacity is what a disk of size bytes becomes: VMDK counts whole grains. What
// is added reads as zeros.
func Capacity(size int64) int64 { return (size + GrainSize - 1) / GrainSize * GrainSize }

// Write writes the first size bytes of src to w. Holes are skipped without being
// read. Memory does not depend on size but for 64 bytes per GiB.
func Write(ctx context.Context, w io.Writer, src *os.File, size int64, o Options) error {
	if size <= 0 || size > MaxSize {
		return fmt.Errorf("writing VMDK of %s: an image of %d bytes does not fit the format; it must have 1 to %d", src.Name(), size, int64(MaxSize))
	}
	if err := write(ctx, w, src, size, o); err != nil {
		return fmt.Errorf("writing VMDK of %s: %w", src.Name(), err)
	}
	return nil
}

func write(ctx context.Context, w io.Writer, src *os.File, size int64, o Options) error {
	s := newStream(w, size, o)
	if err := s.begin(); err != nil {
		return err
	}
	err := chunk.Encode(ctx, src, size, GrainSize, newEncoder, func(offset int64, _, encoded []byte) error {
		return s.grain(offset/GrainSize, encoded)
	})
	if err != nil {
		return err
	}
	return s.end()
}

// newEncoder makes whole sectors of a grain, all but its number.
func newEncoder() (chunk.Encoder, error) {
	var out bytes.Buffer
	z, err := zlib.NewWriterLevel(&out, level)
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, GrainSize)
	return func(dst, content []byte) ([]byte, error) {
		out.Reset()
		z.Reset(&out)
		// The image may end inside its last grain.
		for _, b := range [][]byte{content, zeros[len(content):]} {
			if _, err := z.Write(b); err != nil {
				return nil, err
			}
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		return appendGrain(dst, out.Bytes()), nil
	}, nil
}
