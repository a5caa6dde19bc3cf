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
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/sparse"
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

// grain is one piece of work; its worker sends the result. Grains are used again
// once they are written, so their number bounds the memory.
type grain struct {
	number int64
	in     []byte
	// out is a whole number of sectors, none for a grain of zeros.
	out  []byte
	done chan error
}

func write(ctx context.Context, w io.Writer, src *os.File, size int64, o Options) error {
	workers := runtime.GOMAXPROCS(0)
	// Enough that a slow grain, or a slow write, does not leave a worker idle.
	count := 8 * workers
	free, work, order := make(chan *grain, count), make(chan *grain, count), make(chan *grain, count)
	for range count {
		free <- &grain{in: make([]byte, GrainSize), done: make(chan error, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return eachGrain(src, size, func(number int64) error {
			select {
			case next := <-free:
				next.number = number
				// Neither blocks: each holds all grains there are.
				order <- next
				work <- next
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range workers {
		z, err := zlib.NewWriterLevel(io.Discard, level)
		if err != nil {
			return err
		}
		g.Go(func() error {
			for next := range work {
				next.done <- next.fill(src, size, z)
			}
			return nil
		})
	}
	g.Go(func() error {
		s := newStream(w, size, o)
		if err := s.begin(); err != nil {
			return err
		}
		for next := range order {
			if err := <-next.done; err != nil {
				return err
			}
			if err := s.grain(next.number, next.out); err != nil {
				return err
			}
			free <- next
		}
		// The image may not have been looked at to its end.
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.end()
	})
	return g.Wait()
}

// eachGrain calls do, in ascending order, for each grain that is not all hole.
func eachGrain(src *os.File, size int64, do func(number int64) error) error {
	next := int64(0)
	for {
		r, ok, err := sparse.Next(src, next*GrainSize, size)
		if err != nil || !ok {
			return err
		}
		next = max(next, r.Offset/GrainSize)
		for ; next*GrainSize < r.Offset+r.Length; next++ {
			if err := do(next); err != nil {
				return err
			}
		}
	}
}

// fill reads a grain and compresses it.
func (g *grain) fill(src io.ReaderAt, size int64, z *zlib.Writer) error {
	off := g.number * GrainSize
	n := min(GrainSize, size-off)
	if got, err := src.ReadAt(g.in[:n], off); err != nil && !(errors.Is(err, io.EOF) && int64(got) == n) {
		return fmt.Errorf("reading %d bytes at %d: %w", n, off, err)
	}
	clear(g.in[n:])
	g.out = g.out[:0]
	if sparse.IsZero(g.in) {
		return nil
	}
	g.out = append(g.out, make([]byte, grainHeader)...)
	z.Reset((*appender)(&g.out))
	if _, err := z.Write(g.in); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	g.out = sealGrain(g.out, g.number)
	return nil
}

// appender is an io.Writer that grows a slice.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}
