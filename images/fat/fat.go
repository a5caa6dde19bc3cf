// Package fat lays out a FAT16 or FAT32 file system, as Microsoft's "FAT: General
// Overview of On-Disk Format" (1.03) and the UEFI specification (13.3) describe
// it, for what firmware reads: an EFI system partition. Equal trees and options
// give equal bytes.
//
// The result is an fstree.Content: tables are in memory, files are read when they
// are written out. Every file lies in one piece at a multiple of 2048 bytes from
// the file system's start, and Offset says where, so that another structure
// (images/iso) can name the same bytes.
//
// Names are short names in upper case, such as BOOTX64.EFI. There are no long
// names, no links, no owners; no free space is left beyond what the format wants.
package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// ClusterSize is the unit of allocation in bytes, and what files are aligned to.
// It is the sector of a CD.
const ClusterSize = 2048

const (
	sectorSize     = 512
	clusterSectors = ClusterSize / sectorSize
	entrySize      = 32
	// rootEntries is the fixed size of FAT16's root directory.
	rootEntries = 512

	// What decides between the FATs is the number of clusters alone. The
	// specification asks to stay 16 away from the limits, since much code is off
	// by a few.
	min16 = 4085 + 16
	max16 = 65525 - 16
	min32 = 65525 + 16
	max32 = 0x0ffffff5 - 16
)

// Options of a file system.
type Options struct {
	// Label is the volume label: 1 to 11 of A-Z, 0-9, blank, "-" and "_".
	Label string
	// Serial is the volume serial number.
	Serial uint32
	// ModTime is the time of entries without a time of their own. FAT has UTC here,
	// and nothing before 1980: what is earlier becomes that.
	ModTime time.Time
}

// Volume is a file system, as content.
type Volume struct {
	content fstree.Sequence
	offsets map[string]int64
}

// Size implements fstree.Content.
func (v *Volume) Size() int64 { return v.content.Size() }

// Open implements fstree.Content.
func (v *Volume) Open() (io.ReadCloser, error) { return v.content.Open() }

// Offset is where a file's content begins, in bytes from the volume's start. An
// empty file has none.
func (v *Volume) Offset(path string) (int64, bool) {
	off, ok := v.offsets[path]
	return off, ok
}

// New lays a tree out.
func New(t *fstree.Tree, o Options) (*Volume, error) {
	v, err := layOut(t, o)
	if err != nil {
		return nil, fmt.Errorf("laying out a FAT file system: %w", err)
	}
	return v, nil
}

// layout is where everything is.
type layout struct {
	Options
	fat32 bool
	// start is the first cluster of a node; a FAT16's root and empty files have 0.
	start map[*fstree.Node]uint32
	// runs are first clusters and lengths, in order, with nothing between them.
	runs     [][2]uint32
	clusters uint32
	reserved uint32 // sectors before the first FAT
	fatSize  uint32 // sectors of one FAT
}

func layOut(t *fstree.Tree, o Options) (*Volume, error) {
	if !validLabel(o.Label) {
		return nil, fmt.Errorf("the label %q is not 1 to 11 of A-Z, 0-9, blank, - and _", o.Label)
	}
	root := t.Root()
	if err := root.Walk(checkNode); err != nil {
		return nil, err
	}
	l, err := allocate(root, o, false)
	if err == nil && l.clusters > max16 {
		l, err = allocate(root, o, true)
	}
	if err != nil {
		return nil, err
	}
	return l.volume(root)
}

func checkNode(n *fstree.Node) error {
	if n.Path == "." {
		return nil
	}
	if _, ok := shortName(n.Name); !ok {
		return fmt.Errorf("%s: the name %q is no short name in upper case, such as BOOTX64.EFI", n.Path, n.Name)
	}
	if n.Type == fstree.Symlink {
		return fmt.Errorf("%s: the format holds no symbolic links", n.Path)
	}
	if n.Type == fstree.File && n.Content.Size() > math.MaxUint32 {
		return fmt.Errorf("%s: the file has %d bytes, the format holds less than 4 GiB", n.Path, n.Content.Size())
	}
	return nil
}

