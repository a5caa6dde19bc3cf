package squashfs

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// newEncoder fixes everything that decides the bytes: level, window, no
// checksum (the kernel does not look at it), one thread a block. The window
// must not exceed the block, as the kernel's decoder has no larger one.
func newEncoder(window int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.SpeedDefault),
		zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window),
		zstd.WithEncoderCRC(false),
		zstd.WithSingleSegment(true))
}

// metadata collects one of the tables as compressed blocks of 8 KiB.
type metadata struct {
	enc    *zstd.Encoder
	blocks []byte // finished, each behind its two-byte header
	starts []uint32
	tail   []byte // of the unfinished block, always shorter than metadataSize
}

// position is where the next byte goes: the start of its block in the table
// and the offset in the uncompressed block.
type position struct {
	block  uint32
	offset uint16
}

func (p position) ref() uint64 { return uint64(p.block)<<16 | uint64(p.offset) }

func (m *metadata) position() position {
	return position{block: uint32(len(m.blocks)), offset: uint16(len(m.tail))}
}

func (m *metadata) write(p []byte) {
	m.tail = append(m.tail, p...)
	for len(m.tail) >= metadataSize {
		m.flush(metadataSize)
	}
}

// put writes fixed-size structures.
func (m *metadata) put(v any) {
	m.write(encode(v))
}

func (m *metadata) flush(n int) {
	m.starts = append(m.starts, uint32(len(m.blocks)))
	packed := m.enc.EncodeAll(m.tail[:n], nil)
	header := uint16(len(packed))
	if len(packed) >= n {
		packed, header = m.tail[:n], uint16(n)|rawMetadata
	}
	m.blocks = binary.LittleEndian.AppendUint16(m.blocks, header)
	m.blocks = append(m.blocks, packed...)
	m.tail = append(m.tail[:0], m.tail[n:]...)
}

// finish returns the table's bytes.
func (m *metadata) finish() []byte {
	if len(m.tail) > 0 {
		m.flush(len(m.tail))
	}
	return m.blocks
}

// writeIndexed writes a table of fixed-size records behind which the kernel
// expects the absolute start of each of its metadata blocks. It returns the
// position of those starts, which is what the superblock names, and the end.
func (m *metadata) writeIndexed(w io.WriterAt, off int64) (index, end int64, err error) {
	out := m.finish()
	index = off + int64(len(out))
	for _, start := range m.starts {
		out = binary.LittleEndian.AppendUint64(out, uint64(off)+uint64(start))
	}
	if _, err := w.WriteAt(out, off); err != nil {
		return 0, 0, fmt.Errorf("writing squashfs table at %d: %w", off, err)
	}
	return index, off + int64(len(out)), nil
}

// encode gives the little-endian bytes of a structure of fixed size.
func encode(v any) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // a structure of this package is not of fixed size
	}
	return out
}
