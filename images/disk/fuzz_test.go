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
