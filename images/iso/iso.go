// Package iso lays out an ISO 9660 image (ECMA-119) that machines boot from: by
// BIOS and by UEFI, as a CD (El Torito 1.0, with UEFI's addition in UEFI 2.10,
// 13.3.2) and written to a USB stick (a GPT in the system area, with boot code in
// its protective MBR). Equal trees and options give equal bytes.
//
// The result is an fstree.Content: tables are in memory, files are read when they
// are written out. Files may share bytes with the EFI system partition, so that
// kernel and initial RAM file system are in the image once and not for each kind
// of firmware.
//
// Names are short and in upper case: boot loaders read them, and Linux shows them
// in lower case. There is no Rock Ridge, no Joliet, no file of 4 GiB or more.
package iso

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// SectorSize is a CD's, in bytes.
const SectorSize = 2048

// Options of an image.
type Options struct {
	// Label is the volume identifier: 1 to 32 of A-Z, 0-9 and "_".
	Label string
	// ModTime is the time of entries without a time of their own.
	ModTime time.Time
	// ESP is a FAT file system, which UEFI looks for EFI/BOOT in.
	ESP fstree.Content
	// DiskGUID and ESPGUID are for the GPT, in the order of their text form.
	DiskGUID, ESPGUID [16]byte
	// BIOS is the path of the program that a BIOS starts from a CD: ISOLINUX, or
	// another that wants a boot information table at offset 8. Empty for an image
	// that only UEFI boots.
	BIOS string
	// MBR is ISOLINUX's boot code for disks (isohdpfx.bin), which starts BIOS from a
	// USB stick. Empty for an image that BIOS boots from a CD only.
	MBR []byte
}

// Shared is the content of a file that is part of the ESP. Offset is from the
// ESP's start and a multiple of SectorSize.
type Shared struct{ Offset, Length int64 }

// Size implements fstree.Content.
func (s Shared) Size() int64 { return s.Length }

// Open implements fstree.Content, and fails: New knows where the bytes are.
func (s Shared) Open() (io.ReadCloser, error) {
	return nil, errors.New("opening a file that is part of an ESP: it has no content of its own")
}

// Places of what is always there, in sectors.
const (
	volumeSector     = 16
	bootRecordSector = 17
	catalogSector    = 19
	pathTableSector  = 20

	// padding follows the last content: a drive that reads ahead of a disc written
	// track at once fails in its last sectors. 150 is what every ISO has.
	padding = 150
)

// New lays an image out.
func New(t *fstree.Tree, o Options) (fstree.Content, error) {
	content, err := layOut(t.Root(), o)
	if err != nil {
		return nil, fmt.Errorf("laying out an ISO 9660 image: %w", err)
	}
	return content, nil
}

// layout is where everything is.
type layout struct {
	Options
	dirs []*fstree.Node // in the order of the path table
	// start is the first sector of a directory or file, size a directory's bytes.
	start     map[*fstree.Node]uint32
	size      map[*fstree.Node]uint32
	number    map[*fstree.Node]uint16 // of a directory in the path table
	pathTable uint32                  // bytes
	biosBoot  fstree.Bytes            // the program, with its table
	bios, esp uint32                  // sectors
	total     uint32                  // sectors
}

