package squashfs

// The numbers and structures of fs/squashfs/squashfs_fs.h, little endian, in
// the order of their bytes on disk.

const (
	superMagic     = 0x73717368 // SQUASHFS_MAGIC, "hsqs"
	superSize      = 96
	metadataSize   = 8192 // SQUASHFS_METADATA_SIZE
	zstdID         = 6    // ZSTD_COMPRESSION
	flagDuplicates = 1 << 6
	flagExportable = 1 << 7
	flagNoXattrs   = 1 << 9

	rawMetadata = 1 << 15 // SQUASHFS_COMPRESSED_BIT: the block is stored as it is
	rawBlock    = 1 << 24 // SQUASHFS_COMPRESSED_BIT_BLOCK

	noFragment = 0xFFFFFFFF         // SQUASHFS_INVALID_FRAG
	noXattr    = 0xFFFFFFFF         // SQUASHFS_INVALID_XATTR
	noTable    = 0xFFFFFFFFFFFFFFFF // SQUASHFS_INVALID_BLK

	typeDir     = 1 // SQUASHFS_DIR_TYPE and so on
	typeFile    = 2
	typeSymlink = 3
	typeLongDir = 8
	typeLongReg = 9

	maxRun = 256 // SQUASHFS_DIR_COUNT: entries behind one directory header
	maxIDs = 65535
	padTo  = 4096 // a loop device of 4 KiB sectors must be able to read the end
)

type superblock struct {
	Magic         uint32
	Inodes        uint32
	MkfsTime      uint32
	BlockSize     uint32
	Fragments     uint32
	Compression   uint16
	BlockLog      uint16
	Flags         uint16
	IDs           uint16
	Major, Minor  uint16
	RootInode     uint64
	BytesUsed     uint64
	IDTable       uint64
	XattrTable    uint64
	InodeTable    uint64
	DirTable      uint64
	FragmentTable uint64
	LookupTable   uint64
}

// inodeHeader is squashfs_base_inode.
type inodeHeader struct {
	Type, Mode uint16
	UID, GID   uint16 // indices into the id table
	ModTime    uint32
	Number     uint32
}

type dirInode struct {
	inodeHeader
	StartBlock uint32
	Links      uint32
	Size       uint16
	Offset     uint16
	Parent     uint32
}

// longDirInode is squashfs_ldir_inode; dirIndex entries follow it.
type longDirInode struct {
	inodeHeader
	Links      uint32
	Size       uint32
	StartBlock uint32
	Parent     uint32
	Indices    uint16
	Offset     uint16
	Xattr      uint32
}

// dirIndex is squashfs_dir_index; the name follows it.
type dirIndex struct {
	Position   uint32 // of a header in the uncompressed listing
	StartBlock uint32 // of the metadata block that holds it
	NameSize   uint32 // less one
}

// fileInode is squashfs_reg_inode; block sizes follow it.
type fileInode struct {
	inodeHeader
	StartBlock uint32
	Fragment   uint32
	Offset     uint32
	Size       uint32
}

// longFileInode is squashfs_lreg_inode; block sizes follow it.
type longFileInode struct {
	inodeHeader
	StartBlock uint64
	Size       uint64
	Sparse     uint64
	Links      uint32
	Fragment   uint32
	Offset     uint32
	Xattr      uint32
}

// symlinkInode is squashfs_symlink_inode; the target follows it.
type symlinkInode struct {
	inodeHeader
	Links uint32
	Size  uint32
}

// dirHeader is squashfs_dir_header: what the entries behind it share.
type dirHeader struct {
	Count      uint32 // less one
	StartBlock uint32 // of the metadata block of the entries' inodes
	Number     uint32 // that the entries' numbers are relative to
}

// dirEntry is squashfs_dir_entry; the name follows it.
type dirEntry struct {
	Offset   uint16
	Number   int16
	Type     uint16
	NameSize uint16 // less one
}

// fragmentEntry is squashfs_fragment_entry.
type fragmentEntry struct {
	Start  uint64
	Size   uint32
	Unused uint32
}
