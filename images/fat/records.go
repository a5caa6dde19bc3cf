package fat

import (
	"encoding/binary"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
)

// bootSectors are the sectors before the first FAT: the parameter block and, for
// FAT32, the count of free clusters and copies of both.
func (l *layout) bootSectors() []byte {
	b := make([]byte, l.reserved*sectorSize)
	le := binary.LittleEndian
	copy(b[3:], "imagectl")
	le.PutUint16(b[11:], sectorSize)
	b[13] = clusterSectors
	le.PutUint16(b[14:], uint16(l.reserved))
	b[16] = 2    // FATs
	b[21] = 0xf8 // media: a fixed disk
	// What geometry there is nobody uses; a CD or USB stick has none.
	le.PutUint16(b[24:], 63)
	le.PutUint16(b[26:], 255)
	sectors := uint32(l.dataStart()/sectorSize) + l.clusters*clusterSectors
	tail := 36
	if l.fat32 {
		copy(b, "\xeb\x58\x90")
		le.PutUint32(b[32:], sectors)
		le.PutUint32(b[36:], l.fatSize)
		le.PutUint32(b[44:], 2) // the root's first cluster
		le.PutUint16(b[48:], 1) // sector of the free count
		le.PutUint16(b[50:], 6) // sector of the copies
		tail = 64
	} else {
		copy(b, "\xeb\x3c\x90")
		le.PutUint16(b[17:], rootEntries)
		if sectors < 1<<16 {
			le.PutUint16(b[19:], uint16(sectors))
		} else {
			le.PutUint32(b[32:], sectors)
		}
		le.PutUint16(b[22:], uint16(l.fatSize))
	}
	b[tail] = 0x80 // the BIOS's first disk
	b[tail+2] = 0x29
	le.PutUint32(b[tail+3:], l.Serial)
	copy(b[tail+7:], padded(l.Label, 11))
	copy(b[tail+18:], map[bool]string{false: "FAT16   ", true: "FAT32   "}[l.fat32])
	copy(b[510:], "\x55\xaa")
	if !l.fat32 {
		return b
	}
	var used uint32
	for _, run := range l.runs {
		used += run[1]
	}
	info := b[sectorSize : 2*sectorSize]
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	le.PutUint32(info[488:], l.clusters-used)
	le.PutUint32(info[492:], used+2) // where to look for a free one
	copy(info[508:], "\x00\x00\x55\xaa")
	copy(b[6*sectorSize:], b[:2*sectorSize])
	return b
}

const (
	attrReadOnly  = 0x01
	attrLabel     = 0x08
	attrDirectory = 0x10
)

// directory is the content of a directory, without padding.
func (l *layout) directory(n *fstree.Node) fstree.Bytes {
	var b []byte
	if n.Path == "." {
		b = append(b, l.entry(padded(l.Label, 11), attrLabel, n, 0, 0)...)
	} else {
		parent := l.start[n.Parent]
		if n.Parent.Path == "." {
			parent = 0 // the root is called 0 here, also where it has a cluster
		}
		b = append(b, l.entry(padded(".", 11), attrDirectory, n, l.start[n], 0)...)
		b = append(b, l.entry(padded("..", 11), attrDirectory, n.Parent, parent, 0)...)
	}
	for _, c := range n.Children {
		name, _ := shortName(c.Name) // New has checked them
		if c.Type == fstree.Dir {
			b = append(b, l.entry(name, attrDirectory, c, l.start[c], 0)...)
		} else {
			b = append(b, l.entry(name, attrReadOnly, c, l.start[c], uint32(c.Content.Size()))...)
		}
	}
	return b
}

func (l *layout) entry(name string, attr byte, n *fstree.Node, start, size uint32) []byte {
	e := make([]byte, entrySize)
	le := binary.LittleEndian
	copy(e, name)
	e[11] = attr
	date, clock := dosTime(time.Unix(n.Unix(l.ModTime), 0))
	if attr != attrLabel {
		le.PutUint16(e[14:], clock) // created
		le.PutUint16(e[16:], date)
		le.PutUint16(e[18:], date) // last read
	}
	le.PutUint16(e[20:], uint16(start>>16))
	le.PutUint16(e[22:], clock) // written
	le.PutUint16(e[24:], date)
	le.PutUint16(e[26:], uint16(start))
	le.PutUint32(e[28:], size)
	return e
}

// dosTime is a time in FAT's two words: days since 1980 and pairs of seconds.
func dosTime(t time.Time) (date, clock uint16) {
	t = t.UTC()
	switch {
	case t.Year() < 1980:
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	case t.Year() > 2107:
		t = time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC)
	}
	date = uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	return date, uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
}

// shortName is a name of at most eight characters, a dot and three, in the eleven
// bytes of a directory entry.
func shortName(s string) (string, bool) {
	stem, ext, dot := strings.Cut(s, ".")
	const allowed = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789$%'-_@~`!(){}^#&"
	if stem == "" || len(stem) > 8 || len(ext) > 3 || dot && ext == "" || strings.Trim(stem+ext, allowed) != "" {
		return "", false
	}
	return padded(stem, 8) + padded(ext, 3), true
}

func padded(s string, n int) string { return s + strings.Repeat(" ", n-len(s)) }
