package iso

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/imagectl/imagectl/images/fstree"
)

const (
	// The platforms of a boot catalogue.
	platformBIOS = 0x00
	platformEFI  = 0xef

	// biosLimit bounds the BIOS's program, which is held in memory.
	biosLimit = 1 << 20
	// mbrCodeSize is the room before the program's place and the disk's number.
	mbrCodeSize = 432
)

// bootRecord is El Torito's volume descriptor.
func (l *layout) bootRecord() []byte {
	b := descriptor(0)
	copy(b[7:], "EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(b[71:], catalogSector)
	return b
}

// catalog is El Torito's: what a BIOS takes first, since it reads no further.
func (l *layout) catalog() []byte {
	b := make([]byte, 0, SectorSize)
	efi := bootEntry(l.esp, l.espSectors())
	if l.bios == 0 {
		return append(append(b, validationEntry(platformEFI)...), efi...)
	}
	// Four sectors of 512 bytes: one of the CD. The program loads the rest.
	b = append(append(b, validationEntry(platformBIOS)...), bootEntry(l.bios, 4)...)
	header := make([]byte, 32)
	header[0] = 0x91 // the last section
	header[1] = platformEFI
	header[2] = 1 // entries in it
	return append(append(b, header...), efi...)
}

// espSectors is the ESP's size in 512 bytes. The field has 16 bits; 0 stands for
// everything up to the volume's end (UEFI 2.10, 13.3.2.1), which is why the ESP is
// the last on the medium.
func (l *layout) espSectors() uint16 {
	if n := l.ESP.Size() / diskSector; n < 1<<16 {
		return uint16(n)
	}
	return 0
}

func validationEntry(platform byte) []byte {
	b := make([]byte, 32)
	b[0], b[1], b[30], b[31] = 1, platform, 0x55, 0xaa
	var sum uint16
	for i := 0; i < len(b); i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	binary.LittleEndian.PutUint16(b[28:], -sum)
	return b
}

// bootEntry is a bootable image without emulation of a floppy or disk.
func bootEntry(start uint32, count uint16) []byte {
	b := make([]byte, 32)
	b[0] = 0x88
	binary.LittleEndian.PutUint16(b[6:], count)
	binary.LittleEndian.PutUint32(b[8:], start)
	return b
}

// prepareBIOS writes the boot information table, by which the program finds the
// volume and itself (genisoimage(1), "EL TORITO BOOT INFORMATION TABLE").
func (l *layout) prepareBIOS(files []*fstree.Node) error {
	if l.BIOS == "" {
		return nil
	}
	i := slices.IndexFunc(files, func(n *fstree.Node) bool { return n.Path == l.BIOS })
	if i < 0 {
		return fmt.Errorf("%s, which a BIOS shall start, is not in the tree", l.BIOS)
	}
	n := files[i]
	if size := n.Content.Size(); size < 64 || size > biosLimit {
		return fmt.Errorf("%s: %d bytes are no boot program of 64 bytes to 1 MiB", n.Path, size)
	}
	buf := make([]byte, n.Content.Size())
	if err := fstree.ReadBlocks(n.Content, buf, func([]byte) error { return nil }); err != nil {
		return fmt.Errorf("reading %s: %w", n.Path, err)
	}
	le := binary.LittleEndian
	clear(buf[8:64])
	le.PutUint32(buf[8:], volumeSector)
	le.PutUint32(buf[12:], l.start[n])
	le.PutUint32(buf[16:], uint32(len(buf)))
	var sum uint32
	for rest := buf[64:]; len(rest) > 0; rest = rest[min(4, len(rest)):] {
		var word [4]byte // the last may be shorter
		copy(word[:], rest)
		sum += le.Uint32(word[:])
	}
	le.PutUint32(buf[20:], sum)
	l.biosBoot, l.bios = buf, l.start[n]
	return nil
}

// The GPT (UEFI 2.10, 5.3) is for the image on a disk, whose sectors are smaller.
const (
	diskSector  = 512
	gptEntries  = 128
	entrySize   = 128
	gptTable    = gptEntries * entrySize / diskSector // sectors
	backupSize  = (gptTable + 1) * diskSector
	perCDSector = SectorSize / diskSector
)

// efiSystem is the type of an EFI system partition, as it is stored.
const efiSystem = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"

// systemArea is the first 16 sectors, which a CD does not use.
func (l *layout) systemArea() []byte {
	b := make([]byte, volumeSector*SectorSize)
	last := l.diskSectors() - 1
	copy(b, l.mbr())
	copy(b[diskSector:], l.gptHeader(1, last, 2))
	copy(b[2*diskSector:], l.gptTable())
	return b
}

func (l *layout) backupGPT() []byte {
	last := l.diskSectors() - 1
	return append(l.gptTable(), l.gptHeader(last, 1, last-gptTable)...)
}

func (l *layout) diskSectors() uint64 { return uint64(l.total) * perCDSector }

func (l *layout) mbr() []byte {
	b := make([]byte, diskSector)
	le := binary.LittleEndian
	copy(b, l.MBR)
	if len(l.MBR) > 0 {
		le.PutUint64(b[mbrCodeSize:], uint64(l.bios)*perCDSector)
		// Some BIOSes start no disk without an active partition.
		b[446] = 0x80
	}
	copy(b[440:444], l.DiskGUID[:])
	// One partition over everything, of the type that protects a GPT. Its first and
	// last place in cylinders are what UEFI 2.10, table 5.3 says.
	copy(b[447:], "\x00\x02\x00\xee\xff\xff\xff")
	le.PutUint32(b[454:], 1)
	le.PutUint32(b[458:], uint32(min(l.diskSectors()-1, 0xffffffff)))
	copy(b[510:], "\x55\xaa")
	return b
}

func (l *layout) gptTable() []byte {
	b := make([]byte, gptEntries*entrySize)
	le := binary.LittleEndian
	copy(b, efiSystem)
	copy(b[16:], storedGUID(l.ESPGUID))
	first := uint64(l.esp) * perCDSector
	le.PutUint64(b[32:], first)
	le.PutUint64(b[40:], first+uint64(l.ESP.Size()/diskSector)-1)
	for i, c := range "EFI boot" {
		le.PutUint16(b[56+2*i:], uint16(c))
	}
	return b
}

func (l *layout) gptHeader(here, other, table uint64) []byte {
	b := make([]byte, 92)
	le := binary.LittleEndian
	copy(b, "EFI PART")
	le.PutUint32(b[8:], 0x10000)
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint64(b[24:], here)
	le.PutUint64(b[32:], other)
	le.PutUint64(b[40:], 2+gptTable)                 // first usable sector
	le.PutUint64(b[48:], l.diskSectors()-gptTable-2) // last
	copy(b[56:], storedGUID(l.DiskGUID))
	le.PutUint64(b[72:], table)
	le.PutUint32(b[80:], gptEntries)
	le.PutUint32(b[84:], entrySize)
	le.PutUint32(b[88:], crc32.ChecksumIEEE(l.gptTable()))
	le.PutUint32(b[16:], crc32.ChecksumIEEE(b))
	return append(b, make([]byte, diskSector-len(b))...)
}

// storedGUID turns the first three fields of a GUID round.
func storedGUID(g [16]byte) []byte {
	b := slices.Clone(g[:])
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b
}
