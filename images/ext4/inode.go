package ext4

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// inodeSeed starts the checksum of everything that belongs to one inode. All
// generations are 0.
func (f *filesystem) inodeSeed(number uint32) uint32 {
	return crc32c32(crc32c32(f.seed, number), 0)
}

// newInode fills in what is common to all inodes with the node's metadata.
func (f *filesystem) newInode(n *fstree.Node) (inode, error) {
	kinds := map[fstree.Type]uint16{fstree.Dir: modeDir, fstree.File: modeFile, fstree.Symlink: modeSymlink}
	ino := inode{
		Mode: kinds[n.Type] | uint16(n.Mode),
		UID:  uint16(n.UID), UIDHigh: uint16(n.UID >> 16),
		GID: uint16(n.GID), GIDHigh: uint16(n.GID >> 16),
		Links:      uint16(n.Links()),
		ExtraIsize: extraIsize,
	}
	if n.Links() > maxLinks {
		ino.Links = 1
	}
	modTime, err := timestamp(n.Unix(f.modTime))
	if err != nil {
		return inode{}, err
	}
	made, err := timestamp(fstree.Entry{}.Unix(f.modTime))
	if err != nil {
		return inode{}, err
	}
	ino.ModTime, ino.ModExtra = modTime.seconds, modTime.extra
	ino.AccessTime, ino.AccessExtra = modTime.seconds, modTime.extra
	ino.ChangeTime, ino.ChangeExtra = made.seconds, made.extra
	ino.CreateTime, ino.CreateExtra = made.seconds, made.extra
	return ino, nil
}

func (ino *inode) setSize(n int64) {
	ino.SizeLow, ino.SizeHigh = uint32(n), uint32(n>>32)
}

// setBlocks counts the blocks that belong to an inode, in sectors.
func (ino *inode) setBlocks(n int64) {
	sectors := uint64(n) * (blockSize / 512)
	ino.BlocksLow, ino.BlocksHigh = uint32(sectors), uint16(sectors>>32)
}

// setExtents puts the map of an inode's blocks into the inode, and what does
// not fit there into blocks of their own.
func (f *filesystem) setExtents(number uint32, ino *inode, extents []extent) error {
	var blocks int64
	for _, e := range extents {
		blocks += int64(e.Length)
	}
	ino.Flags |= inodeUsesExtents
	if len(extents) <= extentsInInode {
		copy(ino.Block[:], encode(extentHeader{Magic: extentMagic, Entries: uint16(len(extents)), Max: extentsInInode}))
		copy(ino.Block[12:], encode(extents))
		ino.setBlocks(blocks)
		return nil
	}
	var indices []extentIndex
	for rest := extents; len(rest) > 0; {
		n := min(len(rest), extentsInBlock)
		at, err := f.alloc.takeOne()
		if err != nil {
			return err
		}
		leaf := make([]byte, blockSize)
		copy(leaf, encode(extentHeader{Magic: extentMagic, Entries: uint16(n), Max: extentsInBlock}))
		copy(leaf[12:], encode(rest[:n]))
		end := 12 + 12*extentsInBlock
		binary.LittleEndian.PutUint32(leaf[end:], crc32c(f.inodeSeed(number), leaf[:end]))
		if err := f.writeBlocks(leaf, at); err != nil {
			return err
		}
		indices = append(indices, extentIndex{Logical: rest[0].Logical, LeafLow: uint32(at), LeafHigh: uint16(at >> 32)})
		rest = rest[n:]
	}
	if len(indices) > extentsInInode {
		return fmt.Errorf("the file has %d extents, %d can be written", len(extents), extentsInInode*extentsInBlock)
	}
	copy(ino.Block[:], encode(extentHeader{Magic: extentMagic, Entries: uint16(len(indices)), Max: extentsInInode, Depth: 1}))
	copy(ino.Block[12:], encode(indices))
	ino.setBlocks(blocks + int64(len(indices)))
	return nil
}

// putInode writes an inode with its checksum into the inode table.
func (f *filesystem) putInode(number uint32, ino inode) error {
	sum := crc32c(f.inodeSeed(number), encode(ino))
	ino.ChecksumLow, ino.ChecksumHigh = uint16(sum), uint16(sum>>16)
	if _, err := f.w.WriteAt(encode(ino), f.geo.inodeAt(number)); err != nil {
		return fmt.Errorf("writing ext4 inode %d: %w", number, err)
	}
	return nil
}

// stamp is a time as an inode holds it: 32 signed bits of seconds and two more
// in the extra field.
type stamp struct{ seconds, extra uint32 }

func timestamp(unix int64) (stamp, error) {
	low := int64(int32(unix)) // deliberately cut
	epoch := (unix - low) >> 32
	if epoch < 0 || epoch > 3 {
		return stamp{}, fmt.Errorf("the time %s is outside 1901 to 2446, which is all the format can hold",
			time.Unix(unix, 0).UTC().Format(time.RFC3339))
	}
	return stamp{seconds: uint32(low), extra: uint32(epoch)}, nil
}
