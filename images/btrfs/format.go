package btrfs

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
)

// The numbers and structures of include/uapi/linux/btrfs_tree.h (of
// fs/btrfs/fs.h for the superblock's feature flags), little endian, in the
// order of their bytes on disk.

const (
	sectorSize = 4096
	nodeSize   = 4096 // mixed block groups need it to be the sector size
	headerSize = 101
	slotSize   = 25 // key, offset and size in front of a leaf's data
	ptrSize    = 33
	leafSpace  = nodeSize - headerSize
	maxItem    = leafSpace - slotSize
	maxPtrs    = leafSpace / ptrSize
	stripeLen  = 64 << 10 // BTRFS_STRIPE_LEN
	maxExtent  = 128 << 20
	inlineHead = 21
	// A target is inline data without a NUL: BTRFS_MAX_INLINE_DATA_SIZE.
	maxTarget = maxItem - inlineHead
	maxInline = 2048 // below which content is inline: the kernel's default

	superOffset  = 64 << 10
	superMirror  = 64 << 20  // BTRFS_SUPER_MIRROR_SHIFT
	superMirror2 = 256 << 30 // images end before it
	superMagic   = 0x4D5F53665248425F

	generation = 1 // of everything: one transaction made it all

	idRootTree     = 1
	idExtentTree   = 2
	idChunkTree    = 3
	idDevTree      = 4
	idFSTree       = 5
	idRootDir      = 6
	idCsumTree     = 7
	idUUIDTree     = 9
	idFreeSpace    = 10
	idDataReloc    = 1<<64 - 9  // BTRFS_DATA_RELOC_TREE_OBJECTID, -9
	idExtentCsum   = 1<<64 - 10 // BTRFS_EXTENT_CSUM_OBJECTID, -10
	idFirstFree    = 256        // BTRFS_FIRST_FREE_OBJECTID, a root directory
	idFirstChunk   = 256
	idDevItems     = 1
	theDevice      = 1
	firstDirIndex  = 2 // 0 and 1 are "." and ".."
	rootItemInit   = 1 << 31
	typeInode      = 1
	typeInodeRef   = 12
	typeDirItem    = 84
	typeDirIndex   = 96
	typeExtentData = 108
	typeExtentCsum = 128
	typeRootItem   = 132
	typeExtent     = 168
	typeMetadata   = 169
	typeTreeRef    = 176
	typeDataRef    = 178
	typeBlockGroup = 192
	typeFreeInfo   = 198
	typeFreeExtent = 199
	typeDevExtent  = 204
	typeDevItem    = 216
	typeChunk      = 228
	typeUUIDSubvol = 251

	extentData      = 1
	extentTreeBlock = 2
	groupData       = 1
	groupSystem     = 2
	groupMetadata   = 4

	headerWritten   = 1
	headerBackref   = 1 << 56 // BTRFS_MIXED_BACKREF_REV
	fileInline      = 0
	fileRegular     = 1
	modeDir         = 0o040000
	modeFile        = 0o100000
	modeSymlink     = 0o120000
	compatFreeSpace = 1 | 2 // FREE_SPACE_TREE, FREE_SPACE_TREE_VALID
	// MIXED_BACKREF, MIXED_GROUPS, EXTENDED_IREF, SKINNY_METADATA, NO_HOLES
	incompat = 0x1 | 0x4 | 0x40 | 0x100 | 0x200
)

type key struct {
	Object uint64
	Type   uint8
	Offset uint64
}

func compareKeys(a, b key) int {
	return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Offset, b.Offset))
}

type nodeHeader struct {
	Checksum   [32]byte
	FSID       [16]byte
	At         uint64
	Flags      uint64
	ChunkUUID  [16]byte
	Generation uint64
	Owner      uint64
	Items      uint32
	Level      uint8
}

type superblock struct {
	Checksum            [32]byte
	FSID                [16]byte
	At                  uint64
	Flags               uint64
	Magic               uint64
	Generation          uint64
	Root                uint64
	ChunkRoot           uint64
	LogRoot             uint64
	LogRootTransID      uint64
	TotalBytes          uint64
	BytesUsed           uint64
	RootDir             uint64
	Devices             uint64
	SectorSize          uint32
	NodeSize            uint32
	LeafSize            uint32
	StripeSize          uint32
	SystemChunksSize    uint32
	ChunkRootGeneration uint64
	Compat              uint64
	CompatRO            uint64
	Incompat            uint64
	ChecksumType        uint16
	RootLevel           uint8
	ChunkRootLevel      uint8
	LogRootLevel        uint8
	Device              devItem
	Label               [256]byte
	CacheGeneration     uint64
	UUIDTreeGeneration  uint64
	MetadataUUID        [16]byte
	GlobalRoots         uint64
	_                   [27]uint64
	SystemChunks        [2048]byte
	_                   [4 * 168]byte // backup roots: the kernel keeps them
	_                   [565]byte
}

