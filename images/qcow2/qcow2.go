// Package qcow2 writes disk images for QEMU and everything that reads its format:
// qcow2 version 3 with compressed clusters, as QEMU's docs/interop/qcow2 describes
// it. All processors compress; the bytes follow from the image and the options
// alone. Clusters of zeros take no space, and those that do not shrink are stored
// plain. The result has no backing file, snapshots or encryption.
package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/imagectl/imagectl/images/chunk"
)

// Compression of the clusters.
type Compression int

const (
	// Deflate is read by every reader; clusters have QEMU's default size, 64 KiB.
	Deflate Compression = iota
	// Zstd is smaller and quicker to make, and needs QEMU 5.1 or newer. Clusters
	// have 128 KiB, or it would be larger than what qemu-img makes.
	Zstd
)

// Options of an image. The zero value is the most portable.
type Options struct {
	Compression Compression
}

const (
	// maxL1 is how many entries of the first table QEMU takes: 32 MiB of them.
	maxL1 = 32 << 20 / 8

	// In table entries: this cluster has one owner; this one is compressed.
	copied     = 1 << 63
	compressed = 1 << 62
	sector     = 512
)

// Write makes dst, an empty file, a qcow2 image of the first size bytes of src;
// the disk's size is rounded up to whole sectors. Memory does not depend on the
// size of the image but for 2 bytes for each cluster that is written.
func Write(ctx context.Context, dst, src *os.File, size int64, o Options) error {
	if err := write(ctx, dst, src, size, o); err != nil {
		return fmt.Errorf("writing %s as qcow2: %w", src.Name(), err)
	}
	return nil
}

func write(ctx context.Context, dst, src *os.File, size int64, o Options) error {
	bits, newEncoder := uint32(16), newDeflater
	if o.Compression == Zstd {
		bits, newEncoder = 17, newZstd
	}
	cluster := int64(1) << bits
	size = (size + sector - 1) / sector * sector
	perTable := cluster / 8 * cluster // what an L2 table of one cluster covers
	tables := (size + perTable - 1) / perTable
	if size <= 0 || tables > maxL1 {
		return fmt.Errorf("a disk of %d bytes does not fit: it must have 1 byte to %d TiB", size, maxL1*perTable>>40)
	}
	w := &writer{dst: dst, cluster: cluster, sectorShift: 62 - (bits - 8), l1: make([]uint64, tables)}
	w.allocate(1) // the header
	l1 := w.allocate((tables*8 + cluster - 1) / cluster)
	st, err := src.Stat()
	if err != nil {
		return err
	}
	err = chunk.Encode(ctx, src, min(size, st.Size()), int(cluster), func() (chunk.Encoder, error) { return newEncoder(int(cluster)) }, w.add)
	if err != nil {
		return err
	}
	if err := w.flushTable(); err != nil {
		return err
	}
	refs, refClusters, err := w.writeRefcounts()
	if err != nil {
		return err
	}
	if err := w.put(w.l1, l1); err != nil {
		return err
	}
	if err := dst.Truncate(w.end); err != nil {
		return err
	}
	h := header{
		Magic: [4]byte{'Q', 'F', 'I', 0xfb}, Version: 3, ClusterBits: bits, Size: uint64(size),
		L1Size: uint32(tables), L1Offset: uint64(l1), RefcountOffset: uint64(refs), RefcountClusters: refClusters,
		RefcountOrder: 4, HeaderLength: headerLength,
	}
	if o.Compression == Zstd {
		h.Incompatible, h.CompressionType = incompatibleCompression, 1
	}
	// Last, so that what is not complete is no image.
	return binary.Write(io.NewOffsetWriter(dst, 0), binary.BigEndian, h)
}

const (
	headerLength            = 112
	incompatibleCompression = 1 << 3
)

// header is version 3's. What follows it is zero: no extensions.
type header struct {
	Magic               [4]byte
	Version             uint32
	BackingOffset       uint64
	BackingLength       uint32
	ClusterBits         uint32
	Size                uint64
	Encryption          uint32
	L1Size              uint32
	L1Offset            uint64
	RefcountOffset      uint64
	RefcountClusters    uint32
	Snapshots           uint32
	SnapshotsOffset     uint64
	Incompatible        uint64
	Compatible          uint64
	Autoclear           uint64
	RefcountOrder       uint32
	HeaderLength        uint32
	CompressionType     byte
	CompressionReserved [7]byte
}

