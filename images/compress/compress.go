// Package compress makes the compressed files that every tool reads, .gz, .xz
// and .zst, from disk images with holes. All processors compress; what is zero is
// compressed once. The bytes follow from the content alone. Unlike the install
// stream (images/extent) the result is the whole image, holes spelt out.
package compress

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/imagectl/imagectl/images/chunk"
)

// pieces writes src piece by piece, and zeros behind it: zeros compressed once for
// each length that occurs, everything else on all processors. Before each piece is
// written, next is told what it holds.
func pieces(ctx context.Context, w io.Writer, src *os.File, behind int64, length int, newEncoder func() (chunk.Encoder, error), next func(content, encoded []byte) error) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	size := st.Size()
	z := zeros{w: w, next: next, content: make([]byte, length), encoded: map[int][]byte{}}
	if z.encode, err = newEncoder(); err != nil {
		return err
	}
	err = chunk.Encode(ctx, src, size, length, newEncoder, func(off int64, content, encoded []byte) error {
		if err := z.upTo(ctx, off); err != nil {
			return err
		}
		z.off += int64(len(content))
		return z.write(content, encoded)
	})
	if err != nil {
		return err
	}
	return z.upTo(ctx, size+behind)
}

// zeros writes what is between chunks that hold something.
type zeros struct {
	w       io.Writer
	next    func(content, encoded []byte) error
	encode  chunk.Encoder
	off     int64
	content []byte
	// encoded by length: the whole one and the image's last.
	encoded map[int][]byte
}

func (z *zeros) upTo(ctx context.Context, end int64) error {
	for z.off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int(min(int64(len(z.content)), end-z.off))
		if z.encoded[n] == nil {
			e, err := z.encode(nil, z.content[:n])
			if err != nil {
				return err
			}
			z.encoded[n] = e
		}
		if err := z.write(z.content[:n], z.encoded[n]); err != nil {
			return err
		}
		z.off += int64(n)
	}
	return nil
}

func (z *zeros) write(content, encoded []byte) error {
	if err := z.next(content, encoded); err != nil {
		return err
	}
	_, err := z.w.Write(encoded)
	return err
}

func explain(src *os.File, as string, err error) error {
	if err != nil {
		return fmt.Errorf("compressing %s as %s: %w", src.Name(), as, err)
	}
	return nil
}
