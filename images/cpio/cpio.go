// Package cpio writes a file tree as a "newc" cpio archive, which is what the
// kernel unpacks as an initial RAM file system and what carries a machine's OEM
// files over PXE.
//
// The format is that of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. A directory is
// always written before what is in it, since the kernel makes no parents. The
// root itself is not written: the archive is unpacked into a root that exists
// and keeps its mode. Equal trees and options give equal bytes.
//
// It does not read archives, and writes no hard links, devices, checksums
// ("crc" format) or files of 4 GiB and more.
package cpio

import (
	"fmt"
	"io"
	"math"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/imagectl/imagectl/images/fstree"
)

// Options of an archive. The zero value is good.
type Options struct {
	// ModTime is the time of entries without a time of their own. Zero means
	// 1970.
	ModTime time.Time
}

// blockSize is what GNU cpio pads archives to. Archives are concatenated, and
// the kernel wants each to start at a multiple of 4.
const blockSize = 512

// File type bits of stat(2).
const (
	modeDir     = 0o040000
	modeFile    = 0o100000
	modeSymlink = 0o120000
)

// Write writes the tree and the trailer. Its output may be followed by another
// archive.
func Write(w io.Writer, t *fstree.Tree, o Options) error {
	a := &archive{w: w, buf: make([]byte, 128<<10)}
	err := t.Root().Walk(func(n *fstree.Node) error {
		if n.Path == "." {
			return nil
		}
		if err := a.add(n, o.ModTime); err != nil {
			return fmt.Errorf("writing %s to cpio: %w", n.Path, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.end(); err != nil {
		return fmt.Errorf("writing cpio trailer: %w", err)
	}
	return nil
}

// WriteGzip is Write through gzip, without the name and time that gzip's header
// could hold. Firmware and boot loaders that lose an archive which follows an
// unaligned one find a compressed one: prefer it for whatever is appended.
func WriteGzip(w io.Writer, t *fstree.Tree, o Options) error {
	// Of the standard library's gzip each Go release may change the bytes;
	// this module's version is pinned.
	z, err := gzip.NewWriterLevel(w, 6)
	if err != nil {
		return fmt.Errorf("making a gzip writer for cpio: %w", err)
	}
	z.ModTime = time.Unix(0, 0) // "no time" in the header; the zero Time is not
	if err := Write(z, t, o); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("ending gzipped cpio: %w", err)
	}
	return nil
}

type archive struct {
	w     io.Writer
	off   int64
	inode uint32
	buf   []byte
}

func (a *archive) add(n *fstree.Node, modTime time.Time) error {
	unix := n.Unix(modTime)
	if unix < 0 || unix > math.MaxUint32 {
		return fmt.Errorf("the modification time %s is outside 1970 to 2106, which is all the format can hold",
			time.Unix(unix, 0).UTC().Format(time.RFC3339))
	}
	a.inode++
	e := header{inode: a.inode, mode: n.Mode, uid: n.UID, gid: n.GID, links: n.Links(), modTime: uint32(unix), name: n.Path}
	switch n.Type {
	case fstree.Dir:
		e.mode |= modeDir
		return a.write(e.encode())
	case fstree.Symlink:
		e.mode |= modeSymlink
		e.size = uint32(len(n.Link))
		if err := a.write(e.encode()); err != nil {
			return err
		}
		if err := a.write([]byte(n.Link)); err != nil {
			return err
		}
		return a.align(4)
	}
	if n.Content.Size() > math.MaxUint32 {
		return fmt.Errorf("the file has %d bytes, the format holds less than 4 GiB", n.Content.Size())
	}
	e.mode |= modeFile
	e.size = uint32(n.Content.Size())
	if err := a.write(e.encode()); err != nil {
		return err
	}
	if err := fstree.ReadBlocks(n.Content, a.buf, a.write); err != nil {
		return err
	}
	return a.align(4)
}

func (a *archive) end() error {
	if err := a.write(header{links: 1, name: "TRAILER!!!"}.encode()); err != nil {
		return err
	}
	return a.align(blockSize)
}

func (a *archive) write(p []byte) error {
	n, err := a.w.Write(p)
	a.off += int64(n)
	return err
}

func (a *archive) align(to int64) error {
	return a.write(make([]byte, (to-a.off%to)%to))
}

type header struct {
	inode, mode, uid, gid, links, modTime, size uint32
	name                                        string
}

// encode gives the header and the name, padded to 4 bytes.
func (h header) encode() []byte {
	out := []byte("070701")
	for _, v := range []uint32{h.inode, h.mode, h.uid, h.gid, h.links, h.modTime, h.size,
		0, 0, 0, 0, // device of the file, device it stands for
		uint32(len(h.name) + 1), 0} {
		out = fmt.Appendf(out, "%08X", v)
	}
	out = append(out, h.name...)
	out = append(out, 0)
	return append(out, make([]byte, (4-len(out)%4)%4)...)
}
