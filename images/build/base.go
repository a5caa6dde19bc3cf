package build

import (
	"bufio"
	stdbzip2 "compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/imagectl/imagectl/images/bzip2"
	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/images/sparse"
)

// openBase returns the decompressed base image, which is unpacked once and kept
// in the store. The caller closes it and does not write to it.
func (r *run) openBase(ctx context.Context) (*os.File, disk.Layout, error) {
	if r.base == "" {
		key := recipe([]string{"base 1", r.in.Image.SHA256}, nil)
		path, err := r.in.Store.Derived(ctx, key, func(f *os.File) error { return r.unpackBase(ctx, f) })
		if err != nil {
			return nil, disk.Layout{}, err
		}
		r.base = path
	}
	f, err := os.Open(r.base)
	if err != nil {
		return nil, disk.Layout{}, fmt.Errorf("opening the base image: %w", err)
	}
	l, err := disk.ReadLayout(f)
	if err == nil {
		err = disk.CheckEmpty(f, l)
	}
	var arch string
	if err == nil {
		arch, err = disk.Arch(f, l)
	}
	if err != nil {
		f.Close()
		return nil, disk.Layout{}, fmt.Errorf("using %s as base: %w", r.in.Image.Source, err)
	}
	if err := r.checkArch(r.in.Image.Source+" as base", arch); err != nil {
		f.Close()
		return nil, disk.Layout{}, err
	}
	return f, l, nil
}

func (r *run) unpackBase(ctx context.Context, f *os.File) error {
	if !strings.HasSuffix(r.in.Image.Source, ".bz2") {
		return fmt.Errorf("unpacking %s: only flatcar_production_image.bin.bz2 is supported", r.in.Image.Source)
	}
	src, err := os.Open(r.in.Store.Path(r.in.Image.SHA256))
	if err != nil {
		return err
	}
	defer src.Close()
	err = r.unpackAs(ctx, f, func(w io.Writer) error { return bzip2.Decompress(ctx, w, src, r.in.Image.Size) })
	if errors.Is(err, bzip2.ErrParallel) {
		// Damage, or a mark of a block where there is none: the plain decoder tells.
		if err := f.Truncate(0); err != nil {
			return err
		}
		err = r.unpackAs(ctx, f, func(w io.Writer) error {
			_, err := io.Copy(w, stdbzip2.NewReader(bufio.NewReader(src)))
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("unpacking %s: %w", r.in.Image.Source, err)
	}
	return nil
}

// unpackAs writes what unpack produces into f with holes.
func (r *run) unpackAs(ctx context.Context, f *os.File, unpack func(io.Writer) error) error {
	const step = "unpacking the base image (once for each release)"
	r.obs.step(step)
	var done int64
	w := sparse.NewWriter(f)
	err := unpack(watchedWriter{ctx: ctx, w: w, wrote: func(n int64) {
		done += n
		if r.obs != nil {
			r.obs(Event{Step: step, Done: done})
		}
	}})
	if err != nil {
		return err
	}
	return w.Close()
}

// watchedWriter tells how much is written, and stops when the context ends.
type watchedWriter struct {
	ctx   context.Context
	w     *sparse.Writer
	wrote func(n int64)
}

func (w watchedWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.w.Write(p)
	w.wrote(int64(n))
	return n, err
}

// WriteZeros implements bzip2.ZeroWriter.
func (w watchedWriter) WriteZeros(n int64) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	w.wrote(n)
	return w.w.WriteZeros(n)
}

var errNoPrograms = errors.New("the archive lacks programs")
