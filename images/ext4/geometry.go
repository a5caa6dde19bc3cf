package ext4

import "fmt"

// geometry is where the fixed parts of the file system are. It follows from
// the size alone.
type geometry struct {
	blocks         uint64
	groups         int
	inodesPerGroup int
	gdtBlocks      int // of group descriptors
	reservedGDT    int // blocks behind them for resize2fs
	journalBlocks  int
}

func newGeometry(size int64, bytesPerInode int) (geometry, error) {
	// The limits keep block numbers within 32 bits and leave resize2fs room.
	if size < 8<<20 || size > 1<<40 {
		return geometry{}, fmt.Errorf("size %d is outside 8 MiB to 1 TiB", size)
	}
	g := geometry{blocks: uint64(size / blockSize)}
	for {
		g.groups = int((g.blocks + blocksPerGroup - 1) / blocksPerGroup)
		g.gdtBlocks = (g.groups + descsPerBlock - 1) / descsPerBlock
		g.reservedGDT = reservedGDT(g.blocks, g.gdtBlocks)
		inodes := (int(g.blocks)*blockSize/bytesPerInode + g.groups - 1) / g.groups
		g.inodesPerGroup = min((inodes+inodesPerBlock-1)/inodesPerBlock*inodesPerBlock, blocksPerGroup)
		if g.groups < 2 {
			break
		}
		// A last group too small for its own metadata is left unused, as
		// mke2fs does.
		last := g.groups - 1
		if g.groupBlocks(last) >= g.overhead(last)+50 {
			break
		}
		g.blocks = uint64(last) * blocksPerGroup
	}
	g.journalBlocks = journalBlocks(g.blocks)
	return g, nil
}

// reservedGDT is how many descriptor blocks a file system 1024 times as large
// needs besides those in use, at most what the resize inode can name
// (calc_reserved_gdt_blocks in e2fsprogs' lib/ext2fs/initialize.c).
func reservedGDT(blocks uint64, inUse int) int {
	grown := min(blocks*1024, 1<<32-1)
	groups := int((grown + blocksPerGroup - 1) / blocksPerGroup)
	return min(max((groups+descsPerBlock-1)/descsPerBlock-inUse, 0), addrsPerBlock)
}

// journalBlocks is e2fsprogs' ext2fs_default_journal_size.
func journalBlocks(blocks uint64) int {
	for _, step := range []struct {
		below   uint64 // in units of 1024 blocks
		journal int
	}{{32, 1024}, {256, 4096}, {512, 8192}, {4096, 16384}, {8192, 32768}, {16384, 65536}, {32768, 131072}} {
		if blocks < step.below<<10 {
			return step.journal
		}
	}
	return 262144
}

func (g geometry) inodeTableBlocks() int { return g.inodesPerGroup / inodesPerBlock }

func (g geometry) firstBlock(group int) uint64 { return uint64(group) * blocksPerGroup }

func (g geometry) groupBlocks(group int) int {
	return int(min(g.blocks-g.firstBlock(group), blocksPerGroup))
}

// hasSuper tells whether a group starts with a copy of the superblock and the
// descriptors (sparse_super: 0, 1 and the powers of 3, 5 and 7).
func hasSuper(group int) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// bitmapAt is the block of a group's block bitmap; the inode bitmap and the
// inode table follow it.
func (g geometry) bitmapAt(group int) uint64 {
	at := g.firstBlock(group)
	if hasSuper(group) {
		at += uint64(1 + g.gdtBlocks + g.reservedGDT)
	}
	return at
}

// overhead is how many blocks of a group are not for files.
func (g geometry) overhead(group int) int {
	return int(g.bitmapAt(group)-g.firstBlock(group)) + 2 + g.inodeTableBlocks()
}

// inodeAt is the position of an inode in the image, in bytes.
func (g geometry) inodeAt(number uint32) int64 {
	group, index := int(number-1)/g.inodesPerGroup, int(number-1)%g.inodesPerGroup
	return int64(g.bitmapAt(group)+2)*blockSize + int64(index)*inodeSize
}
