// Package bzip2 decompresses bzip2 with all processors. Flatcar's images come as
// bzip2, whose blocks are independent but start at any bit; the format has no
// index. This package looks for the 48-bit marks of blocks and decodes what lies
// between two of them at once. Most of a disk image is zeros, so long runs of
// equal bytes are never unfolded: their checksum is computed from their length,
// and a writer that has a [ZeroWriter]'s method gets zeros by number.
//
// A mark may occur inside a block by chance (about once in 30,000 images of
// 500 MB). Then a block does not decode and [ErrParallel] asks the caller to take
// compress/bzip2 alone; so that package has the last word on what is damaged.
package bzip2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// ErrParallel says that the input does not fall into blocks. It may be damaged,
// or a mark occurred by chance. Some output may have been written.
var ErrParallel = errors.New("the file does not fall into bzip2 blocks")

// ZeroWriter is a writer that takes n zeros without being given them.
type ZeroWriter interface {
	io.Writer
	WriteZeros(n int64) error
}

// block is one piece of work; its worker sends the result.
type block struct {
	// from and to are in bits. A stream's end has no length.
	from, to int64
	end      bool
	out      chan decoded
}

type decoded struct {
	// content comes from the pool; whoever has written it gives it back.
	content *content
	// crc is the block's, or the one that a stream's end claims for all its blocks.
	crc uint32
	err error
}

// Decompress writes the content of the size bytes of r to w, in order.
func Decompress(ctx context.Context, w io.Writer, r io.ReaderAt, size int64) error {
	workers := runtime.GOMAXPROCS(0)
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan block)
	order := make(chan block, workers)
	pool := sync.Pool{New: func() any { return new(content) }}
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return split(ctx, io.NewSectionReader(r, 0, size), size, func(b block) error {
			for _, c := range []chan block{order, work} {
				select {
				case c <- b:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	crc := newCRCTables()
	for range workers {
		g.Go(func() error {
			d := newDecoder(crc)
			for b := range work {
				b.out <- d.work(r, b, &pool)
			}
			return nil
		})
	}
	g.Go(func() error { return collect(ctx, w, order, &pool) })
	return g.Wait()
}

// collect writes blocks in order and checks each stream's checksum.
func collect(ctx context.Context, w io.Writer, order <-chan block, pool *sync.Pool) error {
	var sum uint32
	for b := range order {
		var d decoded
		select {
		case d = <-b.out:
		case <-ctx.Done():
			return ctx.Err()
		}
		if d.err != nil {
			return d.err
		}
		if b.end {
			if sum != d.crc {
				return fmt.Errorf("%w: a stream's checksum is %08x, want %08x", ErrParallel, sum, d.crc)
			}
			sum = 0
			continue
		}
		sum = bits.RotateLeft32(sum, 1) ^ d.crc
		if err := d.content.writeTo(ctx, w); err != nil {
			return err
		}
		pool.Put(d.content)
	}
	return ctx.Err()
}

func (c *content) writeTo(ctx context.Context, w io.Writer) error {
	at := 0
	for _, r := range c.runs {
		if _, err := w.Write(c.literal[at:r.at]); err != nil {
			return err
		}
		at = r.at
		if err := r.writeTo(ctx, w); err != nil {
			return err
		}
	}
	_, err := w.Write(c.literal[at:])
	return err
}

func (r run) writeTo(ctx context.Context, w io.Writer) error {
	if z, ok := w.(ZeroWriter); ok && r.value == 0 {
		return z.WriteZeros(int64(r.n))
	}
	piece := make([]byte, min(r.n, 1<<20))
	if r.value != 0 {
		for i := range piece {
			piece[i] = r.value
		}
	}
	for left := r.n; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := w.Write(piece[:min(left, len(piece))])
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// work decodes one block or reads a stream's end.
func (d *decoder) work(r io.ReaderAt, b block, pool *sync.Pool) decoded {
	if b.to-b.from < 80 {
		return decoded{err: fmt.Errorf("%w: a block of %d bits", ErrParallel, b.to-b.from)}
	}
	if b.end {
		// What follows, such as the head of another stream, is not looked at.
		b.to = b.from + 80
	}
	if b.to-b.from > maxBlockBits {
		return decoded{err: fmt.Errorf("%w: a block of %d bits", ErrParallel, b.to-b.from)}
	}
	first := b.from / 8
	if err := d.read(r, first, (b.to+7)/8); err != nil {
		return decoded{err: err}
	}
	from, to := b.from-first*8, b.to-first*8
	if b.end {
		in := bitReader{p: d.raw}
		in.skip(uint(from) + 48)
		return decoded{crc: in.read(32)}
	}
	c, _ := pool.Get().(*content)
	crc, err := d.decode(from, to, c)
	if err != nil {
		return decoded{err: err}
	}
	return decoded{content: c, crc: crc}
}

// read fills d.raw with bytes first to end of r, and zeros behind them.
func (d *decoder) read(r io.ReaderAt, first, end int64) error {
	n := int(end - first)
	if cap(d.raw) < n+padding {
		d.raw = make([]byte, n+padding)
	}
	d.raw = d.raw[:n+padding]
	clear(d.raw[n:])
	if got, err := r.ReadAt(d.raw[:n], first); err != nil && !(errors.Is(err, io.EOF) && got == n) {
		return err
	}
	return nil
}
