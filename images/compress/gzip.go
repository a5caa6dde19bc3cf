package compress

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"slices"

	"github.com/klauspost/compress/flate"

	"github.com/imagectl/imagectl/images/chunk"
)

const (
	// gzipPiece is compressed on its own, in bytes. A piece ends on a whole byte
	// (a flush of deflate), so that pieces together are one deflate stream.
	gzipPiece = 1 << 20
	// gzipLevel is gzip's own default.
	gzipLevel = 6
)

// Around is what a stream has besides the file.
type Around struct {
	// Before comes first.
	Before []byte
	// Zeros is how many come behind the file.
	Zeros int64
	// Level of compression, 1 to 9; 0 for 6, which is gzip's own.
	Level int
}

// Gzip writes src to w as one gzip member without name and time (RFC 1952), for
// readers that know only one.
func Gzip(ctx context.Context, w io.Writer, src *os.File) error {
	return GzipAround(ctx, w, src, Around{})
}

// GzipAround is Gzip of a file that something goes before and behind, such as an
// archive of it.
func GzipAround(ctx context.Context, w io.Writer, src *os.File, a Around) error {
	header := [10]byte{0x1f, 0x8b, 8, 9: 255} // deflate, no flags, no time, system unknown
	if _, err := w.Write(header[:]); err != nil {
		return explain(src, "gzip", err)
	}
	var sum uint32
	var size int64
	count := func(content, _ []byte) error {
		sum = crc32.Update(sum, crc32.IEEETable, content)
		size += int64(len(content))
		return nil
	}
	newEncoder := func() (chunk.Encoder, error) { return newDeflater(cmp.Or(a.Level, gzipLevel)) }
	if len(a.Before) > 0 {
		encode, err := newEncoder()
		if err != nil {
			return explain(src, "gzip", err)
		}
		first, err := encode(nil, a.Before)
		if err == nil {
			err = errors.Join(count(a.Before, nil), written(w, first))
		}
		if err != nil {
			return explain(src, "gzip", err)
		}
	}
	if err := pieces(ctx, w, src, a.Zeros, gzipPiece, newEncoder, count); err != nil {
		return explain(src, "gzip", err)
	}
	end := []byte{3, 0} // an empty last block
	end = binary.LittleEndian.AppendUint32(end, sum)
	end = binary.LittleEndian.AppendUint32(end, uint32(size))
	return explain(src, "gzip", written(w, end))
}

func written(w io.Writer, b []byte) error {
	_, err := w.Write(b)
	return err
}

func newDeflater(level int) (chunk.Encoder, error) {
	var out appender
	z, err := flate.NewWriter(&out, level)
	if err != nil {
		return nil, err
	}
	return func(dst, content []byte) ([]byte, error) {
		// As much as it takes when it cannot be compressed, and the frames of it.
		out = slices.Grow(dst, len(content)+len(content)>>10+64)
		z.Reset(&out)
		if _, err := z.Write(content); err != nil {
			return nil, err
		}
		if err := z.Flush(); err != nil {
			return nil, err
		}
		return out, nil
	}, nil
}

// appender is a writer to a slice.
type appender []byte

// Write implements io.Writer.
func (a *appender) Write(b []byte) (int, error) {
	*a = append(*a, b...)
	return len(b), nil
}
