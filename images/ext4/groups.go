package ext4

import (
	"encoding/binary"
	"fmt"

	"github.com/imagectl/imagectl/images/fstree"
)

// writeGroups writes what describes the rest: bitmaps, group descriptors and
// superblocks with their copies.
func (f *filesystem) writeGroups(root *fstree.Node) error {
	dirs := make([]int, f.geo.groups)
	_ = root.Walk(func(n *fstree.Node) error {
		if n.Type == fstree.Dir {
			dirs[int(f.numbers[n]-1)/f.geo.inodesPerGroup]++
		}
		return nil
	})
	var table []byte
	for g := range f.geo.groups {
		desc, err := f.writeBitmaps(g)
		if err != nil {
			return err
		}
		desc.UsedDirs = uint16(dirs[g])
		desc.Checksum = uint16(crc32c(crc32c32(f.seed, uint32(g)), encode(desc)))
		table = append(table, encode(desc)...)
	}
	for g := range f.geo.groups {
		if !hasSuper(g) {
			continue
		}
		super := f.superblock(g)
		raw := encode(super)
		super.Checksum = crc32c(^uint32(0), raw[:len(raw)-4])
		at := int64(f.geo.firstBlock(g)) * blockSize
		first := at
		if g == 0 {
			first += 1024 // room for a boot sector
		}
		if _, err := f.w.WriteAt(encode(super), first); err != nil {
			return fmt.Errorf("writing the ext4 superblock of group %d: %w", g, err)
		}
		if _, err := f.w.WriteAt(table, at+blockSize); err != nil {
			return fmt.Errorf("writing the ext4 descriptors of group %d: %w", g, err)
		}
	}
	return nil
}

// writeBitmaps writes both bitmaps of a group and describes it, but for the
// directory count and the descriptor's checksum.
func (f *filesystem) writeBitmaps(group int) (groupDesc, error) {
	usedInodes := min(max(f.usedInodes()-group*f.geo.inodesPerGroup, 0), f.geo.inodesPerGroup)
	blocks := f.alloc.bitmap(group)
	inodes := make([]byte, blockSize)
	setBits(inodes, 0, usedInodes)
	setBits(inodes, f.geo.inodesPerGroup, 8*blockSize)
	at := f.geo.bitmapAt(group)
	for i, b := range [][]byte{blocks, inodes} {
		if err := f.writeBlocks(b, at+uint64(i)); err != nil {
			return groupDesc{}, err
		}
	}
	blockSum, inodeSum := crc32c(f.seed, blocks), crc32c(f.seed, inodes[:f.geo.inodesPerGroup/8])
	free := uint16(f.geo.inodesPerGroup - usedInodes)
	return groupDesc{
		BlockBitmap: uint32(at), InodeBitmap: uint32(at + 1), InodeTable: uint32(at + 2),
		FreeBlocks: uint16(f.alloc.freeIn(group)), FreeInodes: free, UnusedInodes: free,
		Flags:           groupInodeZeroed,
		BlockBitmapCsum: uint16(blockSum), BlockBitmapCsumHigh: uint16(blockSum >> 16),
		InodeBitmapCsum: uint16(inodeSum), InodeBitmapCsumHigh: uint16(inodeSum >> 16),
	}, nil
}

// superblock is the copy for a group, without its checksum.
func (f *filesystem) superblock(group int) superblock {
	inodes := f.geo.groups * f.geo.inodesPerGroup
	made := uint32(fstree.Entry{}.Unix(f.modTime)) // fits: the root's inode has it
	s := superblock{
		InodesCount:    uint32(inodes),
		BlocksLow:      uint32(f.geo.blocks),
		ReservedLow:    uint32(f.geo.blocks / 20), // 5 % for root, as mke2fs
		FreeBlocksLow:  uint32(f.alloc.free()),
		FreeInodes:     uint32(inodes - f.usedInodes()),
		LogBlockSize:   2, // 1024 << 2
		LogClusterSize: 2,
		BlocksPerGroup: blocksPerGroup, ClustersPerGroup: blocksPerGroup,
		InodesPerGroup:  uint32(f.geo.inodesPerGroup),
		WriteTime:       made,
		MaxMountCount:   0xFFFF, // no check by count
		Magic:           superMagic,
		State:           stateClean,
		Errors:          errorsRemountRO,
		LastCheck:       made,
		Revision:        1, // EXT4_DYNAMIC_REV
		FirstInode:      inodeFirst,
		InodeSize:       inodeSize,
		BlockGroup:      uint16(group),
		FeatureCompat:   compatHasJournal | compatExtAttr | compatResizeInode | compatDirIndex,
		FeatureIncompat: incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG,
		FeatureROCompat: roCompatSparseSuper | roCompatLargeFile | roCompatHugeFile | roCompatDirNlink |
			roCompatExtraIsize | roCompatMetadataCsum,
		UUID:              f.o.UUID,
		ReservedGDTBlocks: uint16(f.geo.reservedGDT),
		JournalInode:      inodeJournal,
		HashSeed:          f.o.HashSeed,
		HashVersion:       hashHalfMD4,
		JournalBackupType: journalBackup,
		DescSize:          descSize,
		DefaultMountOpts:  defaultXattrACL,
		MkfsTime:          made,
		MinExtraIsize:     extraIsize,
		WantExtraIsize:    extraIsize,
		Flags:             flagSignedHash,
		LogGroupsPerFlex:  4, // for the groups that resize2fs adds
		ChecksumType:      checksumCRC32C,
	}
	copy(s.Label[:], f.o.Label)
	// The journal's map again, should its inode be lost.
	for i := range 15 {
		s.JournalBlocks[i] = binary.LittleEndian.Uint32(f.journal.Block[4*i:])
	}
	s.JournalBlocks[15], s.JournalBlocks[16] = f.journal.SizeHigh, f.journal.SizeLow
	return s
}
