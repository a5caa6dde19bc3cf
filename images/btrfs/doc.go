// Package btrfs makes a fresh btrfs file system that holds a file tree: the OEM
// partition of an image, where GRUB on UEFI reads nothing but btrfs and FAT.
//
// The format is that of the kernel's include/uapi/linux/btrfs_tree.h and
// fs/btrfs/accessors.h. The shape is what Flatcar makes of its OEM partition
// with mkfs.btrfs --mixed -m single -d single: one device, nodes and sectors of
// 4096 bytes, one system chunk and one chunk for data and metadata together,
// crc32c, free space tree. Label, UUID and time are arguments, and all other
// UUIDs follow from the one given: equal trees and options give equal bytes.
//
// Files of less than 2 KiB are kept in the file system tree, others as extents
// with a checksum for every sector. Every metadata tree is made by one builder
// from sorted items, bottom up, to any depth.
//
// It does not read or change existing file systems, and writes no compression,
// holes, subvolumes, snapshots, several devices, extended attributes, hard
// links or devices. Link targets end at 3949 bytes, what a node can hold.
package btrfs
