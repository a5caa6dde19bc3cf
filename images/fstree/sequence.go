package fstree

import (
	"errors"
	"fmt"
	"io"
)

// Sequence is content made of parts, one after the other. Nothing is read before
// it is needed: a writer that only lays things out (FAT, ISO 9660, an EFI program)
// returns one, and its gigabytes are never in memory.
type Sequence []Content

// Size implements Content.
func (s Sequence) Size() int64 {
	var n int64
	for _, c := range s {
		n += c.Size()
	}
	return n
}

// Open implements Content. A part that is not as long as it says is an error of
// the reader: everything behind it would be in the wrong place.
func (s Sequence) Open() (io.ReadCloser, error) { return &sequenceReader{rest: s}, nil }

type sequenceReader struct {
	rest Sequence
	part io.ReadCloser // nil between parts
	left int64         // of part
}

func (r *sequenceReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.part == nil {
			if len(r.rest) == 0 {
				return 0, io.EOF
			}
			part, err := r.rest[0].Open()
			if err != nil {
				return 0, err
			}
			r.part, r.left = part, r.rest[0].Size()
		}
		if r.left == 0 {
			if err := r.next(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := r.part.Read(p[:min(int64(len(p)), r.left)])
		r.left -= int64(n)
		if errors.Is(err, io.EOF) {
			if err = nil; r.left > 0 {
				err = fmt.Errorf("content of %d bytes ends %d bytes early: it changed while it was read", r.rest[0].Size(), r.left)
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// next leaves a part that was read to its announced end.
func (r *sequenceReader) next() error {
	n, err := io.ReadFull(r.part, make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("content is longer than the %d bytes announced: it changed while it was read", r.rest[0].Size())
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	err = r.part.Close()
	r.part, r.rest = nil, r.rest[1:]
	return err
}

func (r *sequenceReader) Close() error {
	if r.part == nil {
		return nil
	}
	return r.part.Close()
}

// Zeros is content of that many zero bytes.
type Zeros int64

// Size implements Content.
func (z Zeros) Size() int64 { return int64(z) }

// Open implements Content.
func (z Zeros) Open() (io.ReadCloser, error) {
	return io.NopCloser(io.LimitReader(zeroReader{}, int64(z))), nil
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
