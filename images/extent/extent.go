// Package extent is the install stream: the parts of a disk image that are not
// zero, so that holes cost neither transfer nor hashing.
//
// The stream is the 8 bytes of Magic, then records in ascending order, all
// numbers big endian:
//
//	offset uint64  a multiple of 4096
//	length uint64  1 to MaxLength, a multiple of 4096 unless it ends the image
//	data   length bytes
//
// and one end record whose offset is the image's size and whose length is 0.
// Nothing follows it. What no record covers reads as zeros. [Write] makes one
// stream only of an image: aligned 4 KiB blocks that are not zero, neighbours
// joined up to MaxLength; so the stream's digest names the image's content.
// Compression is the caller's.
package extent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imagectl/imagectl/images/sparse"
)

const (
	// Magic starts a stream; the last byte is the version.
	Magic = "imgctlx\x01"
	// Block is the unit that is left out when it is zero, in bytes.
	Block = 4096
	// MaxLength of one record's data, in bytes; a reader needs this much memory.
	MaxLength = 4 << 20
	// MaxSize of an image, in bytes. Larger is taken for garbage.
	MaxSize = 1 << 50

	headerLength = 16
)

// Write writes the stream of the first size bytes of r to w. Holes of an
// *os.File are skipped without being read.
func Write(ctx context.Context, w io.Writer, r io.ReaderAt, size int64) error {
	if size <= 0 || size > MaxSize {
		return fmt.Errorf("writing extents: an image of %d bytes cannot be described; it must have 1 to %d", size, int64(MaxSize))
	}
	if _, err := io.WriteString(w, Magic); err != nil {
		return fmt.Errorf("writing extents: %w", err)
	}
	e := encoder{w: w, buf: make([]byte, headerLength, headerLength+MaxLength)}
	next := wholeFile
	if f, ok := r.(*os.File); ok {
		next = func(off, size int64) (sparse.Range, bool, error) { return sparse.Next(f, off, size) }
	}
	block := make([]byte, 1<<20)
	for off := int64(0); ; {
		data, ok, err := next(off, size)
		if err != nil {
			return fmt.Errorf("writing extents: %w", err)
		}
		if !ok {
			break
		}
		// A file system with smaller blocks may start data inside one of ours.
		start := max(off, data.Offset/Block*Block)
		end := min(size, (data.Offset+data.Length+Block-1)/Block*Block)
		for off = start; off < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(int64(len(block)), end-off)
			if _, err := r.ReadAt(block[:n], off); err != nil && !(errors.Is(err, io.EOF) && off+n == size) {
				return fmt.Errorf("reading %d bytes of the image at %d: %w", n, off, err)
			}
			if err := e.add(off, block[:n]); err != nil {
				return fmt.Errorf("writing extents: %w", err)
			}
			off += n
		}
	}
	if err := e.end(size); err != nil {
		return fmt.Errorf("writing extents: %w", err)
	}
	return nil
}

func wholeFile(off, size int64) (sparse.Range, bool, error) {
	return sparse.Range{Offset: off, Length: size - off}, off < size, nil
}

// encoder collects one record in buf, behind the room for its header.
type encoder struct {
	w     io.Writer
	start int64
	buf   []byte
}

// add appends the blocks of p, which lies at off, that are not zero.
func (e *encoder) add(off int64, p []byte) error {
	for len(p) > 0 {
		b := p[:min(Block, len(p))]
		if !sparse.IsZero(b) {
			length := int64(len(e.buf) - headerLength)
			if length > 0 && (e.start+length != off || length == MaxLength) {
				if err := e.flush(); err != nil {
					return err
				}
				length = 0
			}
			if length == 0 {
				e.start = off
			}
			e.buf = append(e.buf, b...)
		}
		off += int64(len(b))
		p = p[len(b):]
	}
	return nil
}

func (e *encoder) flush() error {
	length := len(e.buf) - headerLength
	if length == 0 {
		return nil
	}
	binary.BigEndian.PutUint64(e.buf, uint64(e.start))
	binary.BigEndian.PutUint64(e.buf[8:], uint64(length))
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:headerLength]
	return err
}

func (e *encoder) end(size int64) error {
	if err := e.flush(); err != nil {
		return err
	}
	binary.BigEndian.PutUint64(e.buf, uint64(size))
	binary.BigEndian.PutUint64(e.buf[8:], 0)
	_, err := e.w.Write(e.buf)
	return err
}