// writer lays out the file from front to back.
type writer struct {
	dst *os.File
	// cluster is the size of one, in bytes.
	cluster int64
	// sectorShift is where a compressed entry counts additional sectors.
	sectorShift uint32
	// end is the first cluster that nobody has.
	end int64
	// free to freeEnd is the rest of the cluster that compressed data filled last.
	free, freeEnd int64
	l1            []uint64
	// table is the L2 table of l1[tableOf], nil before the first.
	table   []uint64
	tableOf int64
	// refs counts the users of each cluster of the file.
	refs []uint16
}

// allocate takes clusters at the end, with one user each.
func (w *writer) allocate(clusters int64) (offset int64) {
	offset = w.end
	w.end += clusters * w.cluster
	for range clusters {
		w.refs = append(w.refs, 1)
	}
	return offset
}

// add is a chunk.Emit: it stores a guest cluster.
func (w *writer) add(guest int64, content, encoded []byte) error {
	perTable := w.cluster / 8
	if of := guest / (perTable * w.cluster); w.table == nil || of != w.tableOf {
		if err := w.flushTable(); err != nil {
			return err
		}
		w.table, w.tableOf = make([]uint64, perTable), of
	}
	i := guest / w.cluster % perTable
	if int64(len(encoded)) >= w.cluster {
		off := w.allocate(1)
		w.table[i] = uint64(off) | copied
		_, err := w.dst.WriteAt(content, off)
		return err
	}
	off := w.fit(int64(len(encoded)))
	sectors := (off+int64(len(encoded))-1)/sector - off/sector
	w.table[i] = uint64(off) | compressed | uint64(sectors)<<w.sectorShift
	_, err := w.dst.WriteAt(encoded, off)
	return err
}

// fit finds room for n bytes, at most a cluster, and counts them as a user of
// the clusters they touch. They may cross into the next one.
func (w *writer) fit(n int64) (offset int64) {
	switch {
	case w.free+n <= w.freeEnd:
		w.refs[w.free/w.cluster]++
	case w.freeEnd == w.end && w.free < w.freeEnd:
		w.refs[w.free/w.cluster]++
		w.allocate(1)
		w.freeEnd = w.end
	default:
		w.free = w.allocate(1)
		w.freeEnd = w.end
	}
	offset = w.free
	w.free += n
	return offset
}

func (w *writer) flushTable() error {
	if w.table == nil {
		return nil
	}
	off := w.allocate(1)
	w.l1[w.tableOf] = uint64(off) | copied
	return w.put(w.table, off)
}

// writeRefcounts writes the counts of everything, themselves included.
func (w *writer) writeRefcounts() (offset int64, clusters uint32, err error) {
	used, perBlock := int64(len(w.refs)), w.cluster/2
	var blocks, table int64
	for total := int64(-1); total != used+blocks+table; {
		total = used + blocks + table
		blocks = (total + perBlock - 1) / perBlock
		table = (blocks*8 + w.cluster - 1) / w.cluster
	}
	first := w.allocate(blocks)
	offset = w.allocate(table)
	if err := w.put(w.refs, first); err != nil {
		return 0, 0, err
	}
	entries := make([]uint64, blocks)
	for i := range entries {
		entries[i] = uint64(first + int64(i)*w.cluster)
	}
	return offset, uint32(table), w.put(entries, offset)
}

func (w *writer) put(numbers any, offset int64) error {
	b, err := binary.Append(nil, binary.BigEndian, numbers)
	if err != nil {
		return err
	}
	_, err = w.dst.WriteAt(b, offset)
	return err
}

// deflateLevel makes smaller clusters than qemu-img does, in a third of the time.
// The library's matches reach back 32 KiB, as RFC 1951 allows. QEMU starts zlib
// with a window of 4 KiB, but that bounds only what zlib keeps between calls, and
// a whole cluster is one call.
const deflateLevel = 5

func newDeflater(cluster int) (chunk.Encoder, error) {
	var out bytes.Buffer
	z, err := flate.NewWriter(&out, deflateLevel)
	if err != nil {
		return nil, err
	}
	last := make([]byte, cluster)
	return func(dst, content []byte) ([]byte, error) {
		out.Reset()
		z.Reset(&out)
		if _, err := z.Write(whole(last, content)); err != nil {
			return nil, err
		}
		if err := z.Close(); err != nil {
			return nil, err
		}
		return append(dst, out.Bytes()...), nil
	}, nil
}

func newZstd(cluster int) (chunk.Encoder, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(cluster))
	if err != nil {
		return nil, err
	}
	last := make([]byte, cluster)
	return func(dst, content []byte) ([]byte, error) {
		return z.EncodeAll(whole(last, content), dst), nil
	}, nil
}

// whole pads the disk's last cluster with zeros: readers want all of it.
func whole(buf, content []byte) []byte {
	if len(content) == len(buf) {
		return content
	}
	clear(buf[copy(buf, content):])
	return buf
}
