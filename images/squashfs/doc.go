// Package squashfs writes a file tree as a squashfs 4.0 image compressed with
// zstd, the form in which system extensions (NAME.raw) reach a node.
//
// The format is that of the kernel's fs/squashfs/squashfs_fs.h and of
// Documentation/filesystems/squashfs.rst. Equal trees and equal options give
// equal bytes, whatever the number of processors. Files of equal content are
// stored once, files smaller than a block share fragment blocks, and blocks of
// zeros take no space. Memory stays at a few blocks for each processor plus the
// tables (some 100 bytes an entry), however large the files are.
//
// It does not read images, append to them, or write extended attributes, hard
// links, devices, other compressors than zstd, or images above 16 EiB. It does
// not put the tails of large files into fragments: reading a binary's last page
// would then unpack a block of unrelated files.
//
// Speed against mksquashfs at zstd level 3, the level used here, in one run:
//
//	go test -bench Mksquashfs -run - -benchtime 3x ./images/squashfs
package squashfs
