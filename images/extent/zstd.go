package extent

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// frame is how much of the input goes into one zstd frame, in bytes. It bounds
// the window, and with it the memory of whoever decompresses.
const frame = 4 << 20

// Compress copies r to w as zstd: frames of 4 MiB each, compressed side by side
// and written in order. The bytes do not depend on the number of processors.
func Compress(ctx context.Context, w io.Writer, r io.Reader) error {
	workers := runtime.GOMAXPROCS(0)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(frame))
	if err != nil {
		return fmt.Errorf("starting zstd: %w", err)
	}
	defer enc.Close()
	g, ctx := errgroup.WithContext(ctx)
	// The queue holds frames in order; each is a channel that its worker fills.
	queue := make(chan chan []byte, workers+1)
	g.Go(func() error {
		defer close(queue)
		for {
			in := make([]byte, frame)
			n, err := io.ReadFull(r, in)
			if n > 0 {
				out := make(chan []byte, 1)
				select {
				case queue <- out:
				case <-ctx.Done():
					return ctx.Err()
				}
				g.Go(func() error {
					out <- enc.EncodeAll(in[:n], make([]byte, 0, n/2))
					return nil
				})
			}
			switch err {
			case nil:
			case io.EOF, io.ErrUnexpectedEOF:
				return nil
			default:
				return err
			}
		}
	})
	g.Go(func() error {
		for out := range queue {
			if _, err := w.Write(<-out); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	if err := g.Wait(); err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	return nil
}

// Decompress reads what Compress wrote, with one goroutine and little memory.
// Close the reader.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(2*frame), zstd.WithDecoderMaxMemory(4*frame))
	if err != nil {
		return nil, fmt.Errorf("starting zstd: %w", err)
	}
	return d.IOReadCloser(), nil
}
