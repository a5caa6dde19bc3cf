package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// dataExtent is a piece of a file on disk.
type dataExtent struct {
	at, length    uint64
	inode, offset uint64
}

// contents collects the items of the file system tree and of the checksum tree
// while it writes the data.
type contents struct {
	w       io.WriterAt
	space   *space
	modTime time.Time
	inodes  map[*fstree.Node]uint64
	items   []item
	extents []dataExtent
	sums    []byte // of the sectors of the extents, in order
	buf     []byte
}

func (c *contents) add(root *fstree.Node) error {
	c.inodes = map[*fstree.Node]uint64{}
	_ = root.Walk(func(n *fstree.Node) error {
		c.inodes[n] = idFirstFree + uint64(len(c.inodes))
		return nil
	})
	// Inodes are numbered in this order, so the items come out sorted.
	return root.Walk(func(n *fstree.Node) error {
		if err := c.addNode(n); err != nil {
			return fmt.Errorf("writing %s: %w", n.Path, err)
		}
		return nil
	})
}

// put appends an item of the file system tree.
func (c *contents) put(k key, data ...[]byte) {
	c.items = append(c.items, item{key: k, data: slices.Concat(data...)})
}

func (c *contents) addNode(n *fstree.Node) error {
	number := c.inodes[n]
	ino := newInode(n, c.modTime)
	var body []item // what follows the inode's own items
	var err error
	switch n.Type {
	case fstree.Dir:
		for _, child := range n.Children {
			ino.Size += 2 * uint64(len(child.Name)) // each name is there twice
		}
		body, err = c.listing(n)
	case fstree.Symlink:
		if len(n.Link) > maxTarget {
			return fmt.Errorf("the target has %d bytes, a node holds %d", len(n.Link), maxTarget)
		}
		ino.Size = uint64(len(n.Link))
		ino.Bytes = ino.Size
		body = []item{inline(number, []byte(n.Link))}
	case fstree.File:
		ino.Size = uint64(n.Content.Size())
		body, ino.Bytes, err = c.file(number, n.Content)
	}
	if err != nil {
		return err
	}
	c.put(key{number, typeInode, 0}, encode(ino))
	name, index := "..", uint64(0)
	if n.Parent != n {
		name, index = n.Name, c.indexOf(n)
	}
	c.put(key{number, typeInodeRef, c.inodes[n.Parent]}, encode(inodeRef{Index: index, NameLength: uint16(len(name))}), []byte(name))
	c.items = append(c.items, body...)
	return nil
}

// newInode fills in the metadata; size and bytes are the caller's.
func newInode(n *fstree.Node, modTime time.Time) inodeItem {
	kinds := map[fstree.Type]uint32{fstree.Dir: modeDir, fstree.File: modeFile, fstree.Symlink: modeSymlink}
	changed := timespec{Seconds: n.Unix(modTime)}
	made := timespec{Seconds: fstree.Entry{}.Unix(modTime)}
	return inodeItem{
		Generation: generation, TransID: generation,
		Links: 1, // of directories too
		UID:   n.UID, GID: n.GID, Mode: kinds[n.Type] | n.Mode,
		AccessTime: changed, ModTime: changed, ChangeTime: made, CreateTime: made,
	}
}

// listing gives the names of a directory twice: by hash, and in order.
func (c *contents) listing(n *fstree.Node) ([]item, error) {
	kinds := map[fstree.Type]uint8{fstree.File: 1, fstree.Dir: 2, fstree.Symlink: 7} // BTRFS_FT_*
	number := c.inodes[n]
	var byHash, inOrder []item
	for i, child := range n.Children {
		data := append(encode(dirItem{
			Location: key{c.inodes[child], typeInode, 0}, TransID: generation,
			NameLength: uint16(len(child.Name)), Type: kinds[child.Type],
		}), child.Name...)
		byHash = append(byHash, item{key{number, typeDirItem, nameHash(child.Name)}, data})
		inOrder = append(inOrder, item{key{number, typeDirIndex, uint64(firstDirIndex + i)}, data})
	}
	slices.SortStableFunc(byHash, func(a, b item) int { return compareKeys(a.key, b.key) })
	out := make([]item, 0, 2*len(byHash))
	for _, it := range byHash {
		// Names of one hash share an item.
		if last := len(out) - 1; last >= 0 && out[last].key == it.key {
			out[last].data = slices.Concat(out[last].data, it.data)
			if len(out[last].data) > maxItem {
				return nil, fmt.Errorf("too many names with hash %d", it.Offset)
			}
			continue
		}
		out = append(out, it)
	}
	return append(out, inOrder...), nil
}

