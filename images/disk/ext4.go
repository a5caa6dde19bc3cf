package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Enough of ext4, read-only, to list what it holds: superblock, group
// descriptors, inodes with extents, directories. Offsets are those of
// fs/ext4/ext4.h and ext4_extents.h. Checksums are not looked at: whatever a
// damaged file system seems to hold, it is not taken for an empty one by chance.

var errNoExt4 = errors.New("there is no ext4")

const (
	ext4Super      = 1024
	ext4RootInode  = 2
	ext4InodeTable = 8 // in a group descriptor

	ext4NeedsRecovery = 0x4 // incompatible features
	ext4JournalDevice = 0x8
	ext4MetaBG        = 0x10
	ext4Extents       = 0x40
	ext464Bit         = 0x80
	ext4InlineData    = 0x8000

	ext4TypeMask, ext4Directory = 0xf000, 0x4000
	ext4ExtentsFlag             = 0x80000
	ext4ExtentMagic             = 0xf30a
	ext4DirectoryEntry          = 2 // a directory entry's file type
	ext4ChecksumEntry           = 0xde

	// maxDirectories and maxDirectoryBlocks bound a walk through a damaged file
	// system; an empty ROOT has five directories, of which lost+found has 4 blocks.
	maxDirectories     = 1024
	maxDirectoryBlocks = 256
)

type ext4 struct {
	r                      io.ReaderAt
	size                   int64
	block                  int64
	inodes, inodesPerGroup uint32
	inodeSize, descSize    int64
	descriptors            int64
	visited                int
}

// ext4Names lists what an ext4 of size bytes holds besides directories, which may
// be nested but must be empty otherwise.
func ext4Names(r io.ReaderAt, size int64) ([]string, error) {
	super := make([]byte, 1024)
	if size < ext4Super+int64(len(super)) {
		return nil, errNoExt4
	}
	if _, err := r.ReadAt(super, ext4Super); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint16(super[0x38:]) != 0xef53 {
		return nil, errNoExt4
	}
	fs := &ext4{
		r: r, size: size,
		inodes:         binary.LittleEndian.Uint32(super),
		inodesPerGroup: binary.LittleEndian.Uint32(super[0x28:]),
		inodeSize:      int64(binary.LittleEndian.Uint16(super[0x58:])),
		descSize:       32,
	}
	features := binary.LittleEndian.Uint32(super[0x60:])
	scale := binary.LittleEndian.Uint32(super[0x18:])
	if features&ext464Bit != 0 {
		fs.descSize = int64(binary.LittleEndian.Uint16(super[0xfe:]))
	}
	switch {
	case features&ext4Extents == 0 || features&(ext4JournalDevice|ext4MetaBG|ext4InlineData) != 0:
		return nil, fmt.Errorf("its ext4 has features %#x, with which it cannot be listed", features)
	case features&ext4NeedsRecovery != 0:
		return nil, errors.New("its ext4 was not unmounted cleanly: it has a journal to replay")
	case scale > 6:
		return nil, fmt.Errorf("its ext4 has blocks of 2 to the power of %d KiB", scale)
	}
	fs.block = 1024 << scale
	if fs.inodes < ext4RootInode || fs.inodesPerGroup == 0 || fs.inodeSize < 128 || fs.inodeSize > fs.block || fs.descSize < 32 || fs.descSize > fs.block {
		return nil, fmt.Errorf("its ext4 says it has %d inodes, %d to a group, of %d bytes, and descriptors of %d", fs.inodes, fs.inodesPerGroup, fs.inodeSize, fs.descSize)
	}
	fs.descriptors = fs.block
	if fs.block == 1024 {
		fs.descriptors = 2 * fs.block // the superblock has block 1 to itself
	}
	var names []string
	err := fs.walk(ext4RootInode, "", &names)
	slices.Sort(names)
	return names, err
}

// read reads n bytes at an offset that a damaged file system may have made up.
func (fs *ext4) read(at uint64, n int64) ([]byte, error) {
	if at > uint64(fs.size) || n > fs.size-int64(at) {
		return nil, fmt.Errorf("%d bytes are said to be at %d of %d", n, at, fs.size)
	}
	b := make([]byte, n)
	_, err := fs.r.ReadAt(b, int64(at))
	return b, err
}

