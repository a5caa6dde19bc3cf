package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// Options of a file system. UUID must be set; the rest has good zero values.
type Options struct {
	// Label is at most 16 bytes.
	Label string
	UUID  [16]byte
	// HashSeed keys the hashed directories that Linux makes later on. It
	// should be as unpredictable as the UUID, and may be derived from it.
	HashSeed [16]byte
	// ModTime is the time of the file system and of entries without a time of
	// their own. Zero means 1970.
	ModTime time.Time
	// BytesPerInode decides how many files there can be. Zero means 4096, as
	// on Flatcar's ROOT.
	BytesPerInode int
}

// filesystem is one being made.
type filesystem struct {
	w         io.WriterAt
	o         Options
	geo       geometry
	alloc     *allocator
	seed      uint32 // of all checksums: the UUID's
	modTime   time.Time
	numbers   map[*fstree.Node]uint32
	lostFound *fstree.Node
	buf       []byte
	journal   inode
}

// Write makes a file system of size bytes (the last incomplete block is not
// used; 8 MiB to 1 TiB) that holds the tree and an empty lost+found. Where w is
// not written it must read as zeros: a fresh sparse file, or a disk after
// discarding. Content is streamed; blocks of zeros are not written.
func Write(w io.WriterAt, size int64, t *fstree.Tree, o Options) error {
	if len(o.Label) > 16 {
		return fmt.Errorf("making ext4: label %q is %d bytes long, 16 are possible", o.Label, len(o.Label))
	}
	if o.UUID == [16]byte{} {
		return errors.New("making ext4: the UUID is not set")
	}
	if o.BytesPerInode == 0 {
		o.BytesPerInode = 4096
	}
	if o.BytesPerInode < 1024 || o.BytesPerInode > 1<<26 {
		return fmt.Errorf("making ext4: %d bytes per inode is outside 1024 to 67108864", o.BytesPerInode)
	}
	geo, err := newGeometry(size, o.BytesPerInode)
	if err != nil {
		return fmt.Errorf("making ext4: %w", err)
	}
	f := &filesystem{w: w, o: o, geo: geo, seed: crc32c(^uint32(0), o.UUID[:]), modTime: o.ModTime, buf: make([]byte, 256*blockSize)}
	if f.alloc, err = newAllocator(geo); err != nil {
		return fmt.Errorf("making ext4 of %d bytes: %w", size, err)
	}
	root := t.Root()
	if err := f.number(root); err != nil {
		return fmt.Errorf("making ext4 of %d bytes: %w", size, err)
	}
	if err := f.addResizeInode(); err != nil {
		return fmt.Errorf("making ext4 of %d bytes: writing the resize inode: %w", size, err)
	}
	if err := f.addJournal(); err != nil {
		return fmt.Errorf("making ext4 of %d bytes: writing the journal: %w", size, err)
	}
	if err := root.Walk(func(n *fstree.Node) error {
		if err := f.addNode(n); err != nil {
			return fmt.Errorf("making ext4 of %d bytes: writing %s: %w", size, n.Path, err)
		}
		return nil
	}); err != nil {
		return err
	}
	return f.writeGroups(root)
}

// number gives every node its inode and adds lost+found to the root.
func (f *filesystem) number(root *fstree.Node) error {
	f.lostFound = &fstree.Node{Entry: fstree.Entry{Path: "lost+found", Mode: 0o700}, Name: "lost+found", Parent: root}
	for _, c := range root.Children {
		if c.Name == f.lostFound.Name {
			return errors.New("lost+found is in the tree; every ext4 has its own")
		}
	}
	root.Children = append([]*fstree.Node{f.lostFound}, root.Children...)
	f.numbers = map[*fstree.Node]uint32{root: inodeRoot}
	limit := uint64(f.geo.groups) * uint64(f.geo.inodesPerGroup)
	return root.Walk(func(n *fstree.Node) error {
		if n == root {
			return nil
		}
		number := uint64(inodeFirst + len(f.numbers) - 1)
		if number > limit {
			return fmt.Errorf("the tree has more entries than the %d inodes: make the file system larger", limit)
		}
		f.numbers[n] = uint32(number)
		return nil
	})
}

// usedInodes is how many of the inodes, counted from the first, are in use or
// reserved.
func (f *filesystem) usedInodes() int { return inodeFirst - 2 + len(f.numbers) }

// addResizeInode makes the file that owns the descriptor blocks kept for
// growth, so that nothing else can: a double-indirect block names each of
// those in group 0, which in turn names its copies in the other groups
// (ext2fs_create_resize_inode in e2fsprogs' lib/ext2fs/res_gdt.c).
func (f *filesystem) addResizeInode() error {
	at, err := f.alloc.takeOne()
	if err != nil {
		return err
	}
	blocks := int64(1)
	double := make([]byte, blockSize)
	for i := range f.geo.reservedGDT {
		own := uint64(1 + f.geo.gdtBlocks + i)
		slot := (f.geo.gdtBlocks + i) % addrsPerBlock
		binary.LittleEndian.PutUint32(double[4*slot:], uint32(own))
		copies, n := make([]byte, blockSize), 0
		for g := 1; g < f.geo.groups; g++ {
			if hasSuper(g) {
				binary.LittleEndian.PutUint32(copies[4*n:], uint32(own+f.geo.firstBlock(g)))
				n++
			}
		}
		if err := f.writeBlocks(copies, own); err != nil {
			return err
		}
		blocks += int64(1 + n)
	}
	if err := f.writeBlocks(double, at); err != nil {
		return err
	}
	ino, err := f.newInode(&fstree.Node{Entry: fstree.Entry{Type: fstree.File, Mode: 0o600}})
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(ino.Block[4*13:], uint32(at)) // EXT4_DIND_BLOCK
	ino.setSize((12 + addrsPerBlock + addrsPerBlock*addrsPerBlock) * blockSize)
	ino.setBlocks(blocks)
	return f.putInode(inodeResize, ino)
}

// addJournal makes an empty journal.
func (f *filesystem) addJournal() error {
	ino, err := f.newInode(&fstree.Node{Entry: fstree.Entry{Type: fstree.File, Mode: 0o600}})
	if err != nil {
		return err
	}
	super, err := binary.Append(nil, binary.BigEndian, journalSuper{
		Magic: journalMagic, BlockType: journalSuperblock2, BlockSize: blockSize,
		MaxLength: uint32(f.geo.journalBlocks), First: 1, Sequence: 1, UUID: f.o.UUID, Users: 1,
	})
	if err != nil {
		return err
	}
	size := int64(f.geo.journalBlocks) * blockSize
	ino.setSize(size)
	err = f.store(inodeJournal, &ino, size, func(write func([]byte) error) error { return write(super) })
	if err != nil {
		return err
	}
	f.journal = ino
	return f.putInode(inodeJournal, ino)
}