// indexOf is a node's place in its parent's listing.
func (c *contents) indexOf(n *fstree.Node) uint64 {
	i, _ := slices.BinarySearchFunc(n.Parent.Children, n.Name, func(c *fstree.Node, name string) int {
		return bytes.Compare([]byte(c.Name), []byte(name))
	})
	return uint64(firstDirIndex + i)
}

func inline(number uint64, data []byte) item {
	head := inlineExtent{Generation: generation, Size: uint64(len(data)), Type: fileInline}
	return item{key{number, typeExtentData, 0}, append(encode(head), data...)}
}

// file stores content and returns the items that say where, and the bytes it
// takes.
func (c *contents) file(number uint64, content fstree.Content) (items []item, stored uint64, err error) {
	size := content.Size()
	if size == 0 {
		return nil, 0, fstree.ReadBlocks(content, c.buf, nil)
	}
	if size < maxInline {
		var data []byte
		err := fstree.ReadBlocks(content, c.buf, func(b []byte) error { data = append(data, b...); return nil })
		return []item{inline(number, data)}, uint64(size), err
	}
	stored = (uint64(size) + sectorSize - 1) / sectorSize * sectorSize
	first := len(c.extents)
	for offset := uint64(0); offset < stored; {
		at, got, err := c.space.take(min(stored-offset, maxExtent))
		if err != nil {
			return nil, 0, err
		}
		c.extents = append(c.extents, dataExtent{at: at, length: got, inode: number, offset: offset})
		items = append(items, item{key{number, typeExtentData, offset}, encode(fileExtent{
			inlineExtent: inlineExtent{Generation: generation, Size: got, Type: fileRegular},
			DiskAt:       at, DiskBytes: got, Bytes: got,
		})})
		offset += got
	}
	return items, stored, c.writeData(content, c.extents[first:])
}

// writeData writes content to its extents and notes the checksum of each
// sector, the last padded with zeros. Runs of zeros are not written: the
// target reads as zeros where nothing was.
func (c *contents) writeData(content fstree.Content, extents []dataExtent) error {
	table := crc32.MakeTable(crc32.Castagnoli)
	offset := uint64(0)
	return fstree.ReadBlocks(content, c.buf, func(b []byte) error {
		if pad := len(b) % sectorSize; pad != 0 { // in buf, the last block only
			b = append(b, make([]byte, sectorSize-pad)...)
		}
		for s := 0; s < len(b); s += sectorSize {
			c.sums = binary.LittleEndian.AppendUint32(c.sums, crc32.Checksum(b[s:s+sectorSize], table))
		}
		for len(b) > 0 {
			for offset >= extents[0].offset+extents[0].length {
				extents = extents[1:]
			}
			e := extents[0]
			piece := b[:min(uint64(len(b)), e.offset+e.length-offset)]
			if zero := piece[0] == 0 && bytes.Equal(piece[:len(piece)-1], piece[1:]); !zero {
				at := e.at + offset - e.offset
				if _, err := c.w.WriteAt(piece, int64(at)); err != nil {
					return fmt.Errorf("writing btrfs data at %d: %w", at, err)
				}
			}
			b, offset = b[len(piece):], offset+uint64(len(piece))
		}
		return nil
	})
}

// checksums gives the items of the checksum tree.
func (c *contents) checksums() []item {
	// The kernel never makes longer ones: MAX_CSUM_ITEMS of fs/btrfs/file-item.c.
	const most = (leafSpace-2*slotSize)/4 - 1
	var out []item
	sums := c.sums
	for _, e := range c.extents {
		for at, left := e.at, int(e.length/sectorSize); left > 0; {
			n := min(left, most)
			out = append(out, item{key{idExtentCsum, typeExtentCsum, at}, sums[:4*n]})
			sums, left, at = sums[4*n:], left-n, at+uint64(n)*sectorSize
		}
	}
	return out
}
