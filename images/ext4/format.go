package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

// The numbers and structures of fs/ext4/ext4.h, ext4_extents.h and (for the
// journal) include/linux/jbd2.h, in the order of their bytes on disk. All are
// little endian but the journal's.

const (
	blockSize      = 4096
	inodeSize      = 256
	extraIsize     = 32 // of the fields behind the 128 bytes of ext2's inode
	blocksPerGroup = 8 * blockSize
	descSize       = 64
	descsPerBlock  = blockSize / descSize
	inodesPerBlock = blockSize / inodeSize
	addrsPerBlock  = blockSize / 4

	inodeRoot    = 2 // EXT4_ROOT_INO
	inodeResize  = 7 // EXT4_RESIZE_INO
	inodeJournal = 8 // EXT4_JOURNAL_INO
	inodeFirst   = 11

	compatHasJournal  = 0x0004
	compatExtAttr     = 0x0008
	compatResizeInode = 0x0010
	compatDirIndex    = 0x0020

	incompatFiletype = 0x0002
	incompatExtents  = 0x0040
	incompat64bit    = 0x0080
	incompatFlexBG   = 0x0200

	roCompatSparseSuper  = 0x0001
	roCompatLargeFile    = 0x0002
	roCompatHugeFile     = 0x0008
	roCompatDirNlink     = 0x0020
	roCompatExtraIsize   = 0x0040
	roCompatMetadataCsum = 0x0400

	superMagic         = 0xEF53
	stateClean         = 1      // EXT4_VALID_FS
	errorsRemountRO    = 2      // EXT4_ERRORS_RO
	checksumCRC32C     = 1      // EXT4_CRC32C_CHKSUM
	hashHalfMD4        = 1      // DX_HASH_HALF_MD4
	flagSignedHash     = 1      // EXT2_FLAGS_SIGNED_HASH
	defaultXattrACL    = 0x000C // EXT4_DEFM_XATTR_USER | EXT4_DEFM_ACL
	journalBackup      = 1      // EXT3_JNL_BACKUP_BLOCKS
	groupInodeZeroed   = 4      // EXT4_BG_INODE_ZEROED
	inodeUsesExtents   = 0x80000
	maxLinks           = 65000 // EXT4_LINK_MAX; a directory with more says 1
	extentMagic        = 0xF30A
	maxExtentBlocks    = 32768 // EXT_INIT_MAX_LEN
	extentsInInode     = 4
	extentsInBlock     = (blockSize - 12) / 12
	fastSymlinkMax     = 59   // a target and its NUL fit into i_block
	dirTailSize        = 12   // ext4_dir_entry_tail
	dirTailType        = 0xDE // EXT4_FT_DIR_CSUM
	journalMagic       = 0xC03B3998
	journalSuperblock2 = 4 // JBD2_SUPERBLOCK_V2

	modeDir     = 0x4000
	modeFile    = 0x8000
	modeSymlink = 0xA000
)

type superblock struct {
	InodesCount       uint32
	BlocksLow         uint32
	ReservedLow       uint32
	FreeBlocksLow     uint32
	FreeInodes        uint32
	FirstDataBlock    uint32
	LogBlockSize      uint32
	LogClusterSize    uint32
	BlocksPerGroup    uint32
	ClustersPerGroup  uint32
	InodesPerGroup    uint32
	MountTime         uint32
	WriteTime         uint32
	MountCount        uint16
	MaxMountCount     uint16
	Magic             uint16
	State             uint16
	Errors            uint16
	MinorRevision     uint16
	LastCheck         uint32
	CheckInterval     uint32
	CreatorOS         uint32
	Revision          uint32
	ReservedUID       uint16
	ReservedGID       uint16
	FirstInode        uint32
	InodeSize         uint16
	BlockGroup        uint16
	FeatureCompat     uint32
	FeatureIncompat   uint32
	FeatureROCompat   uint32
	UUID              [16]byte
	Label             [16]byte
	LastMounted       [64]byte
	AlgorithmBitmap   uint32
	PreallocBlocks    uint8
	PreallocDirBlocks uint8
	ReservedGDTBlocks uint16
	JournalUUID       [16]byte
	JournalInode      uint32
	JournalDevice     uint32
	LastOrphan        uint32
	HashSeed          [16]byte
	HashVersion       uint8
	JournalBackupType uint8
	DescSize          uint16
	DefaultMountOpts  uint32
	FirstMetaBG       uint32
	MkfsTime          uint32
	JournalBlocks     [17]uint32
	BlocksHigh        uint32
	ReservedHigh      uint32
	FreeBlocksHigh    uint32
	MinExtraIsize     uint16
	WantExtraIsize    uint16
	Flags             uint32
	RaidStride        uint16
	MMPInterval       uint16
	MMPBlock          uint64
	RaidStripeWidth   uint32
	LogGroupsPerFlex  uint8
	ChecksumType      uint8
	EncryptionLevel   uint8
	_                 uint8
	KilobytesWritten  uint64
	_                 [0x3FC - 0x180]byte
	Checksum          uint32
}

