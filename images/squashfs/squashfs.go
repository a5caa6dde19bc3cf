package squashfs

import (
	"fmt"
	"io"
	"math/bits"
	"runtime"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// Options of an image. The zero value is good.
type Options struct {
	// ModTime is the time of the image and of entries without a time of their
	// own. Zero means 1970.
	ModTime time.Time
	// BlockSize in bytes, a power of two from 4096 to 1048576. Zero means
	// 131072. It decides the bytes of the image.
	BlockSize int
	// Workers is how many blocks are compressed at a time. Zero means one for
	// each processor. It does not change the bytes of the image.
	Workers int
}

// Write writes the tree as an image that starts at offset 0 of w and returns
// its size, a multiple of 4096. It writes every byte of that size. Files are
// read once, or twice when another file has the same size.
func Write(w io.WriterAt, t *fstree.Tree, o Options) (size int64, err error) {
	if o.BlockSize == 0 {
		o.BlockSize = 131072
	}
	if o.BlockSize < 4096 || o.BlockSize > 1<<20 || bits.OnesCount(uint(o.BlockSize)) != 1 {
		return 0, fmt.Errorf("writing squashfs: block size %d is no power of two from 4096 to 1048576", o.BlockSize)
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	root := t.Root()
	mkfsTime, err := seconds(fstree.Entry{}.Unix(o.ModTime))
	if err != nil {
		return 0, fmt.Errorf("writing squashfs: %w", err)
	}
	enc, err := newEncoder(metadataSize)
	if err != nil {
		return 0, fmt.Errorf("making a zstd encoder for squashfs: %w", err)
	}

	layouts, fragments, end, err := writeData(w, root, o.BlockSize, o.Workers)
	if err != nil {
		return 0, err
	}
	tab := newTables(root, layouts, enc, o.ModTime)
	rootRef, err := tab.addRoot(root)
	if err != nil {
		return 0, err
	}
	super := superblock{
		Magic:       superMagic,
		Inodes:      uint32(len(tab.refs)),
		MkfsTime:    mkfsTime,
		BlockSize:   uint32(o.BlockSize),
		Fragments:   uint32(len(fragments)),
		Compression: zstdID,
		BlockLog:    uint16(bits.TrailingZeros(uint(o.BlockSize))),
		Flags:       flagDuplicates | flagExportable | flagNoXattrs,
		IDs:         uint16(len(tab.ids)),
		Major:       4,
		RootInode:   rootRef,
		XattrTable:  noTable,
	}
	if err := writeTables(w, end, tab, fragments, &super); err != nil {
		return 0, err
	}
	size = (int64(super.BytesUsed) + padTo - 1) / padTo * padTo
	if _, err := w.WriteAt(make([]byte, size-int64(super.BytesUsed)), int64(super.BytesUsed)); err != nil {
		return 0, fmt.Errorf("writing squashfs padding: %w", err)
	}
	if _, err := w.WriteAt(encode(super), 0); err != nil {
		return 0, fmt.Errorf("writing squashfs superblock: %w", err)
	}
	return size, nil
}

// writeTables writes what follows the data and notes the places in super. The
// kernel checks this order.
func writeTables(w io.WriterAt, off int64, tab *tables, fragments []fragmentEntry, super *superblock) error {
	for _, table := range []struct {
		m     *metadata
		place *uint64
	}{{&tab.inodes, &super.InodeTable}, {&tab.dirs, &super.DirTable}} {
		*table.place = uint64(off)
		out := table.m.finish()
		if _, err := w.WriteAt(out, off); err != nil {
			return fmt.Errorf("writing squashfs table at %d: %w", off, err)
		}
		off += int64(len(out))
	}
	for _, table := range []struct {
		records any
		place   *uint64
	}{{fragments, &super.FragmentTable}, {tab.refs, &super.LookupTable}, {tab.ids, &super.IDTable}} {
		m := metadata{enc: tab.inodes.enc}
		m.put(table.records)
		index, end, err := m.writeIndexed(w, off)
		if err != nil {
			return err
		}
		*table.place, off = uint64(index), end
	}
	super.BytesUsed = uint64(off)
	return nil
}
