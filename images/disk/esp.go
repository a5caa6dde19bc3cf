package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Enough of FAT32, read-only, to see what is in a directory under its short name:
// Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.
const (
	fatEntry     = 32
	fatDirectory = 0x10 // attributes of an entry
	fatLongName  = 0x0f
	fatEnd       = 0x0ffffff8 // clusters from here on end a chain
	// maxFATClusters bounds a directory; Flatcar's fit into one.
	maxFATClusters = 64
)

// Arch tells by the name of the program that UEFI starts which processors an
// image is for: amd64 or arm64, or "" when its ESP has none of both.
func Arch(f *os.File, l Layout) (string, error) {
	r := io.NewSectionReader(f, l.ESP.Offset, l.ESP.Length)
	amd64, arm64, err := bootPrograms(r, l.ESP.Length)
	switch {
	case err != nil:
		return "", fmt.Errorf("examining EFI-SYSTEM of %s: %w", f.Name(), err)
	case amd64 && arm64:
		return "", fmt.Errorf("examining EFI-SYSTEM of %s: it has programs for two kinds of processors, as no image of Flatcar's has", f.Name())
	case amd64:
		return "amd64", nil
	case arm64:
		return "arm64", nil
	}
	return "", nil
}

// fat32 is where a FAT32 has what; all in bytes.
type fat32 struct {
	r            io.ReaderAt
	size         int64
	table, data  int64
	cluster      int64
	rootsCluster uint32
}

// bootPrograms looks for EFI/BOOT/BOOTX64.EFI and BOOTAA64.EFI.
func bootPrograms(r io.ReaderAt, size int64) (amd64, arm64 bool, err error) {
	fs, ok, err := openFAT(r, size)
	if err != nil || !ok {
		return false, false, err
	}
	at := fs.rootsCluster
	for _, name := range []string{"EFI", "BOOT"} {
		found := false
		if err := fs.walk(at, func(n string, directory bool, first uint32) {
			if n == name && directory && !found {
				at, found = first, true
			}
		}); err != nil || !found {
			return false, false, err
		}
	}
	err = fs.walk(at, func(n string, directory bool, _ uint32) {
		amd64 = amd64 || n == "BOOTX64.EFI" && !directory
		arm64 = arm64 || n == "BOOTAA64.EFI" && !directory
	})
	return amd64, arm64, err
}

// openFAT returns false for what is no FAT32.
func openFAT(r io.ReaderAt, size int64) (*fat32, bool, error) {
	b := make([]byte, sector)
	if size < sector {
		return nil, false, nil
	}
	if _, err := r.ReadAt(b, 0); err != nil {
		return nil, false, err
	}
	perSector := int64(binary.LittleEndian.Uint16(b[11:]))
	reserved, tables := int64(binary.LittleEndian.Uint16(b[14:])), int64(b[16])
	small, perTable := binary.LittleEndian.Uint16(b[22:]), int64(binary.LittleEndian.Uint32(b[36:]))
	if b[510] != 0x55 || b[511] != 0xaa || small != 0 || perTable == 0 || perSector < sector || b[13] == 0 {
		return nil, false, nil
	}
	fs := &fat32{
		r: r, size: size, table: reserved * perSector, cluster: int64(b[13]) * perSector,
		data:         (reserved + tables*perTable) * perSector,
		rootsCluster: binary.LittleEndian.Uint32(b[44:]),
	}
	if fs.data >= size {
		return nil, false, fmt.Errorf("its FAT32 has data from byte %d, the partition has %d", fs.data, size)
	}
	return fs, true, nil
}

// walk visits the entries of a directory that starts at a cluster.
func (fs *fat32) walk(cluster uint32, visit func(name string, directory bool, first uint32)) error {
	b, link := make([]byte, fs.cluster), make([]byte, 4)
	for range maxFATClusters {
		if cluster&fatEnd == fatEnd {
			return nil
		}
		at := fs.data + (int64(cluster)-2)*fs.cluster
		if cluster < 2 || at+fs.cluster > fs.size {
			return fmt.Errorf("its FAT32 has a directory in cluster %d, which is not in the partition", cluster)
		}
		if _, err := fs.r.ReadAt(b, at); err != nil {
			return err
		}
		for e := b; len(e) >= fatEntry; e = e[fatEntry:] {
			switch {
			case e[0] == 0:
				return nil
			case e[0] == 0xe5 || e[11]&fatLongName == fatLongName:
				continue
			}
			name := strings.TrimRight(string(e[:8]), " ")
			if kind := strings.TrimRight(string(e[8:11]), " "); kind != "" {
				name += "." + kind
			}
			visit(name, e[11]&fatDirectory != 0, uint32(binary.LittleEndian.Uint16(e[20:]))<<16|uint32(binary.LittleEndian.Uint16(e[26:])))
		}
		if _, err := fs.r.ReadAt(link, fs.table+int64(cluster)*4); err != nil {
			return err
		}
		cluster = binary.LittleEndian.Uint32(link) & 0x0fffffff
	}
	return errors.New("its FAT32 has a directory that is too large to be looked at")
}
