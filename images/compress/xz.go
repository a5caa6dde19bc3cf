package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"hash/crc64"
	"io"
	"os"
	"runtime"

	"github.com/ulikunitz/xz/lzma"

	"github.com/imagectl/imagectl/images/chunk"
)

const (
	// xzPiece is the content of one block, in bytes, and the dictionary's size:
	// readers need that much memory, and may unpack blocks side by side.
	xzPiece = 4 << 20
	// xzDictionary is xzPiece as LZMA2 writes it: 2 << (20/2 + 11).
	xzDictionary = 20
	// The only filter, and the check of each block: CRC64.
	xzLZMA2, xzCheck = 0x21, 4
)

// XZ writes src to w as one xz stream of many blocks, with their sizes in their
// headers (the .xz file format, version 1.2.1).
func XZ(ctx context.Context, w io.Writer, src *os.File) error {
	flags := []byte{0, xzCheck}
	header := binary.LittleEndian.AppendUint32(append([]byte("\xfd7zXZ\x00"), flags...), crc32.ChecksumIEEE(flags))
	if _, err := w.Write(header); err != nil {
		return explain(src, "xz", err)
	}
	var records []byte
	var blocks uint64
	err := pieces(ctx, w, src, 0, xzPiece, newXZ, func(content, encoded []byte) error {
		blocks++
		records = binary.AppendUvarint(records, xzUnpadded(encoded))
		records = binary.AppendUvarint(records, uint64(len(content)))
		return nil
	})
	if err != nil {
		return explain(src, "xz", err)
	}
	index := pad4(append(binary.AppendUvarint([]byte{0}, blocks), records...))
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	foot := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), flags...)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(foot))
	index = append(append(index, foot...), "YZ"...)
	_, err = w.Write(index)
	return explain(src, "xz", err)
}

// newXZ encodes whole blocks: header, LZMA2 data, padding, check.
func newXZ() (chunk.Encoder, error) {
	table := crc64.MakeTable(crc64.ECMA)
	var out bytes.Buffer
	return func(dst, content []byte) ([]byte, error) {
		out.Reset()
		// A writer has 40 MB of tables and cannot be used again: two would be garbage
		// before the collector would begin by itself. It takes milliseconds, a block seconds.
		runtime.GC()
		z, err := lzma.Writer2Config{DictCap: xzPiece}.NewWriter2(&out)
		if err != nil {
			return nil, err
		}
		if _, err := z.Write(content); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		dst = append(dst, xzBlockHeader(out.Len(), len(content))...)
		dst = pad4(append(dst, out.Bytes()...))
		return binary.LittleEndian.AppendUint64(dst, crc64.Checksum(content, table)), nil
	}, nil
}

func xzBlockHeader(compressed, content int) []byte {
	h := []byte{0, 0xc0} // its length, later; both sizes follow, one filter
	h = binary.AppendUvarint(h, uint64(compressed))
	h = binary.AppendUvarint(h, uint64(content))
	h = pad4(append(h, xzLZMA2, 1, xzDictionary))
	h[0] = byte(len(h) / 4)
	return binary.LittleEndian.AppendUint32(h, crc32.ChecksumIEEE(h))
}

// xzUnpadded is the length of a block without its padding, which only the
// header tells: the index wants it.
func xzUnpadded(block []byte) uint64 {
	header := (uint64(block[0]) + 1) * 4
	compressed, _ := binary.Uvarint(block[2:])
	return header + compressed + 8
}

func pad4(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