func layOut(root *fstree.Node, o Options) (fstree.Content, error) {
	if err := check(root, o); err != nil {
		return nil, err
	}
	l := &layout{Options: o, start: map[*fstree.Node]uint32{}, size: map[*fstree.Node]uint32{}, number: map[*fstree.Node]uint16{}}
	if err := l.listDirs(root); err != nil {
		return nil, err
	}
	next := uint64(pathTableSector) + 2*sectors(int64(l.pathTable))
	for _, d := range l.dirs {
		l.start[d], l.size[d] = uint32(next), uint32(directorySize(d))
		next += sectors(int64(l.size[d]))
	}
	var files []*fstree.Node
	err := root.Walk(func(n *fstree.Node) error {
		if _, shared := n.Content.(Shared); n.Type != fstree.File || shared {
			return nil
		}
		files = append(files, n)
		l.start[n] = uint32(next)
		next += sectors(n.Content.Size())
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.esp = uint32(next)
	next += sectors(o.ESP.Size()) + padding + sectors(backupSize)
	if next > math.MaxUint32 {
		return nil, fmt.Errorf("the image has %d sectors, the format holds %d", next, uint32(math.MaxUint32))
	}
	l.total = uint32(next)
	if err := l.shareFiles(root); err != nil {
		return nil, err
	}
	if err := l.prepareBIOS(files); err != nil {
		return nil, err
	}
	return l.content(files), nil
}

func sectors(bytes int64) uint64 { return uint64(bytes+SectorSize-1) / SectorSize }

func check(root *fstree.Node, o Options) error {
	if o.Label == "" || len(o.Label) > 32 || strings.Trim(o.Label, letters) != "" {
		return fmt.Errorf("the label %q is not 1 to 32 of A-Z, 0-9 and _", o.Label)
	}
	if o.ESP == nil || o.ESP.Size() == 0 || o.ESP.Size()%SectorSize != 0 {
		return fmt.Errorf("the ESP must have a multiple of %d bytes, and some", SectorSize)
	}
	if len(o.MBR) > mbrCodeSize {
		return fmt.Errorf("the boot code for disks has %d bytes, there is room for %d", len(o.MBR), mbrCodeSize)
	}
	if len(o.MBR) > 0 && o.BIOS == "" {
		return errors.New("there is boot code for disks and no program for BIOS, which it would start")
	}
	return root.Walk(func(n *fstree.Node) error {
		if n.Path == "." {
			return nil
		}
		if !validName(n.Name, n.Type == fstree.Dir) {
			return fmt.Errorf("%s: the name %q is no short name of A-Z, 0-9 and _, such as ISOLINUX.BIN", n.Path, n.Name)
		}
		if depth := strings.Count(n.Path, "/") + 2; depth > 8 {
			return fmt.Errorf("%s: it is on level %d, the format has 8", n.Path, depth)
		}
		if n.Type == fstree.Symlink {
			return fmt.Errorf("%s: the format holds no symbolic links", n.Path)
		}
		if n.Type == fstree.File && n.Content.Size() > math.MaxUint32 {
			return fmt.Errorf("%s: the file has %d bytes, the format holds less than 4 GiB", n.Path, n.Content.Size())
		}
		return nil
	})
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"

// validName: level 1 of interchange, 8 characters, a dot and 3; directories have
// no dot.
func validName(s string, dir bool) bool {
	stem, ext, dot := strings.Cut(s, ".")
	return stem != "" && len(stem) <= 8 && len(ext) <= 3 && dot == (ext != "") && !(dir && dot) && strings.Trim(stem+ext, letters) == ""
}

// listDirs lists directories level by level, siblings in order of their parents:
// the order of a path table.
func (l *layout) listDirs(root *fstree.Node) error {
	l.dirs = []*fstree.Node{root}
	for i := 0; i < len(l.dirs); i++ {
		d := l.dirs[i]
		if i >= math.MaxUint16 {
			return fmt.Errorf("there are more than %d directories", math.MaxUint16)
		}
		l.number[d] = uint16(i + 1)
		l.pathTable += uint32(len(pathRecord(d, 0, 0, nil)))
		for _, c := range d.Children {
			if c.Type == fstree.Dir {
				l.dirs = append(l.dirs, c)
			}
		}
	}
	return nil
}

// shareFiles finds the places of files that are part of the ESP.
func (l *layout) shareFiles(root *fstree.Node) error {
	return root.Walk(func(n *fstree.Node) error {
		s, ok := n.Content.(Shared)
		if !ok {
			return nil
		}
		if s.Offset < 0 || s.Length < 0 || s.Offset%SectorSize != 0 || s.Offset+s.Length > l.ESP.Size() {
			return fmt.Errorf("%s: bytes %d to %d of the ESP cannot be a file: it has %d, and a file begins at a multiple of %d",
				n.Path, s.Offset, s.Offset+s.Length, l.ESP.Size(), SectorSize)
		}
		l.start[n] = l.esp + uint32(s.Offset/SectorSize)
		return nil
	})
}

// content puts everything in its place.
func (l *layout) content(files []*fstree.Node) fstree.Content {
	out := fstree.Sequence{fstree.Bytes(l.systemArea())}
	add := func(c fstree.Content) {
		out = append(out, c, fstree.Zeros(-c.Size()&(SectorSize-1)))
	}
	for _, b := range [][]byte{l.volumeDescriptor(), l.bootRecord(), terminator(), l.catalog(), l.pathTableBytes(false), l.pathTableBytes(true)} {
		add(fstree.Bytes(b))
	}
	for _, d := range l.dirs {
		add(fstree.Bytes(l.directory(d)))
	}
	for _, n := range files {
		if l.BIOS != "" && n.Path == l.BIOS {
			add(l.biosBoot)
		} else {
			add(n.Content)
		}
	}
	add(l.ESP)
	backup := l.backupGPT()
	return append(out, fstree.Zeros(int64(l.total)*SectorSize-out.Size()-int64(len(backup))), fstree.Bytes(backup))
}
