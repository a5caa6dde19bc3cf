package install

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// sector is the image's, which is made for 512-byte sectors.
const sector = 512

// findPartition returns the byte range of the partition with a label, from the
// first MiB of a disk (UEFI specification 2.10, section 5.3). The bytes are
// verified by digest already; what cannot be right is still an error and never a
// panic.
func findPartition(head []byte, label string) (off, length int64, err error) {
	if len(head) < 2*sector || !bytes.Equal(head[sector:sector+8], []byte("EFI PART")) {
		return 0, 0, fmt.Errorf("finding partition %s: the image has no GPT", label)
	}
	h := head[sector : 2*sector]
	first := binary.LittleEndian.Uint64(h[72:])
	count := binary.LittleEndian.Uint32(h[80:])
	size := binary.LittleEndian.Uint32(h[84:])
	table := uint64(len(head)) / sector
	if size < 128 || size > 4096 || count > 1024 || first < 2 || first >= table || first*sector+uint64(count)*uint64(size) > uint64(len(head)) {
		return 0, 0, fmt.Errorf("finding partition %s: the image's GPT says %d entries of %d bytes at sector %d, which is not within its first %d bytes", label, count, size, first, len(head))
	}
	for i := range uint64(count) {
		e := head[first*sector+i*uint64(size):][:128]
		if bytes.Equal(e[:16], make([]byte, 16)) || name(e[56:128]) != label {
			continue
		}
		begin, end := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if begin < 1<<20/sector || end < begin || end > 1<<52 {
			return 0, 0, fmt.Errorf("finding partition %s: sectors %d to %d are not possible", label, begin, end)
		}
		return int64(begin) * sector, int64(end-begin+1) * sector, nil
	}
	return 0, 0, fmt.Errorf("finding partition %s: the image has none of that name", label)
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
