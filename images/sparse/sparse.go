// Package sparse reads, copies and clears files with holes, so that an image of
// 8 GiB with 1 GiB of data costs 1 GiB. It uses Linux's SEEK_DATA, SEEK_HOLE
// and FALLOC_FL_PUNCH_HOLE and falls back to plain reads and writes where a
// file system has none.
package sparse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Range is Length bytes from Offset.
type Range struct{ Offset, Length int64 }

// copyChunk bounds one copy, so that a cancelled context is noticed.
const copyChunk = 16 << 20

// Next finds the first run of data at or after offset in the first size bytes
// of f. The second result is false when only a hole is left. Data may hold
// zeros; a hole never holds anything else.
func Next(f *os.File, offset, size int64) (Range, bool, error) {
	if offset >= size {
		return Range{}, false, nil
	}
	start, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return Range{}, false, nil
	case errors.Is(err, unix.EINVAL):
		// The file system knows no holes: everything is data.
		return Range{Offset: offset, Length: size - offset}, true, nil
	case err != nil:
		return Range{}, false, fmt.Errorf("finding data in %s: %w", f.Name(), err)
	}
	if start >= size {
		return Range{}, false, nil
	}
	end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return Range{}, false, fmt.Errorf("finding holes in %s: %w", f.Name(), err)
	}
	return Range{Offset: start, Length: min(end, size) - start}, true, nil
}

// DataBytes adds up the data in the first size bytes of f.
func DataBytes(f *os.File, size int64) (int64, error) {
	var total int64
	for off := int64(0); ; {
		r, ok, err := Next(f, off, size)
		if err != nil || !ok {
			return total, err
		}
		total += r.Length
		off = r.Offset + r.Length
	}
}

// Copy makes dst, which must be empty, a copy of src with the same holes.
// Others may read src meanwhile, at offsets of their own.
func Copy(ctx context.Context, dst, src *os.File) error {
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("copying a sparse file: %w", err)
	}
	size := st.Size()
	if err := dst.Truncate(size); err != nil {
		return fmt.Errorf("copying %s: %w", src.Name(), err)
	}
	for off := int64(0); ; {
		r, ok, err := Next(src, off, size)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if err := copyRange(ctx, dst, src, r); err != nil {
			return fmt.Errorf("copying %s to %s: %w", src.Name(), dst.Name(), err)
		}
		off = r.Offset + r.Length
	}
}

func copyRange(ctx context.Context, dst, src *os.File, r Range) error {
	in, out := r.Offset, r.Offset
	for left := r.Length; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(left, copyChunk)), 0)
		switch {
		case err == nil && n > 0:
			left -= int64(n)
		case errors.Is(err, unix.EINTR):
		case err == nil:
			return io.ErrUnexpectedEOF
		default:
			// Between file systems, or where the kernel cannot.
			at := r.Offset + r.Length - left
			return copyPlainly(ctx, io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, left))
		}
	}
	return nil
}

func copyPlainly(ctx context.Context, dst io.Writer, src io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.CopyN(dst, src, copyChunk); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Clear makes a range of f read as zeros, as a hole where that is possible.
func Clear(f *os.File, r Range) error {
	if r.Length == 0 {
		return nil
	}
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("clearing %d bytes at %d of %s: %w", r.Length, r.Offset, f.Name(), err)
	}
	zeros := make([]byte, 1<<20)
	for off, left := r.Offset, r.Length; left > 0; {
		n := min(left, int64(len(zeros)))
		if _, err := f.WriteAt(zeros[:n], off); err != nil {
			return fmt.Errorf("clearing %d bytes at %d of %s: %w", r.Length, r.Offset, f.Name(), err)
		}
		off, left = off+n, left-n
	}
	return nil
}

// block is what Writer leaves out when it is all zeros: the block size of the
// file systems that images lie on.
const block = 4096

// Writer writes a stream into a file and leaves holes where whole aligned
// blocks are zero. Close sets the file's length; it does not close the file.
type Writer struct {
	f   *os.File
	off int64
	// buf holds less than a chunk, starting at off.
	buf []byte
}

// chunk is how much Writer looks at and writes at once; a multiple of block.
const chunk = 1 << 20

// NewWriter writes to an empty file.
func NewWriter(f *os.File) *Writer {
	return &Writer{f: f, buf: make([]byte, 0, chunk)}
}

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), chunk-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == chunk {
			if err := w.flush(); err != nil {
				return n - len(p), err
			}
		}
	}
	return n, nil
}

// WriteZeros writes n zeros, mostly by leaving them out.
func (w *Writer) WriteZeros(n int64) error {
	// Up to the end of a block, so that what follows stays aligned.
	fill := min(n, int64(block-len(w.buf)%block)%block)
	if _, err := w.Write(make([]byte, fill)); err != nil {
		return err
	}
	n -= fill
	if n >= block {
		if err := w.flush(); err != nil {
			return err
		}
		w.off += n / block * block
		n %= block
	}
	_, err := w.Write(make([]byte, n))
	return err
}

func (w *Writer) flush() error {
	for i := 0; i < len(w.buf); {
		j := i
		for j < len(w.buf) && !IsZero(w.buf[j:min(j+block, len(w.buf))]) {
			j = min(j+block, len(w.buf))
		}
		if j > i {
			if _, err := w.f.WriteAt(w.buf[i:j], w.off+int64(i)); err != nil {
				return err
			}
		}
		i = j
		for i < len(w.buf) && IsZero(w.buf[i:min(i+block, len(w.buf))]) {
			i = min(i+block, len(w.buf))
		}
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// Close writes what is left and gives the file its length.
func (w *Writer) Close() error {
	if err := w.flush(); err != nil {
		return err
	}
	return w.f.Truncate(w.off)
}

// IsZero tells whether b holds only zeros.
func IsZero(b []byte) bool {
	// Comparing b with itself one byte later is a vectorised memory compare.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