// allocate gives every node its clusters, in the order of the tree.
func allocate(root *fstree.Node, o Options, fat32 bool) (*layout, error) {
	l := &layout{Options: o, fat32: fat32, start: map[*fstree.Node]uint32{}, reserved: clusterSectors}
	if fat32 {
		l.reserved = 32
	}
	next := uint64(2) // the first two entries of a FAT are no clusters
	err := root.Walk(func(n *fstree.Node) error {
		if n.Path == "." && !fat32 {
			if len(n.Children)+1 > rootEntries {
				return fmt.Errorf("the root holds %d entries, FAT16 has room for %d", len(n.Children), rootEntries-1)
			}
			return nil
		}
		var size int64
		if n.Type == fstree.File {
			size = n.Content.Size()
		} else {
			size = int64(len(n.Children)+2) * entrySize // "." and "..", or the label
		}
		count := uint64(size+ClusterSize-1) / ClusterSize
		if count == 0 {
			return nil
		}
		if next+count > max32 {
			return fmt.Errorf("%s: the tree is larger than the format's %d clusters of %d bytes", n.Path, max32, ClusterSize)
		}
		l.start[n] = uint32(next)
		l.runs = append(l.runs, [2]uint32{uint32(next), uint32(count)})
		next += count
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.clusters = uint32(next - 2)
	width := uint32(2)
	if fat32 {
		l.clusters = max(l.clusters, min32)
		width = 4
	} else {
		l.clusters = max(l.clusters, min16)
	}
	l.fatSize = ((l.clusters+2)*width + sectorSize - 1) / sectorSize
	l.fatSize += l.fatSize % 2 // two of them end at a cluster's boundary
	return l, nil
}

// dataStart is the first byte of cluster 2, a multiple of ClusterSize.
func (l *layout) dataStart() int64 {
	sectors := l.reserved + 2*l.fatSize
	if !l.fat32 {
		sectors += rootEntries * entrySize / sectorSize
	}
	return int64(sectors) * sectorSize
}

func (l *layout) volume(root *fstree.Node) (*Volume, error) {
	table := fstree.Bytes(l.table())
	v := &Volume{offsets: map[string]int64{}, content: fstree.Sequence{fstree.Bytes(l.bootSectors()), table, table}}
	err := root.Walk(func(n *fstree.Node) error {
		if n.Type == fstree.Dir {
			content := l.directory(n)
			size := (int64(len(content)) + ClusterSize - 1) / ClusterSize * ClusterSize
			if n.Path == "." && !l.fat32 {
				size = rootEntries * entrySize
			}
			v.content = append(v.content, content, fstree.Zeros(size-int64(len(content))))
			return nil
		}
		if start := l.start[n]; start != 0 {
			v.offsets[n.Path] = l.dataStart() + int64(start-2)*ClusterSize
			v.content = append(v.content, n.Content, fstree.Zeros(-n.Content.Size()&(ClusterSize-1)))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	end := l.dataStart() + int64(l.clusters)*ClusterSize
	v.content = append(v.content, fstree.Zeros(end-v.content.Size()))
	return v, nil
}

// table is one FAT: every run is a chain of neighbours.
func (l *layout) table() []byte {
	b := make([]byte, l.fatSize*sectorSize)
	const last = 0x0fffffff // of its lower half FAT16 has 16 bits
	set := func(cluster, value uint32) {
		if l.fat32 {
			binary.LittleEndian.PutUint32(b[cluster*4:], value)
		} else {
			binary.LittleEndian.PutUint16(b[cluster*2:], uint16(value))
		}
	}
	set(0, 0x0ffffff8) // the media byte, as in the boot sector
	set(1, last)
	for _, run := range l.runs {
		for i := range run[1] {
			value := run[0] + i + 1
			if i+1 == run[1] {
				value = last
			}
			set(run[0]+i, value)
		}
	}
	return b
}

func validLabel(s string) bool {
	return s != "" && len(s) <= 11 && s[0] != ' ' && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -_") == ""
}
