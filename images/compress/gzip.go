package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"

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

// Gzip writes src to w as one gzip member without name and time (RFC 1952), for
// readers that know only one.
func Gzip(ctx context.Context, w io.Writer, src *os.File) error {
	header := [10]byte{0x1f, 0x8b, 8, 9: 255} // deflate, no flags, no time, system unknown
	if _, err := w.Write(header[:]); err != nil {
		return explain(src, "gzip", err)
	}
	var sum uint32
	var size int64
	err := pieces(ctx, w, src, gzipPiece, newDeflater, func(content, _ []byte) error {
		sum = crc32.Update(sum, crc32.IEEETable, content)
		size += int64(len(content))
		return nil
	})
	if err != nil {
		return explain(src, "gzip", err)
	}
	end := []byte{3, 0} // an empty last block
	end = binary.LittleEndian.AppendUint32(end, sum)
	end = binary.LittleEndian.AppendUint32(end, uint32(size))
	_, err = w.Write(end)
	return explain(src, "gzip", err)
}

func newDeflater() (chunk.Encoder, error) {
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, gzipLevel)
	if err != nil {
		return nil, err
	}
	return func(dst, content []byte) ([]byte, error) {
		out.Reset()
		z.Reset(&out)
		if _, err := z.Write(content); err != nil {
			return nil, err
		}
		if err := z.Flush(); err != nil {
			return nil, err
		}
		return append(dst, out.Bytes()...), nil
	}, nil
}
