package squashfs

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imagectl/imagectl/images/fstree"
)

// tables makes the inode and directory tables. Every inode names where its
// listing is, and every listing names where the inodes of its entries are, so
// both grow together from the leaves to the root.
type tables struct {
	inodes   metadata
	dirs     metadata
	layouts  map[*fstree.Node]*layout
	numbers  map[*fstree.Node]uint32
	refs     []uint64 // of each inode by number less one: the export table
	ids      []uint32
	idIndex  map[uint32]uint16
	modTime  time.Time
	listings map[*fstree.Node]listing
}

// listing is where the entries of a directory are.
type listing struct {
	start   position
	size    uint32
	indices []indexEntry
}

type indexEntry struct {
	dirIndex
	name string
}

func newTables(root *fstree.Node, layouts map[*fstree.Node]*layout, enc *zstd.Encoder, modTime time.Time) *tables {
	t := &tables{
		inodes: metadata{enc: enc}, dirs: metadata{enc: enc},
		layouts: layouts, modTime: modTime,
		numbers:  map[*fstree.Node]uint32{},
		idIndex:  map[uint32]uint16{},
		listings: map[*fstree.Node]listing{},
	}
	// Breadth first, so that siblings have consecutive numbers: a listing
	// stores them as 16-bit differences.
	for queue := []*fstree.Node{root}; len(queue) > 0; queue = queue[1:] {
		t.numbers[queue[0]] = uint32(len(t.numbers) + 1)
		queue = append(queue, queue[0].Children...)
	}
	t.refs = make([]uint64, len(t.numbers))
	return t
}

// addRoot encodes the whole tree and returns the reference of the root's inode.
func (t *tables) addRoot(root *fstree.Node) (uint64, error) {
	if err := t.addListing(root); err != nil {
		return 0, err
	}
	if err := t.addInode(root); err != nil {
		return 0, err
	}
	return t.refs[t.numbers[root]-1], nil
}

// addListing writes the inodes of everything in dir, side by side, and then
// dir's listing.
func (t *tables) addListing(dir *fstree.Node) error {
	for _, c := range dir.Children {
		if c.Type == fstree.Dir {
			if err := t.addListing(c); err != nil {
				return err
			}
		}
	}
	for _, c := range dir.Children {
		if err := t.addInode(c); err != nil {
			return err
		}
	}
	t.listings[dir] = t.list(dir.Children)
	return nil
}

// list writes a listing as runs of entries that share a header. A run starts
// anew with each metadata block of the listing, so that the index can lead the
// kernel to it.
func (t *tables) list(children []*fstree.Node) listing {
	l := listing{start: t.dirs.position()}
	for len(children) > 0 {
		at := t.dirs.position()
		if last := l.lastBlock(); at.block != last {
			l.indices = append(l.indices, indexEntry{
				dirIndex: dirIndex{Position: l.size, StartBlock: at.block, NameSize: uint32(len(children[0].Name) - 1)},
				name:     children[0].Name,
			})
		}
		n := t.runLength(children, int(at.offset))
		header := dirHeader{Count: uint32(n - 1), StartBlock: t.inodeAt(children[0]).block, Number: t.numbers[children[0]]}
		run := encode(header)
		for _, c := range children[:n] {
			run = append(run, encode(dirEntry{
				Offset:   t.inodeAt(c).offset,
				Number:   int16(t.numbers[c] - header.Number),
				Type:     basicType(c),
				NameSize: uint16(len(c.Name) - 1),
			})...)
			run = append(run, c.Name...)
		}
		t.dirs.write(run)
		l.size += uint32(len(run))
		children = children[n:]
	}
	return l
}

func (l *listing) lastBlock() uint32 {
	if n := len(l.indices); n > 0 {
		return l.indices[n-1].StartBlock
	}
	return l.start.block
}

// runLength is how many of the children can follow a header at this offset of a
// metadata block.
func (t *tables) runLength(children []*fstree.Node, offset int) int {
	first := children[0]
	offset += 12 // the header
	n := 0
	for _, c := range children {
		far := t.numbers[c]-t.numbers[first] > math.MaxInt16
		if n == maxRun || far || t.inodeAt(c).block != t.inodeAt(first).block || n > 0 && offset >= metadataSize {
			break
		}
		offset += 8 + len(c.Name)
		n++
	}
	return n
}

