package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// Enough of btrfs, read-only, to list the root directory: superblock, the chunk
// map, the root tree and the tree of files. Offsets and key types are those of
// include/uapi/linux/btrfs_tree.h.

var errNoBtrfs = errors.New("there is no btrfs")

const (
	superOffset  = 64 << 10
	superSize    = 4096
	nodeHeader   = 101
	leafItem     = 25
	nodePointer  = 33
	chunkItem    = 48
	stripeLength = 32
	maxLevel     = 8
	// maxNodes bounds a walk through a damaged tree; an empty OEM needs four.
	maxNodes = 4096

	objectFSTree  = 5
	objectRootDir = 256

	keyInodeItem = 1
	keyInodeRef  = 12
	keyXattr     = 24
	keyDirItem   = 84
	keyDirIndex  = 96
	keyRootItem  = 132
	keyChunk     = 228
)

type btrfs struct {
	r        io.ReaderAt
	nodeSize uint32
	fsid     []byte
	chunks   []chunk
	visited  int
}

// chunk maps logical addresses to where they lie on the device.
type chunk struct{ logical, length, physical uint64 }

type item struct {
	object uint64
	typ    byte
	offset uint64
	data   []byte
}

// btrfsNames lists what a btrfs of size bytes holds: names in the root
// directory, or a description of anything else that is not part of an empty one.
func btrfsNames(r io.ReaderAt, size int64) ([]string, error) {
	super := make([]byte, superSize)
	if size < superOffset+superSize {
		return nil, errNoBtrfs
	}
	if _, err := r.ReadAt(super, superOffset); err != nil {
		return nil, err
	}
	if !bytes.Equal(super[0x40:0x48], []byte("_BHRfS_M")) {
		return nil, errNoBtrfs
	}
	if sum := binary.LittleEndian.Uint16(super[0xc4:]); sum != 0 {
		return nil, fmt.Errorf("its btrfs uses checksum type %d, only crc32c is supported", sum)
	}
	if err := checkSum(super); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	if n := binary.LittleEndian.Uint64(super[0x88:]); n != 1 {
		return nil, fmt.Errorf("its btrfs spans %d devices", n)
	}
	if binary.LittleEndian.Uint64(super[0x60:]) != 0 {
		return nil, errors.New("its btrfs was not unmounted cleanly: it has a log tree")
	}
	fs := &btrfs{r: r, nodeSize: binary.LittleEndian.Uint32(super[0x94:]), fsid: super[0x20:0x30]}
	if fs.nodeSize < 4096 || fs.nodeSize > 65536 || fs.nodeSize%4096 != 0 {
		return nil, fmt.Errorf("its btrfs has nodes of %d bytes", fs.nodeSize)
	}
	if err := fs.systemChunks(super); err != nil {
		return nil, err
	}
	if err := fs.walk(binary.LittleEndian.Uint64(super[0x58:]), maxLevel, func(it item) error {
		if it.typ == keyChunk {
			return fs.addChunk(it.offset, it.data)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("chunk tree: %w", err)
	}
	return fs.names(binary.LittleEndian.Uint64(super[0x50:]))
}

func (fs *btrfs) names(rootTree uint64) ([]string, error) {
	var files uint64
	var names []string
	if err := fs.walk(rootTree, maxLevel, func(it item) error {
		if it.typ != keyRootItem {
			return nil
		}
		if it.object == objectFSTree {
			if len(it.data) < 184 {
				return fmt.Errorf("a root item has %d bytes", len(it.data))
			}
			files = binary.LittleEndian.Uint64(it.data[176:])
		}
		// User subvolumes are numbered from 256; the top ones are btrfs's own.
		if it.object >= 256 && it.object < 1<<63 {
			names = append(names, fmt.Sprintf("subvolume %d", it.object))
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("root tree: %w", err)
	}
	if files == 0 {
		return nil, errors.New("its btrfs has no tree of files")
	}
	other := 0
	if err := fs.walk(files, maxLevel, func(it item) error {
		switch {
		case it.object == objectRootDir && it.typ == keyDirIndex:
			if len(it.data) < 30 {
				return fmt.Errorf("a directory entry has %d bytes", len(it.data))
			}
			length := int(binary.LittleEndian.Uint16(it.data[27:]))
			if 30+length > len(it.data) {
				return fmt.Errorf("a directory entry's name has %d bytes", length)
			}
			names = append(names, fmt.Sprintf("%q", it.data[30:30+length]))
		case it.object == objectRootDir && slices.Contains([]byte{keyInodeItem, keyInodeRef, keyXattr, keyDirItem}, it.typ):
			// The root directory itself; mkfs leaves a compression property on it.
		default:
			other++
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("tree of files: %w", err)
	}
	if len(names) == 0 && other > 0 {
		names = append(names, fmt.Sprintf("%d objects without a name", other))
	}
	return names, nil
}

func (fs *btrfs) systemChunks(super []byte) error {
	length := binary.LittleEndian.Uint32(super[0xa0:])
	if length > 2048 {
		return fmt.Errorf("its btrfs has a system chunk array of %d bytes", length)
	}
	for b := super[0x32b:][:length]; len(b) > 0; {
		if len(b) < 17+chunkItem {
			return errors.New("its btrfs has a system chunk array that breaks off")
		}
		size := 17 + chunkItem + int(binary.LittleEndian.Uint16(b[17+44:]))*stripeLength
		if size > len(b) {
			return errors.New("its btrfs has a system chunk array that breaks off")
		}
		if err := fs.addChunk(binary.LittleEndian.Uint64(b[9:]), b[17:size]); err != nil {
			return err
		}
		b = b[size:]
	}
	return nil
}

// addChunk notes the first stripe; DUP and single have the data whole in it.
func (fs *btrfs) addChunk(logical uint64, b []byte) error {
	if len(b) < chunkItem+stripeLength {
		return fmt.Errorf("a chunk item has %d bytes", len(b))
	}
	const striped = 1<<3 | 1<<6 | 1<<7 | 1<<8 // RAID0, RAID10, RAID5, RAID6
	if binary.LittleEndian.Uint64(b[24:])&striped != 0 {
		return errors.New("its btrfs is striped")
	}
	if len(fs.chunks) >= maxNodes {
		return errors.New("its btrfs has too many chunks")
	}
	fs.chunks = append(fs.chunks, chunk{
		logical:  logical,
		length:   binary.LittleEndian.Uint64(b),
		physical: binary.LittleEndian.Uint64(b[chunkItem+8:]),
	})
	return nil
}

func (fs *btrfs) node(logical uint64) ([]byte, error) {
	if fs.visited++; fs.visited > maxNodes {
		return nil, errors.New("there are too many nodes")
	}
	for _, c := range fs.chunks {
		if logical < c.logical || logical-c.logical >= c.length {
			continue
		}
		at := c.physical + (logical - c.logical)
		if at > 1<<50 {
			return nil, fmt.Errorf("node %d is said to be at %d", logical, at)
		}
		b := make([]byte, fs.nodeSize)
		if _, err := fs.r.ReadAt(b, int64(at)); err != nil {
			return nil, fmt.Errorf("reading node %d: %w", logical, err)
		}
		if err := checkSum(b); err != nil {
			return nil, fmt.Errorf("node %d: %w", logical, err)
		}
		if !bytes.Equal(b[0x20:0x30], fs.fsid) || binary.LittleEndian.Uint64(b[0x30:]) != logical {
			return nil, fmt.Errorf("node %d says it is another", logical)
		}
		return b, nil
	}
	return nil, fmt.Errorf("no chunk holds node %d", logical)
}

// walk calls visit for every item below a node whose level is under limit.
func (fs *btrfs) walk(logical uint64, limit byte, visit func(item) error) error {
	b, err := fs.node(logical)
	if err != nil {
		return err
	}
	count, level := int(binary.LittleEndian.Uint32(b[0x60:])), b[0x64]
	if level >= limit {
		return fmt.Errorf("node %d has level %d", logical, level)
	}
	body := b[nodeHeader:]
	each := leafItem
	if level > 0 {
		each = nodePointer
	}
	if count < 0 || count > len(body)/each {
		return fmt.Errorf("node %d has %d items", logical, count)
	}
	for i := range count {
		e := body[i*each:][:each]
		if level > 0 {
			if err := fs.walk(binary.LittleEndian.Uint64(e[17:]), level, visit); err != nil {
				return err
			}
			continue
		}
		offset, size := uint64(binary.LittleEndian.Uint32(e[17:])), uint64(binary.LittleEndian.Uint32(e[21:]))
		if offset+size > uint64(len(body)) {
			return fmt.Errorf("node %d has an item of %d bytes at %d", logical, size, offset)
		}
		if err := visit(item{
			object: binary.LittleEndian.Uint64(e), typ: e[8], offset: binary.LittleEndian.Uint64(e[9:]),
			data: body[offset : offset+size],
		}); err != nil {
			return err
		}
	}
	return nil
}

// checkSum compares the crc32c that starts a superblock or node.
func checkSum(b []byte) error {
	got := crc32.Checksum(b[32:], crc32.MakeTable(crc32.Castagnoli))
	if want := binary.LittleEndian.Uint32(b); got != want {
		return fmt.Errorf("its checksum is %08x, want %08x", got, want)
	}
	return nil
}