type devItem struct {
	ID         uint64
	TotalBytes uint64
	BytesUsed  uint64
	IOAlign    uint32
	IOWidth    uint32
	SectorSize uint32
	Type       uint64
	Generation uint64
	Start      uint64
	Group      uint32
	SeekSpeed  uint8
	Bandwidth  uint8
	UUID       [16]byte
	FSID       [16]byte
}

// chunkItem is btrfs_chunk with its one stripe.
type chunkItem struct {
	Length     uint64
	Owner      uint64
	StripeLen  uint64
	Type       uint64
	IOAlign    uint32
	IOWidth    uint32
	SectorSize uint32
	Stripes    uint16
	SubStripes uint16
	Device     uint64
	Offset     uint64
	DeviceUUID [16]byte
}

type devExtent struct {
	ChunkTree   uint64
	ChunkObject uint64
	ChunkOffset uint64
	Length      uint64
	ChunkUUID   [16]byte
}

type blockGroupItem struct {
	Used        uint64
	ChunkObject uint64
	Flags       uint64
}

// metadataItem is btrfs_extent_item with its inline btrfs_extent_inline_ref.
type metadataItem struct {
	Refs       uint64
	Generation uint64
	Flags      uint64
	RefType    uint8
	Root       uint64
}

// dataItem is btrfs_extent_item with its inline btrfs_extent_data_ref.
type dataItem struct {
	Refs       uint64
	Generation uint64
	Flags      uint64
	RefType    uint8
	Root       uint64
	Object     uint64
	Offset     uint64
	Count      uint32
}

type timespec struct {
	Seconds     int64
	Nanoseconds uint32
}

type inodeItem struct {
	Generation uint64
	TransID    uint64
	Size       uint64
	Bytes      uint64
	BlockGroup uint64
	Links      uint32
	UID        uint32
	GID        uint32
	Mode       uint32
	Device     uint64
	Flags      uint64
	Sequence   uint64
	_          [4]uint64
	AccessTime timespec
	ChangeTime timespec
	ModTime    timespec
	CreateTime timespec
}

type rootItem struct {
	Inode        inodeItem
	Generation   uint64
	RootDir      uint64
	At           uint64
	ByteLimit    uint64
	BytesUsed    uint64
	LastSnapshot uint64
	Flags        uint64
	Refs         uint32
	DropProgress key
	DropLevel    uint8
	Level        uint8
	GenerationV2 uint64
	UUID         [16]byte
	ParentUUID   [16]byte
	ReceivedUUID [16]byte
	TransIDs     [4]uint64 // change, creation, send, receive
	Times        [4]timespec
	_            [8]uint64
}

// inodeRef is btrfs_inode_ref; the name follows it.
type inodeRef struct {
	Index      uint64
	NameLength uint16
}

// dirItem is btrfs_dir_item; the name follows it.
type dirItem struct {
	Location   key
	TransID    uint64
	DataLength uint16
	NameLength uint16
	Type       uint8
}

// inlineExtent is the head of btrfs_file_extent_item; the data follow it.
type inlineExtent struct {
	Generation    uint64
	Size          uint64
	Compression   uint8
	Encryption    uint8
	OtherEncoding uint16
	Type          uint8
}

type fileExtent struct {
	inlineExtent
	DiskAt    uint64
	DiskBytes uint64
	Offset    uint64
	Bytes     uint64
}

type freeSpaceInfo struct {
	Extents uint32
	Flags   uint32
}

// encode gives the little-endian bytes of a structure of fixed size.
func encode(v any) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err) // a structure of this package is not of fixed size
	}
	return out
}

// seal puts the checksum of a superblock or node into its first bytes.
func seal(block []byte) []byte {
	binary.LittleEndian.PutUint32(block, crc32.Checksum(block[32:], crc32.MakeTable(crc32.Castagnoli)))
	return block
}

// nameHash is btrfs_name_hash: crc32c seeded with ~1, without the inversion at
// the end.
func nameHash(name string) uint64 {
	return uint64(^crc32.Update(1, crc32.MakeTable(crc32.Castagnoli), []byte(name)))
}
