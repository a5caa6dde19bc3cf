package compress

import (
	"context"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/imagectl/imagectl/images/chunk"
)

// zstdPiece is the content of one frame, in bytes; frames in a row are one
// stream (RFC 8878, section 3.1).
const zstdPiece = 4 << 20

// Zstd writes src to w as zstd.
func Zstd(ctx context.Context, w io.Writer, src *os.File) error {
	newEncoder := func() (chunk.Encoder, error) {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdPiece))
		if err != nil {
			return nil, err
		}
		return func(dst, content []byte) ([]byte, error) { return z.EncodeAll(content, dst), nil }, nil
	}
	return explain(src, "zstd", pieces(ctx, w, src, 0, zstdPiece, newEncoder, func(_, _ []byte) error { return nil }))
}
