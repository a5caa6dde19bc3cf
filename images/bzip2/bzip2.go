// Package bzip2 decompresses bzip2 with all processors. Flatcar's images come as
// bzip2, whose blocks are independent but start at any bit; the format has no
// index. This package looks for the 48-bit marks of blocks, wraps each block into
// a stream of its own and leaves the decoding to compress/bzip2.
//
// A mark may occur inside a block by chance (about once in 30,000 images of
// 500 MB). Then a block does not decode and [ErrParallel] asks the caller to take
// compress/bzip2 alone; so that package has the last word on what is damaged.
package bzip2

import (
	"bufio"
	"bytes"
	stdbzip2 "compress/bzip2"
	"context"
	"encoding/binary"
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

// Marks of the format, in 48 bits: the digits of pi and of its square root.
const (
	blockMark = 0x314159265359
	endMark   = 0x177245385090
	markMask  = 1<<48 - 1
)

// mark is where a block or a stream's end starts, in bits.
type mark struct {
	at  int64
	end bool
}

// block is one piece of work; its worker sends the result.
type block struct {
	// from and to are in bits. A stream's end has no length.
	from, to int64
	end      bool
	out      chan decoded
}

type decoded struct {
	// data comes from the pool; whoever has written it gives it back.
	data *bytes.Buffer
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
	// A block of zeros unpacks to 45 MB: reuse what such ones needed.
	pool := sync.Pool{New: func() any { return new(bytes.Buffer) }}
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
	for range workers {
		g.Go(func() error {
			for b := range work {
				b.out <- decode(r, b, &pool)
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
		if _, err := w.Write(d.data.Bytes()); err != nil {
			return err
		}
		pool.Put(d.data)
	}
	return ctx.Err()
}

// split finds the marks and calls emit for what lies between them.
func split(ctx context.Context, r io.Reader, size int64, emit func(block) error) error {
	in := bufio.NewReaderSize(r, 1<<20)
	head := make([]byte, 4)
	if _, err := io.ReadFull(in, head); err != nil {
		return fmt.Errorf("%w: %w", ErrParallel, err)
	}
	if !bytes.HasPrefix(head, []byte("BZh")) || head[3] < '1' || head[3] > '9' {
		return fmt.Errorf("%w: it starts with %q", ErrParallel, head)
	}
	open := mark{at: -1}
	closeAt := func(at int64) error {
		if open.at < 0 {
			return nil
		}
		b := block{from: open.at, to: at, end: open.end, out: make(chan decoded, 1)}
		return emit(b)
	}
	var window uint64
	at := int64(32) // bits read
	for {
		c, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if at&(8<<20-1) == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		window = window<<8 | uint64(c)
		at += 8
		for shift := 7; shift >= 0; shift-- {
			m := window >> shift & markMask
			if m != blockMark && m != endMark {
				continue
			}
			start := at - int64(shift) - 48
			if err := closeAt(start); err != nil {
				return err
			}
			open = mark{at: start, end: m == endMark}
		}
	}
	if !open.end {
		return fmt.Errorf("%w: it has no end", ErrParallel)
	}
	return closeAt(size * 8)
}

// decode decompresses one block.
func decode(r io.ReaderAt, b block, pool *sync.Pool) decoded {
	if b.to-b.from < 80 {
		return decoded{err: fmt.Errorf("%w: a block of %d bits", ErrParallel, b.to-b.from)}
	}
	if b.end {
		// What follows, such as the head of another stream, is not looked at.
		b.to = b.from + 80
	}
	stream, err := align(r, b.from, b.to)
	if err != nil {
		return decoded{err: err}
	}
	crc := binary.BigEndian.Uint32(stream[4+6:])
	if b.end {
		return decoded{crc: crc}
	}
	stream = appendEnd(stream, b.to-b.from, crc)
	data := pool.Get().(*bytes.Buffer)
	data.Reset()
	if _, err := data.ReadFrom(stdbzip2.NewReader(bytes.NewReader(stream))); err != nil {
		return decoded{err: fmt.Errorf("%w: %w", ErrParallel, err)}
	}
	return decoded{data: data, crc: crc}
}

// align returns the bits from..to of r at a byte boundary, behind a stream head.
// Bits behind to in the last byte are zero.
func align(r io.ReaderAt, from, to int64) ([]byte, error) {
	raw := make([]byte, (to+7)/8-from/8+1)
	if n, err := r.ReadAt(raw[:len(raw)-1], from/8); err != nil && !(errors.Is(err, io.EOF) && n == len(raw)-1) {
		return nil, err
	}
	length := to - from
	stream := make([]byte, 4+(length+7)/8, 4+(length+7)/8+11)
	copy(stream, "BZh9")
	shift := from % 8
	for i := range stream[4:] {
		stream[4+i] = byte((uint16(raw[i])<<8 | uint16(raw[i+1])) << shift >> 8)
	}
	if rest := length % 8; rest != 0 {
		stream[len(stream)-1] &= 0xff << (8 - rest)
	}
	return stream, nil
}

// appendEnd puts a stream's end behind length bits of block: the mark and the
// checksum over one block, which is the block's own.
func appendEnd(stream []byte, length int64, crc uint32) []byte {
	var end [10]byte
	binary.BigEndian.PutUint64(end[:], uint64(endMark)<<16)
	binary.BigEndian.PutUint32(end[6:], crc)
	used := int(length % 8)
	if used == 0 {
		return append(stream, end[:]...)
	}
	for _, c := range end {
		stream[len(stream)-1] |= c >> used
		stream = append(stream, c<<(8-used))
	}
	return stream
}
