package iso

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// directoryRecord is ECMA-119, 9.1. The name is as stored: "\x00" for the
// directory itself, "\x01" for its parent.
func directoryRecord(name string, start, size uint32, dir bool, t time.Time) []byte {
	length := 33 + len(name)
	b := make([]byte, length+length%2)
	b[0] = byte(len(b))
	both32(b[2:], start)
	both32(b[10:], size)
	copy(b[18:], recordTime(t))
	if dir {
		b[25] = 2
	}
	both16(b[28:], 1) // volume of the set
	b[32] = byte(len(name))
	copy(b[33:], name)
	return b
}

// storedName adds what files have on the medium: a dot always, and a version.
func storedName(n *fstree.Node) string {
	switch {
	case n.Type == fstree.Dir:
		return n.Name
	case strings.Contains(n.Name, "."):
		return n.Name + ";1"
	}
	return n.Name + ".;1"
}

// directorySize is the size in whole sectors, which no record crosses.
func directorySize(d *fstree.Node) int {
	sizes := []int{34, 34}
	for _, c := range d.Children {
		n := 33 + len(storedName(c))
		sizes = append(sizes, n+n%2)
	}
	at := 0
	for _, n := range sizes {
		if at%SectorSize+n > SectorSize {
			at += SectorSize - at%SectorSize
		}
		at += n
	}
	return int(sectors(int64(at))) * SectorSize
}

// directory is a directory's content. Byte order of names is the order that
// ECMA-119, 9.3 asks for: the dot sorts before all that a name may hold.
func (l *layout) directory(d *fstree.Node) []byte {
	var b []byte
	add := func(record []byte) {
		if free := SectorSize - len(b)%SectorSize; free < len(record) {
			b = append(b, make([]byte, free)...)
		}
		b = append(b, record...)
	}
	add(directoryRecord("\x00", l.start[d], l.size[d], true, l.time(d)))
	add(directoryRecord("\x01", l.start[d.Parent], l.size[d.Parent], true, l.time(d.Parent)))
	for _, c := range d.Children {
		size := l.size[c]
		if c.Type == fstree.File {
			size = uint32(c.Content.Size())
		}
		add(directoryRecord(storedName(c), l.start[c], size, c.Type == fstree.Dir, l.time(c)))
	}
	return b
}

func (l *layout) time(n *fstree.Node) time.Time { return time.Unix(n.Unix(l.ModTime), 0).UTC() }

// pathRecord is ECMA-119, 9.4.
func pathRecord(d *fstree.Node, start uint32, parent uint16, order binary.ByteOrder) []byte {
	name := d.Name
	if d.Path == "." {
		name = "\x00"
	}
	b := make([]byte, 8+len(name)+len(name)%2)
	b[0] = byte(len(name))
	if order != nil {
		order.PutUint32(b[2:], start)
		order.PutUint16(b[6:], parent)
	}
	copy(b[8:], name)
	return b
}

func (l *layout) pathTableBytes(bigEndian bool) []byte {
	var order binary.ByteOrder = binary.LittleEndian
	if bigEndian {
		order = binary.BigEndian
	}
	var b []byte
	for _, d := range l.dirs {
		b = append(b, pathRecord(d, l.start[d], l.number[d.Parent], order)...)
	}
	return b
}

// volumeDescriptor is the primary one, ECMA-119, 8.4.
func (l *layout) volumeDescriptor() []byte {
	b := descriptor(1)
	fill := func(from, to int, s string) { copy(b[from-1:to], s+strings.Repeat(" ", to-from+1-len(s))) }
	fill(9, 40, "") // system
	fill(41, 72, l.Label)
	both32(b[80:], l.total)
	both16(b[120:], 1) // volumes in the set
	both16(b[124:], 1) // this one
	both16(b[128:], SectorSize)
	both32(b[132:], l.pathTable)
	binary.LittleEndian.PutUint32(b[140:], pathTableSector)
	binary.BigEndian.PutUint32(b[148:], pathTableSector+uint32(sectors(int64(l.pathTable))))
	root := l.dirs[0]
	copy(b[156:], directoryRecord("\x00", l.start[root], l.size[root], true, l.time(root)))
	fill(191, 318, "")         // volume set
	fill(319, 446, "")         // publisher
	fill(447, 574, "")         // who prepared the data
	fill(575, 702, "IMAGECTL") // application
	fill(703, 813, "")         // files of copyright, abstract, bibliography
	for i, t := range []time.Time{l.ModTime, l.ModTime, {}, {}} {
		copy(b[813+17*i:], volumeTime(t)) // made, changed, expires, effective
	}
	b[881] = 1 // version of the structure
	return b
}

func terminator() []byte { return descriptor(255) }

func descriptor(kind byte) []byte {
	b := make([]byte, SectorSize)
	b[0] = kind
	copy(b[1:], "CD001")
	b[6] = 1
	return b
}

// recordTime is ECMA-119, 9.1.5; years have one byte.
func recordTime(t time.Time) []byte {
	year := min(max(t.Year()-1900, 0), 255)
	return []byte{byte(year), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0}
}

// volumeTime is ECMA-119, 8.4.26.1; the zero time is "not specified".
func volumeTime(t time.Time) string {
	if t.IsZero() {
		return strings.Repeat("0", 16) + "\x00"
	}
	t = t.UTC()
	return fmt.Sprintf("%04d%s00\x00", t.Year(), t.Format("0102150405"))
}

// both32 and both16 write a number in both byte orders.
func both32(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

func both16(b []byte, v uint16) {
	binary.LittleEndian.PutUint16(b, v)
	binary.BigEndian.PutUint16(b[2:], v)
}