func (t *tables) inodeAt(n *fstree.Node) position {
	ref := t.refs[t.numbers[n]-1]
	return position{block: uint32(ref >> 16), offset: uint16(ref)}
}

func (t *tables) addInode(n *fstree.Node) error {
	head, err := t.header(n)
	if err != nil {
		return fmt.Errorf("writing %s to squashfs: %w", n.Path, err)
	}
	t.refs[head.Number-1] = t.inodes.position().ref()
	switch n.Type {
	case fstree.Dir:
		return t.addDirInode(n, head)
	case fstree.File:
		t.addFileInode(n, head)
	case fstree.Symlink:
		t.inodes.put(symlinkInode{inodeHeader: head, Links: 1, Size: uint32(len(n.Link))})
		t.inodes.write([]byte(n.Link))
	}
	return nil
}

func (t *tables) addDirInode(n *fstree.Node, head inodeHeader) error {
	parent := t.numbers[n.Parent]
	if n.Parent == n {
		parent = uint32(len(t.numbers)) + 1 // as mksquashfs: no inode has it
	}
	l := t.listings[n]
	// The size counts "." and "..", which are not stored, as 3 bytes.
	size := l.size + 3
	if size <= math.MaxUint16 && len(l.indices) == 0 {
		t.inodes.put(dirInode{inodeHeader: head, StartBlock: l.start.block, Links: n.Links(),
			Size: uint16(size), Offset: l.start.offset, Parent: parent})
		return nil
	}
	if len(l.indices) > math.MaxUint16 {
		return fmt.Errorf("writing %s to squashfs: the directory has %d entries, too many for its index", n.Path, len(n.Children))
	}
	head.Type = typeLongDir
	t.inodes.put(longDirInode{inodeHeader: head, Links: n.Links(), Size: size, StartBlock: l.start.block,
		Parent: parent, Indices: uint16(len(l.indices)), Offset: l.start.offset, Xattr: noXattr})
	for _, i := range l.indices {
		t.inodes.put(i.dirIndex)
		t.inodes.write([]byte(i.name))
	}
	return nil
}

func (t *tables) addFileInode(n *fstree.Node, head inodeHeader) {
	l, size := t.layouts[n], n.Content.Size()
	if size <= math.MaxUint32 && l.start <= math.MaxUint32 && l.sparse == 0 {
		t.inodes.put(fileInode{inodeHeader: head, StartBlock: uint32(l.start), Fragment: l.fragment,
			Offset: l.offset, Size: uint32(size)})
	} else {
		head.Type = typeLongReg
		t.inodes.put(longFileInode{inodeHeader: head, StartBlock: l.start, Size: uint64(size), Sparse: l.sparse,
			Links: 1, Fragment: l.fragment, Offset: l.offset, Xattr: noXattr})
	}
	t.inodes.put(l.blocks)
}

func (t *tables) header(n *fstree.Node) (inodeHeader, error) {
	uid, err := t.id(n.UID)
	if err != nil {
		return inodeHeader{}, err
	}
	gid, err := t.id(n.GID)
	if err != nil {
		return inodeHeader{}, err
	}
	modTime, err := seconds(n.Unix(t.modTime))
	if err != nil {
		return inodeHeader{}, err
	}
	return inodeHeader{Type: basicType(n), Mode: uint16(n.Mode), UID: uid, GID: gid, ModTime: modTime, Number: t.numbers[n]}, nil
}

func (t *tables) id(id uint32) (uint16, error) {
	i, ok := t.idIndex[id]
	if !ok {
		if len(t.ids) == maxIDs {
			return 0, errors.New("the tree has more than 65535 different user and group ids")
		}
		i = uint16(len(t.ids))
		t.idIndex[id] = i
		t.ids = append(t.ids, id)
	}
	return i, nil
}

// seconds fits a time into the unsigned 32 bits that squashfs has for it.
func seconds(unix int64) (uint32, error) {
	if unix < 0 || unix > math.MaxUint32 {
		return 0, fmt.Errorf("the modification time %s is outside 1970 to 2106, which is all the format can hold",
			time.Unix(unix, 0).UTC().Format(time.RFC3339))
	}
	return uint32(unix), nil
}

func basicType(n *fstree.Node) uint16 {
	switch n.Type {
	case fstree.Dir:
		return typeDir
	case fstree.Symlink:
		return typeSymlink
	default:
		return typeFile
	}
}
