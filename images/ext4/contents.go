package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/imagectl/imagectl/images/fstree"
)

// addNode writes one node's content and inode.
func (f *filesystem) addNode(n *fstree.Node) error {
	number := f.numbers[n]
	ino, err := f.newInode(n)
	if err != nil {
		return err
	}
	switch n.Type {
	case fstree.Dir:
		data := f.directory(n)
		ino.setSize(int64(len(data)))
		err = f.addBytes(number, &ino, data)
	case fstree.File:
		err = f.addFile(number, &ino, n.Content)
	case fstree.Symlink:
		ino.setSize(int64(len(n.Link)))
		if len(n.Link) <= fastSymlinkMax {
			copy(ino.Block[:], n.Link)
		} else {
			err = f.addBytes(number, &ino, []byte(n.Link))
		}
	}
	if err != nil {
		return err
	}
	return f.putInode(number, ino)
}

// addBytes stores content that is at hand.
func (f *filesystem) addBytes(number uint32, ino *inode, data []byte) error {
	return f.store(number, ino, int64(len(data)), func(write func([]byte) error) error { return write(data) })
}

func (f *filesystem) addFile(number uint32, ino *inode, c fstree.Content) error {
	ino.setSize(c.Size())
	return f.store(number, ino, c.Size(), func(write func([]byte) error) error {
		return fstree.ReadBlocks(c, f.buf, write)
	})
}

// store allocates size bytes for an inode and lets fill write them in pieces
// of whole blocks, the last excepted.
func (f *filesystem) store(number uint32, ino *inode, size int64, fill func(write func([]byte) error) error) error {
	extents, err := f.alloc.take((size + blockSize - 1) / blockSize)
	if err != nil {
		return err
	}
	if err := f.setExtents(number, ino, extents); err != nil {
		return err
	}
	return fill(func(p []byte) error {
		for len(p) > 0 {
			e := &extents[0]
			n := min(len(p), int(e.Length)*blockSize)
			if err := f.writeBlocks(p[:n], e.start()); err != nil {
				return err
			}
			taken := (n + blockSize - 1) / blockSize
			at := e.start() + uint64(taken)
			e.Length -= uint16(taken)
			e.StartHigh, e.StartLow = uint16(at>>32), uint32(at)
			if e.Length == 0 {
				extents = extents[1:]
			}
			p = p[n:]
		}
		return nil
	})
}

// writeBlocks writes p from a block on, leaving out blocks of zeros: the
// target reads as zeros where nothing was written.
func (f *filesystem) writeBlocks(p []byte, block uint64) error {
	for len(p) > 0 {
		zeros := leading(p, true)
		p, block = p[zeros:], block+uint64((zeros+blockSize-1)/blockSize)
		data := leading(p, false)
		if _, err := f.w.WriteAt(p[:data], int64(block)*blockSize); err != nil {
			return fmt.Errorf("writing ext4 block %d: %w", block, err)
		}
		p, block = p[data:], block+uint64((data+blockSize-1)/blockSize)
	}
	return nil
}

// leading is the length of the blocks at the start of p that are all zero, or
// all not.
func leading(p []byte, zero bool) int {
	n := 0
	for n < len(p) {
		b := p[n:min(n+blockSize, len(p))]
		if isZero := b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]); isZero != zero {
			break
		}
		n += len(b)
	}
	return n
}

// directory lays out the blocks of a directory: "." and "..", the children in
// order, and a checksum at the end of each block.
func (f *filesystem) directory(n *fstree.Node) []byte {
	d := dirBlocks{seed: f.inodeSeed(f.numbers[n])}
	d.add(f.numbers[n], ".", fstree.Dir)
	d.add(f.numbers[n.Parent], "..", fstree.Dir)
	for _, c := range n.Children {
		d.add(f.numbers[c], c.Name, c.Type)
	}
	d.endBlock()
	if n == f.lostFound {
		// e2fsck must find room here when it cannot allocate any: 16 KiB, as
		// mke2fs makes it.
		for len(d.out) < 4*blockSize {
			d.add(0, "", fstree.Dir)
			d.endBlock()
		}
	}
	return d.out
}

// dirBlocks builds ext4_dir_entry_2 records. The last one of a block reaches
// to its checksum.
type dirBlocks struct {
	seed uint32
	out  []byte // finished blocks
	cur  []byte
	last int // start of the last record in cur
}

func (d *dirBlocks) add(number uint32, name string, t fstree.Type) {
	length := (8 + len(name) + 3) / 4 * 4
	if len(d.cur)+length > blockSize-dirTailSize {
		d.endBlock()
	}
	kinds := map[fstree.Type]byte{fstree.File: 1, fstree.Dir: 2, fstree.Symlink: 7} // EXT4_FT_*
	kind := kinds[t]
	if number == 0 {
		kind = 0
	}
	d.last = len(d.cur)
	d.cur = binary.LittleEndian.AppendUint32(d.cur, number)
	d.cur = binary.LittleEndian.AppendUint16(d.cur, uint16(length))
	d.cur = append(d.cur, byte(len(name)), kind)
	d.cur = append(d.cur, name...)
	d.cur = append(d.cur, make([]byte, length-8-len(name))...)
}

func (d *dirBlocks) endBlock() {
	end := blockSize - dirTailSize
	binary.LittleEndian.PutUint16(d.cur[d.last+4:], uint16(end-d.last))
	block := make([]byte, blockSize)
	copy(block, d.cur)
	binary.LittleEndian.PutUint16(block[end+4:], dirTailSize)
	block[end+7] = dirTailType
	binary.LittleEndian.PutUint32(block[end+8:], crc32c(d.seed, block[:end]))
	d.out = append(d.out, block...)
	d.cur, d.last = d.cur[:0], 0
}
