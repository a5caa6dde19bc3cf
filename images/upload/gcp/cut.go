package gcp

import (
	"bufio"
	"context"
	"errors"
	"io"
)

// piece is a part of the archive; err is why there is none.
type piece struct {
	b    []byte
	last bool
	err  error
}

// cut reads pieces of a size, the next one while the last one that it gave is sent. It
// ends with the last piece, an error, or ctx.
func cut(ctx context.Context, r io.Reader, size int, out chan<- piece) {
	in := bufio.NewReaderSize(r, 64<<10)
	// Whoever takes a piece is through with the one before.
	buffers := [2][]byte{make([]byte, size), make([]byte, size)}
	for i := 0; ; i++ {
		b := buffers[i%2]
		n, err := io.ReadFull(in, b)
		p := piece{b: b[:n]}
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			_, err = in.Peek(1)
			p.last = errors.Is(err, io.EOF)
		}
		if err != nil && !p.last {
			p.err = err
		}
		select {
		case out <- p:
		case <-ctx.Done():
			return
		}
		if p.last || p.err != nil {
			return
		}
	}
}
