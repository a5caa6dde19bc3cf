package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

// FuzzGPT puts bytes over a table of one partition and mends the checksums, so
// that they reach the parser. Every partition that is told lies on the disk.
func FuzzGPT(f *testing.F) {
	const size = 1 << 20
	table := make([]byte, 34*sector)
	copy(table[sector:], "EFI PART")
	h := table[sector:]
	le := binary.LittleEndian
	le.PutUint32(h[8:], 1<<16) // revision 1.0
	le.PutUint32(h[12:], headerMinSize)
	le.PutUint64(h[24:], 1)
	le.PutUint64(h[32:], size/sector-1)
	le.PutUint64(h[40:], 34)
	le.PutUint64(h[48:], size/sector-34)
	h[56] = 1 // disk GUID
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], entrySize)
	e := table[2*sector:]
	e[0], e[16] = 2, 3 // type and GUID
	le.PutUint64(e[32:], 64)
	le.PutUint64(e[40:], 127)
	e[56] = 'x'
	f.Add(uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, at uint16, over []byte) {
		b := bytes.Clone(table)
		copy(b[sector+int(at)%(33*sector):], over)
		h := b[sector:]
		if from, n := le.Uint64(h[72:])*sector, uint64(le.Uint32(h[80:]))*entrySize; from <= uint64(len(b)) && n <= uint64(len(b))-from {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(b[from:from+n]))
		}
		if n := le.Uint32(h[12:]); n >= headerMinSize && n <= sector {
			le.PutUint32(h[16:], 0)
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:n]))
		}
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		img, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		got, err := ReadTable(img)
		if err != nil {
			if len(over) == 0 {
				t.Error(err)
			}
			return
		}
		for _, p := range got.Partitions {
			if p.Offset < 0 || p.Length <= 0 || p.Offset > size-p.Length {
				t.Errorf("partition %+v is not on the disk of %d bytes", p, size)
			}
		}
	})
}
