// Package disk reads and grows the GPT of a Flatcar disk image, and tells
// whether what a build is about to replace is empty.
//
// Two layouts of Flatcar exist (flatcar.md section 1.1) and more will, so
// partitions are found by label and type, never by number or offset. Everything
// is done on plain files: no mounts, no loop devices, no root.
package disk

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// sector is the only sector size of Flatcar's images, in bytes.
const sector = 512

// Type GUIDs, from Flatcar's seismograph, src/firmware/include/gpt.h.
const (
	typeOEM  = "0FC63DAF-8483-4772-8E79-3D69D8477DE4" // Linux data
	typeRoot = "3884DD41-8582-4404-B9A8-E9B84F2DF50E" // ROOT, grown at first boot
	typeUSR  = "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"
	typeESP  = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
)

// Partition is one used entry of the table.
type Partition struct {
	// Number counts from 1, as in /dev/sda1.
	Number int
	Label  string
	// Type and GUID are in upper case.
	Type, GUID string
	Attributes uint64
	// Offset and Length are in bytes.
	Offset, Length int64
}

// Table is a disk's partitions, in the order of their numbers.
type Table struct {
	DiskGUID string
	// Size of the disk in bytes.
	Size       int64
	Partitions []Partition
}

// ReadTable reads the primary GPT of an image file. A table that only its backup
// could save is an error: such an image is damaged.
func ReadTable(f *os.File) (Table, error) {
	st, err := f.Stat()
	if err != nil {
		return Table{}, fmt.Errorf("reading the partition table of %s: %w", f.Name(), err)
	}
	h, err := readHeader(f, st.Size())
	if err != nil {
		return Table{}, fmt.Errorf("reading the partition table of %s: %w", f.Name(), err)
	}
	t, err := gpt.Read(f, sector, sector)
	if err != nil {
		return Table{}, fmt.Errorf("reading the partition table of %s: %w", f.Name(), err)
	}
	if t.RecoveredFromBackup {
		return Table{}, fmt.Errorf("reading the partition table of %s: the primary table is damaged, only its backup is whole", f.Name())
	}
	out := Table{DiskGUID: strings.ToUpper(t.GUID), Size: st.Size()}
	for _, p := range t.Partitions {
		if p.Type == gpt.Unused {
			continue
		}
		if p.End < p.Start || p.End >= uint64(st.Size()/sector) {
			return Table{}, fmt.Errorf("reading the partition table of %s: partition %d (%s) has sectors %d to %d, the disk has %d", f.Name(), p.Index, p.Name, p.Start, p.End, st.Size()/sector)
		}
		if p.Start < h.end() {
			return Table{}, fmt.Errorf("reading the partition table of %s: partition %d (%s) begins at sector %d, inside the table, which ends at %d", f.Name(), p.Index, p.Name, p.Start, h.end())
		}
		out.Partitions = append(out.Partitions, Partition{
			Number:     p.Index,
			Label:      p.Name,
			Type:       strings.ToUpper(string(p.Type)),
			GUID:       strings.ToUpper(p.GUID),
			Attributes: p.Attributes,
			Offset:     int64(p.Start) * sector,
			Length:     int64(p.End-p.Start+1) * sector,
		})
	}
	if err := out.disjoint(); err != nil {
		return Table{}, fmt.Errorf("reading the partition table of %s: %w", f.Name(), err)
	}
	return out, nil
}

// disjoint refuses partitions that share sectors: what is written to one would
// be lost from the other.
func (t Table) disjoint() error {
	byOffset := slices.SortedFunc(slices.Values(t.Partitions), func(a, b Partition) int { return cmp.Compare(a.Offset, b.Offset) })
	for i := 1; i < len(byOffset); i++ {
		if a, b := byOffset[i-1], byOffset[i]; a.Offset+a.Length > b.Offset {
			return fmt.Errorf("partition %s overlaps %s", a.Label, b.Label)
		}
	}
	return nil
}

// find returns the only partition with a label, which must have the type.
func (t Table) find(label, typ string) (Partition, error) {
	var found []Partition
	for _, p := range t.Partitions {
		if p.Label == label {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Partition{}, fmt.Errorf("there are %d partitions labelled %s, want 1", len(found), label)
	}
	if found[0].Type != typ {
		return Partition{}, fmt.Errorf("partition %s has type %s, want %s", label, found[0].Type, typ)
	}
	return found[0], nil
}

// Layout is what a build must know of a Flatcar image.
type Layout struct {
	Table Table
	// ESP holds the boot programs and the kernel; it is never written to.
	ESP Partition
	// OEM takes Ignition's configuration and GRUB's arguments.
	OEM Partition
	// Root is the last partition on the disk, so that it can grow.
	Root Partition
}

// ErrNotFlatcar is wrapped when an image is not laid out as Flatcar is.
var ErrNotFlatcar = errors.New("this is no generic Flatcar disk image")

// ReadLayout reads the table and finds the partitions of a Flatcar image.
func ReadLayout(f *os.File) (Layout, error) {
	t, err := ReadTable(f)
	if err != nil {
		return Layout{}, err
	}
	l, err := t.layout()
	if err != nil {
		return Layout{}, fmt.Errorf("examining %s: %w: %w", f.Name(), ErrNotFlatcar, err)
	}
	return l, nil
}

func (t Table) layout() (Layout, error) {
	l := Layout{Table: t}
	var err error
	for _, w := range []struct {
		label, typ string
		into       *Partition
	}{
		{"EFI-SYSTEM", typeESP, &l.ESP}, {"USR-A", typeUSR, nil}, {"USR-B", typeUSR, nil},
		{"OEM", typeOEM, &l.OEM}, {"ROOT", typeRoot, &l.Root},
	} {
		p, ferr := t.find(w.label, w.typ)
		if ferr != nil {
			err = errors.Join(err, ferr)
			continue
		}
		if w.into != nil {
			*w.into = p
		}
	}
	if err != nil {
		return Layout{}, err
	}
	for _, p := range t.Partitions {
		if p.Offset > l.Root.Offset {
			return Layout{}, fmt.Errorf("partition %s lies behind ROOT, which then could not grow", p.Label)
		}
	}
	return l, nil
}
