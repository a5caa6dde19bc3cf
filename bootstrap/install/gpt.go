package install

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// sector is the image's, which is made for 512-byte sectors.
const sector = 512

// Partition is one partition of the written disk.
type Partition struct {
	// Number counts from 1.
	Number uint32
	// First and Sectors are in units of 512 bytes.
	First, Sectors uint64
	// GUID is its own, in the byte order of the partition table.
	GUID [16]byte
	// kind is the type GUID in the same order.
	kind  [16]byte
	label string
}

func (p Partition) bytes() (off, length int64) {
	return int64(p.First) * sector, int64(p.Sectors) * sector
}

// isESP knows an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
func (p Partition) isESP() bool {
	return p.kind == [16]byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}
}

// findPartition returns the first partition that fits; what names it in an error.
// It reads the first MiB of a disk (UEFI specification 2.10, section 5.3). The
// bytes are verified by digest already; what cannot be right is still an error and
// never a panic.
func findPartition(head []byte, what string, fits func(Partition) bool) (Partition, error) {
	if len(head) < 2*sector || !bytes.Equal(head[sector:sector+8], []byte("EFI PART")) {
		return Partition{}, fmt.Errorf("finding partition %s: the image has no GPT", what)
	}
	h := head[sector : 2*sector]
	first := binary.LittleEndian.Uint64(h[72:])
	count := binary.LittleEndian.Uint32(h[80:])
	size := binary.LittleEndian.Uint32(h[84:])
	table := uint64(len(head)) / sector
	if size < 128 || size > 4096 || count > 1024 || first < 2 || first >= table || first*sector+uint64(count)*uint64(size) > uint64(len(head)) {
		return Partition{}, fmt.Errorf("finding partition %s: the image's GPT says %d entries of %d bytes at sector %d, which is not within its first %d bytes", what, count, size, first, len(head))
	}
	for i := range count {
		e := head[first*sector+uint64(i)*uint64(size):][:128]
		begin, end := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		p := Partition{Number: i + 1, First: begin, Sectors: end - begin + 1, GUID: [16]byte(e[16:32]), kind: [16]byte(e[:16]), label: name(e[56:128])}
		if p.kind == [16]byte{} || !fits(p) {
			continue
		}
		if begin < 1<<20/sector || end < begin || end > 1<<52 {
			return Partition{}, fmt.Errorf("finding partition %s: sectors %d to %d are not possible", what, begin, end)
		}
		return p, nil
	}
	return Partition{}, fmt.Errorf("finding partition %s: the image has none", what)
}

func name(b []byte) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
