package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/imagectl/imagectl/images/sparse"
)

// Fields of the GPT header and entries: UEFI 2.10, sections 5.3.2 and 5.3.3.
const (
	headerMinSize = 92
	entrySize     = 128
	// align is what a disk's size is rounded up to; platforms want whole MiB.
	align = 1 << 20
)

// header is a primary GPT header as it lies on the disk, checked.
type header struct {
	raw     []byte // one sector
	entries []byte // the whole partition array
}

func readHeader(f *os.File, size int64) (header, error) {
	if size < 64*sector || size%sector != 0 {
		return header{}, fmt.Errorf("the file has %d bytes, which is no disk", size)
	}
	raw := make([]byte, sector)
	if _, err := f.ReadAt(raw, sector); err != nil {
		return header{}, err
	}
	if !bytes.Equal(raw[:8], []byte("EFI PART")) {
		return header{}, errors.New("there is no GPT")
	}
	length := binary.LittleEndian.Uint32(raw[12:])
	if length < headerMinSize || length > sector {
		return header{}, fmt.Errorf("the GPT header says it has %d bytes", length)
	}
	if got, want := headerSum(raw), binary.LittleEndian.Uint32(raw[16:]); got != want {
		return header{}, fmt.Errorf("the GPT header's checksum is %08x, want %08x", got, want)
	}
	if lba := binary.LittleEndian.Uint64(raw[24:]); lba != 1 {
		return header{}, fmt.Errorf("the GPT header at sector 1 says it is at %d", lba)
	}
	count, each := binary.LittleEndian.Uint32(raw[80:]), binary.LittleEndian.Uint32(raw[84:])
	if each != entrySize || count == 0 || count > 1024 || count*entrySize%sector != 0 {
		return header{}, fmt.Errorf("the GPT has %d entries of %d bytes; only entries of %d bytes are supported", count, each, entrySize)
	}
	at := binary.LittleEndian.Uint64(raw[72:])
	if at < 2 || at > 1<<20 {
		return header{}, fmt.Errorf("the GPT's entries are said to be at sector %d", at)
	}
	entries := make([]byte, count*entrySize)
	if _, err := f.ReadAt(entries, int64(at)*sector); err != nil {
		return header{}, err
	}
	if got, want := crc32.ChecksumIEEE(entries), binary.LittleEndian.Uint32(raw[88:]); got != want {
		return header{}, fmt.Errorf("the checksum of the GPT's entries is %08x, want %08x", got, want)
	}
	return header{raw: raw, entries: entries}, nil
}

// end is the first sector behind the table.
func (h header) end() uint64 {
	return binary.LittleEndian.Uint64(h.raw[72:]) + uint64(len(h.entries)/sector)
}

// headerSum is the checksum of a header with its checksum field taken as zero.
func headerSum(raw []byte) uint32 {
	b := bytes.Clone(raw[:binary.LittleEndian.Uint32(raw[12:])])
	clear(b[16:20])
	return crc32.ChecksumIEEE(b)
}

// GrowRoot makes ROOT at least length bytes long and the disk as long as that
// needs, and returns the new layout. Disk GUID, the other entries and all
// attributes stay byte for byte. A ROOT that is long enough is left alone. The
// new space reads as zeros.
func GrowRoot(f *os.File, l Layout, length int64) (Layout, error) {
	length = (length + align - 1) / align * align
	if length <= l.Root.Length {
		return l, nil
	}
	if err := growRoot(f, l, length); err != nil {
		return Layout{}, fmt.Errorf("growing ROOT of %s from %d to %d bytes: %w", f.Name(), l.Root.Length, length, err)
	}
	return ReadLayout(f)
}

func growRoot(f *os.File, l Layout, length int64) error {
	h, err := readHeader(f, l.Table.Size)
	if err != nil {
		return err
	}
	array := int64(len(h.entries))
	end := l.Root.Offset + length
	size := (end + array + sector + align - 1) / align * align
	last := uint64(size/sector) - 1

	// The old backup table is inside the new ROOT.
	old := l.Table.Size - array - sector
	if err := f.Truncate(size); err != nil {
		return err
	}
	if err := sparse.Clear(f, sparse.Range{Offset: old, Length: array + sector}); err != nil {
		return err
	}

	entry := h.entries[(l.Root.Number-1)*entrySize:][:entrySize]
	binary.LittleEndian.PutUint64(entry[40:], uint64(end/sector)-1)

	primary := bytes.Clone(h.raw)
	binary.LittleEndian.PutUint64(primary[32:], last)
	binary.LittleEndian.PutUint64(primary[48:], last-uint64(array/sector)-1)
	binary.LittleEndian.PutUint32(primary[88:], crc32.ChecksumIEEE(h.entries))
	backup := bytes.Clone(primary)
	binary.LittleEndian.PutUint64(backup[24:], last)
	binary.LittleEndian.PutUint64(backup[32:], 1)
	binary.LittleEndian.PutUint64(backup[72:], last-uint64(array/sector))
	for _, b := range [][]byte{primary, backup} {
		binary.LittleEndian.PutUint32(b[16:], headerSum(b))
	}

	at := int64(binary.LittleEndian.Uint64(primary[72:])) * sector
	for _, w := range []struct {
		b   []byte
		off int64
	}{
		{h.entries, at}, {primary, sector},
		{h.entries, size - sector - array}, {backup, size - sector},
	} {
		if _, err := f.WriteAt(w.b, w.off); err != nil {
			return err
		}
	}
	return growProtectiveMBR(f, l.Table.Size, size)
}

// growProtectiveMBR makes the MBR's protective entry span the disk, if it did
// before (UEFI 2.10 section 5.2.3). Entries of a hybrid MBR stay.
func growProtectiveMBR(f *os.File, old, size int64) error {
	mbr := make([]byte, sector)
	if _, err := f.ReadAt(mbr, 0); err != nil {
		return err
	}
	for at := 446; at < 510; at += 16 {
		entry := mbr[at : at+16]
		first, count := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
		if entry[4] == 0xEE && int64(first)+int64(count) == old/sector {
			binary.LittleEndian.PutUint32(entry[12:], uint32(min(size/sector-int64(first), 0xFFFFFFFF)))
		}
	}
	_, err := f.WriteAt(mbr, 0)
	return err
}
