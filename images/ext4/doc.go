// Package ext4 makes a fresh ext4 file system that holds a file tree: the ROOT
// partition of an image, with system extensions of hundreds of megabytes in it.
//
// The format is that of the kernel's fs/ext4/ext4.h and of
// Documentation/filesystems/ext4. The result is what mke2fs makes by default
// (blocks of 4 KiB, inodes of 256 bytes, journal, extents, checksums on all
// metadata, room in the descriptor tables to grow a thousandfold by resize2fs),
// but label, UUID, hash seed and times are arguments: equal trees and options
// give equal bytes.
//
// It does not change or read existing file systems, and writes no extended
// attributes, hard links, devices, hashed directories (Linux searches linear
// ones; those of one block it hashes by itself when they grow), inline data,
// encryption or quota. Group metadata is not gathered by flex groups; groups
// that resize2fs adds are.
package ext4