type groupDesc struct {
	BlockBitmap         uint32
	InodeBitmap         uint32
	InodeTable          uint32
	FreeBlocks          uint16
	FreeInodes          uint16
	UsedDirs            uint16
	Flags               uint16
	ExcludeBitmap       uint32
	BlockBitmapCsum     uint16
	InodeBitmapCsum     uint16
	UnusedInodes        uint16
	Checksum            uint16
	BlockBitmapHigh     uint32
	InodeBitmapHigh     uint32
	InodeTableHigh      uint32
	FreeBlocksHigh      uint16
	FreeInodesHigh      uint16
	UsedDirsHigh        uint16
	UnusedInodesHigh    uint16
	ExcludeBitmapHigh   uint32
	BlockBitmapCsumHigh uint16
	InodeBitmapCsumHigh uint16
	_                   uint32
}

type inode struct {
	Mode         uint16
	UID          uint16
	SizeLow      uint32
	AccessTime   uint32
	ChangeTime   uint32
	ModTime      uint32
	DeleteTime   uint32
	GID          uint16
	Links        uint16
	BlocksLow    uint32 // of 512 bytes
	Flags        uint32
	Version      uint32
	Block        [60]byte
	Generation   uint32
	FileACL      uint32
	SizeHigh     uint32
	_            uint32
	BlocksHigh   uint16
	FileACLHigh  uint16
	UIDHigh      uint16
	GIDHigh      uint16
	ChecksumLow  uint16
	_            uint16
	ExtraIsize   uint16
	ChecksumHigh uint16
	ChangeExtra  uint32
	ModExtra     uint32
	AccessExtra  uint32
	CreateTime   uint32
	CreateExtra  uint32
	VersionHigh  uint32
	Project      uint32
	_            [inodeSize - 128 - extraIsize]byte
}

type extentHeader struct {
	Magic      uint16
	Entries    uint16
	Max        uint16
	Depth      uint16
	Generation uint32
}

// extent is a run of blocks of a file.
type extent struct {
	Logical   uint32
	Length    uint16
	StartHigh uint16
	StartLow  uint32
}

func (e extent) start() uint64 { return uint64(e.StartHigh)<<32 | uint64(e.StartLow) }

type extentIndex struct {
	Logical  uint32
	LeafLow  uint32
	LeafHigh uint16
	_        uint16
}

// journalSuper is journal_superblock_t, big endian, up to where it is zero.
type journalSuper struct {
	Magic     uint32
	BlockType uint32
	Sequence0 uint32
	BlockSize uint32
	MaxLength uint32
	First     uint32
	Sequence  uint32
	Start     uint32
	Errno     uint32
	Features  [3]uint32
	UUID      [16]byte
	Users     uint32
}

// encode gives the little-endian bytes of a structure of fixed size.
func encode(v any) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // a structure of this package is not of fixed size
	}
	return out
}

// crc32c is the kernel's: seeded, without the inversions at both ends.
func crc32c(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, crc32.MakeTable(crc32.Castagnoli), p)
}

func crc32c32(seed, v uint32) uint32 {
	return crc32c(seed, binary.LittleEndian.AppendUint32(nil, v))
}
