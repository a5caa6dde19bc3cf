package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// FuzzExt4 damages an empty file system anywhere in its metadata.
func FuzzExt4(f *testing.F) {
	path := filepath.Join(f.TempDir(), "root")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(path, 4<<20); err != nil {
		f.Fatal(err)
	}
	mkfs := "mke2fs"
	if _, err := os.Stat("/usr/sbin/mke2fs"); err == nil {
		mkfs = "/usr/sbin/mke2fs"
	}
	if out, err := exec.Command(mkfs, "-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal", path).CombinedOutput(); err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	if names, err := ext4Names(bytes.NewReader(img), int64(len(img))); err != nil || len(names) != 0 {
		f.Fatalf("a fresh file system: got %v, %v", names, err)
	}
	var blocks []int
	for at := 0; at < len(img); at += 256 {
		if !bytes.Equal(img[at:at+256], make([]byte, 256)) {
			blocks = append(blocks, at)
		}
	}
	f.Add(uint16(0), byte(0x18), uint32(9))          // block size
	f.Add(uint16(0), byte(0x28), uint32(0))          // inodes to a group
	f.Add(uint16(0), byte(0x58), uint32(0xffff))     // inode size
	f.Add(uint16(2), byte(8), uint32(0xffffffff))    // inode table
	f.Add(uint16(5), byte(0x28), uint32(0xfffff30a)) // extents
	f.Fuzz(func(t *testing.T, block uint16, at byte, value uint32) {
		b := bytes.Clone(img)
		start := blocks[int(block)%len(blocks)]
		binary.LittleEndian.PutUint32(b[start+int(at)%253:], value)
		// Any answer will do; a panic or a long walk will not.
		_, _ = ext4Names(bytes.NewReader(b), int64(len(b)))
	})
}

// FuzzESP reads a boot sector, a table and a root directory that are made up.
func FuzzESP(f *testing.F) {
	boot := make([]byte, 512)
	binary.LittleEndian.PutUint16(boot[11:], 512)
	boot[13], boot[14], boot[16], boot[36], boot[44], boot[510], boot[511] = 1, 1, 1, 1, 2, 0x55, 0xaa
	table := make([]byte, 512)
	for i := range 8 {
		binary.LittleEndian.PutUint32(table[i*4:], 0x0fffffff)
	}
	entry := func(name string, attributes, first byte) []byte {
		e := append([]byte(name), make([]byte, 21)...)
		e[11], e[26] = attributes, first
		return append(e, make([]byte, 480)...)
	}
	whole := bytes.Join([][]byte{boot, table, entry("EFI        ", 0x10, 3), entry("BOOT       ", 0x10, 4), entry("BOOTAA64EFI", 0x20, 5), make([]byte, 512)}, nil)
	if amd64, arm64, err := bootPrograms(bytes.NewReader(whole), int64(len(whole))); amd64 || !arm64 || err != nil {
		f.Fatalf("got %v, %v, %v", amd64, arm64, err)
	}
	f.Add(whole)
	loop := bytes.Clone(whole)
	loop[512+8] = 2
	clear(loop[512+9 : 512+12])
	f.Add(loop)
	f.Add(whole[:700])
	f.Add(bytes.Replace(whole, boot[11:17], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Any answer will do; a panic or a long walk will not.
		_, _, _ = bootPrograms(bytes.NewReader(b), int64(len(b)))
	})
}

// FuzzBtrfs damages an empty file system and mends the checksums, so that the
// damage reaches the parser.
func FuzzBtrfs(f *testing.F) {
	path := filepath.Join(f.TempDir(), "oem")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(path, 24<<20); err != nil {
		f.Fatal(err)
	}
	mkfs := "mkfs.btrfs"
	if _, err := os.Stat("/usr/sbin/mkfs.btrfs"); err == nil {
		mkfs = "/usr/sbin/mkfs.btrfs"
	}
	if out, err := exec.Command(mkfs, "-q", "--mixed", path).CombinedOutput(); err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	node := int(binary.LittleEndian.Uint32(img[superOffset+0x94:]))
	// Every place that holds data is a candidate: the superblock and the nodes.
	var blocks []int
	for at := 0; at < len(img); at += 4096 {
		if !bytes.Equal(img[at:at+4096], make([]byte, 4096)) {
			blocks = append(blocks, at)
		}
	}
	f.Add(uint16(0), uint16(0x88), byte(2))
	f.Add(uint16(1), uint16(0x60), byte(255))
	f.Add(uint16(2), uint16(0x64), byte(7))
	f.Fuzz(func(t *testing.T, block, at uint16, value byte) {
		b := bytes.Clone(img)
		start := blocks[int(block)%len(blocks)]
		length := node
		if start == superOffset {
			length = superSize
		}
		if start+length > len(b) {
			return
		}
		b[start+32+int(at)%(length-32)] = value
		binary.LittleEndian.PutUint32(b[start:], crc32.Checksum(b[start+32:start+length], crc32.MakeTable(crc32.Castagnoli)))
		// Any answer will do; a panic or a long walk will not.
		_, _ = btrfsNames(bytes.NewReader(b), int64(len(b)))
	})
}
