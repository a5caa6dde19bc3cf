// Package chunk encodes an image piece by piece on all processors and hands the
// pieces over in order. Pieces that are all zeros, and holes above all, cost
// nothing. Memory does not grow with the image, and the bytes do not depend on
// the number of processors. What a piece becomes is the caller's.
package chunk

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/images/sparse"
)

// Encoder appends a chunk's other form to dst and returns it. One goroutine at a
// time calls it. It must give the same bytes for the same chunk, whatever it was
// given before.
type Encoder func(dst, chunk []byte) ([]byte, error)

// Emit takes a chunk that is not all zeros. Both slices are only lent.
type Emit func(offset int64, chunk, encoded []byte) error

// job is one chunk on its way through.
type job struct {
	offset  int64
	chunk   []byte
	encoded []byte
	zero    bool
	// done is sent to, once, when a worker is through.
	done chan error
}

// Encode cuts the first size bytes of src into chunks of length bytes, the last
// one shorter, and calls emit for each that is not all zeros, in ascending
// order. Every processor gets an Encoder from newEncoder.
func Encode(ctx context.Context, src *os.File, size int64, length int, newEncoder func() (Encoder, error), emit Emit) error {
	workers := runtime.GOMAXPROCS(0)
	g, ctx := errgroup.WithContext(ctx)
	// A job lies in the free list, or in the queue, where it waits its turn, and
	// meanwhile in work until a worker takes it.
	inFlight := 2*workers + 2
	free, work, queue := make(chan *job, inFlight), make(chan *job, inFlight), make(chan *job, inFlight)
	for range inFlight {
		free <- &job{chunk: make([]byte, length), done: make(chan error, 1)}
	}
	g.Go(func() error {
		defer close(work)
		defer close(queue)
		return eachChunk(src, size, int64(length), func(offset, n int64) error {
			select {
			case j := <-free:
				j.offset, j.chunk = offset, j.chunk[:n]
				queue <- j
				work <- j
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range workers {
		g.Go(func() error {
			encode, err := newEncoder()
			if err != nil {
				return err
			}
			for j := range work {
				j.done <- j.run(src, encode)
			}
			return nil
		})
	}
	g.Go(func() error {
		for j := range queue {
			select {
			case err := <-j.done:
				if err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
			if !j.zero {
				if err := emit(j.offset, j.chunk, j.encoded); err != nil {
					return err
				}
			}
			free <- j
		}
		return ctx.Err()
	})
	return g.Wait()
}

func (j *job) run(src *os.File, encode Encoder) (err error) {
	if _, err := src.ReadAt(j.chunk, j.offset); err != nil {
		return fmt.Errorf("reading %d bytes of %s at %d: %w", len(j.chunk), src.Name(), j.offset, err)
	}
	if j.zero = sparse.IsZero(j.chunk); j.zero {
		return nil
	}
	j.encoded, err = encode(j.encoded[:0], j.chunk)
	return err
}

// eachChunk calls f for every chunk that holds data, once.
func eachChunk(src *os.File, size, length int64, f func(offset, n int64) error) error {
	for off := int64(0); ; {
		data, ok, err := sparse.Next(src, off, size)
		if err != nil || !ok {
			return err
		}
		for off = max(off, data.Offset/length*length); off < data.Offset+data.Length; off += length {
			if err := f(off, min(length, size-off)); err != nil {
				return err
			}
		}
	}
}