func (fs *ext4) inode(number uint32) ([]byte, error) {
	if number == 0 || number > fs.inodes {
		return nil, fmt.Errorf("there is no inode %d", number)
	}
	group, index := int64((number-1)/fs.inodesPerGroup), int64((number-1)%fs.inodesPerGroup)
	d, err := fs.read(uint64(fs.descriptors+group*fs.descSize), fs.descSize)
	if err != nil {
		return nil, err
	}
	table := uint64(binary.LittleEndian.Uint32(d[ext4InodeTable:]))
	if fs.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	if table > uint64(fs.size/fs.block) {
		return nil, fmt.Errorf("an inode table is said to be at block %d", table)
	}
	return fs.read(table*uint64(fs.block)+uint64(index*fs.inodeSize), fs.inodeSize)
}

// walk adds what a directory and those below it hold, by path.
func (fs *ext4) walk(number uint32, path string, names *[]string) error {
	if fs.visited++; fs.visited > maxDirectories {
		return errors.New("its ext4 has too many directories")
	}
	inode, err := fs.inode(number)
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(inode)&ext4TypeMask != ext4Directory {
		return fmt.Errorf("inode %d, which %q names, is no directory", number, "/"+path)
	}
	if binary.LittleEndian.Uint32(inode[0x20:])&ext4ExtentsFlag == 0 {
		return fmt.Errorf("directory %q has no extents", "/"+path)
	}
	blocks, err := fs.blocks(inode[0x28:][:60])
	if err != nil {
		return fmt.Errorf("directory %q: %w", "/"+path, err)
	}
	for _, b := range blocks {
		entries, err := fs.read(b*uint64(fs.block), fs.block)
		if err != nil {
			return err
		}
		if err := fs.entries(entries, path, names); err != nil {
			return fmt.Errorf("directory %q: %w", "/"+path, err)
		}
	}
	return nil
}

// entries reads one block of a directory. That of an index looks like an entry of
// no file, as old kernels see it.
func (fs *ext4) entries(b []byte, path string, names *[]string) error {
	for len(b) >= 12 {
		number := binary.LittleEndian.Uint32(b)
		length, name, kind := int(binary.LittleEndian.Uint16(b[4:])), int(b[6]), b[7]
		if length < 12 || length > len(b) || 8+name > length {
			return fmt.Errorf("an entry has %d bytes, its name %d", length, name)
		}
		child := string(b[8 : 8+name])
		b = b[length:]
		if number == 0 || kind == ext4ChecksumEntry || child == "." || child == ".." {
			continue
		}
		if path != "" {
			child = path + "/" + child
		}
		if kind != ext4DirectoryEntry {
			*names = append(*names, fmt.Sprintf("%q", child))
			continue
		}
		if err := fs.walk(number, child, names); err != nil {
			return err
		}
	}
	return nil
}

// blocks lists the blocks of a directory whose extents are all in its inode, or
// one level below.
func (fs *ext4) blocks(tree []byte) ([]uint64, error) {
	leaves, depth, err := extents(tree)
	if err != nil || depth == 0 {
		return leaves, err
	}
	if depth > 1 {
		return nil, errors.New("it is too large to be looked at")
	}
	var out []uint64
	for _, leaf := range leaves {
		b, err := fs.read(leaf*uint64(fs.block), fs.block)
		if err != nil {
			return nil, err
		}
		more, depth, err := extents(b)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		if depth != 0 || len(out) > maxDirectoryBlocks {
			return nil, errors.New("it is too large to be looked at")
		}
	}
	return out, nil
}

// extents reads a node of the tree: blocks of content at depth 0, of nodes else.
func extents(b []byte) (blocks []uint64, depth int, err error) {
	count := int(binary.LittleEndian.Uint16(b[2:]))
	if binary.LittleEndian.Uint16(b) != ext4ExtentMagic || 12+12*count > len(b) {
		return nil, 0, errors.New("it has no tree of extents")
	}
	depth = int(binary.LittleEndian.Uint16(b[6:]))
	for i := range count {
		e := b[12+12*i:]
		if depth > 0 {
			blocks = append(blocks, uint64(binary.LittleEndian.Uint32(e[4:]))|uint64(binary.LittleEndian.Uint16(e[8:]))<<32)
			continue
		}
		start := uint64(binary.LittleEndian.Uint32(e[8:])) | uint64(binary.LittleEndian.Uint16(e[6:]))<<32
		for j := range uint64(binary.LittleEndian.Uint16(e[4:])) {
			if blocks = append(blocks, start+j); len(blocks) > maxDirectoryBlocks {
				return nil, 0, errors.New("it is too large to be looked at")
			}
		}
	}
	return blocks, depth, nil
}
