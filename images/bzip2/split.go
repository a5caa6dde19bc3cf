package bzip2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

// Marks of the format, in 48 bits: the digits of pi and of its square root.
const (
	blockMark = 0x314159265359
	endMark   = 0x177245385090
	markMask  = 1<<48 - 1
)

// candidates tells of every byte whether it can be the last but one that has bits
// of a mark: it then has no others, so that there are sixteen, and most bytes
// need one look.
func candidates() (c [256]bool) {
	for _, m := range []uint64{blockMark, endMark} {
		for shift := 1; shift <= 8; shift++ {
			c[byte(m>>shift)] = true
		}
	}
	return c
}

// split finds the marks and calls emit for what lies between them.
func split(ctx context.Context, r io.Reader, size int64, emit func(block) error) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return fmt.Errorf("%w: %w", ErrParallel, err)
	}
	if !bytes.HasPrefix(head, []byte("BZh")) || head[3] < '1' || head[3] > '9' {
		return fmt.Errorf("%w: it starts with %q", ErrParallel, head)
	}
	open := block{from: -1}
	closeAt := func(at int64) error {
		if open.from < 0 {
			return nil
		}
		open.to, open.out = at, make(chan decoded, 1)
		return emit(open)
	}
	maybe := candidates()
	var window uint64
	buf := make([]byte, 256<<10)
	for at := int64(32); ; { // bits read
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		for _, c := range buf[:n] {
			before := byte(window)
			window = window<<8 | uint64(c)
			at += 8
			if !maybe[before] {
				continue
			}
			for shift := 7; shift >= 0; shift-- {
				m := window >> shift & markMask
				if m != blockMark && m != endMark {
					continue
				}
				start := at - int64(shift) - 48
				if err := closeAt(start); err != nil {
					return err
				}
				open = block{from: start, end: m == endMark}
			}
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			if !open.end {
				return fmt.Errorf("%w: it has no end", ErrParallel)
			}
			return closeAt(size * 8)
		case err != nil:
			return err
		}
	}
}
