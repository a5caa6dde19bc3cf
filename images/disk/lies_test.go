package disk_test

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/disk"
	"github.com/imagectl/imagectl/test/baseimage"
)

// tableSize is the head of an image: MBR, GPT header and 128 entries of 128 bytes.
const tableSize = 34 * 512

// seal makes the checksums fit a table that was changed, so that only what it says
// can give it away.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b[512+88:], crc32.ChecksumIEEE(b[1024:tableSize]))
	clear(b[512+16 : 512+20])
	binary.LittleEndian.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:512+92]))
}

// entry is the partition with a number.
func entry(b []byte, number int) []byte { return b[1024+(number-1)*128:][:128] }

func put64(b []byte, v uint64) { binary.LittleEndian.PutUint64(b, v) }

func TestATableThatLiesIsRefused(t *testing.T) {
	t.Parallel()
	path := baseimage.Make(t, t.TempDir(), baseimage.Options{})
	truth := make([]byte, tableSize)
	if _, err := open(t, path).ReadAt(truth, 0); err != nil {
		t.Fatal(err)
	}
	start := func(number int) uint64 { return binary.LittleEndian.Uint64(entry(truth, number)[32:]) }
	for name, tc := range map[string]struct {
		lie  func(b []byte)
		want string
	}{
		"nothing":                        {func([]byte) {}, ""},
		"ROOT ends behind the disk":      {func(b []byte) { put64(entry(b, 9)[40:], 1<<40) }, "partition 9 (ROOT) has sectors "},
		"OEM ends before it begins":      {func(b []byte) { put64(entry(b, 6)[40:], 5) }, "partition 6 (OEM) has sectors "},
		"OEM is the whole address space": {func(b []byte) { put64(entry(b, 6)[32:], 0); put64(entry(b, 6)[40:], 1<<64-1) }, "partition 6 (OEM) has sectors "},
		"OEM lies over the table":        {func(b []byte) { put64(entry(b, 6)[32:], 2); put64(entry(b, 6)[40:], 100) }, "partition 6 (OEM) begins at sector 2, inside the table, which ends at 34"},
		"OEM lies over USR-A":            {func(b []byte) { put64(entry(b, 6)[32:], start(3)); put64(entry(b, 6)[40:], start(3)) }, "overlaps"},
		"ROOT lies over OEM":             {func(b []byte) { put64(entry(b, 9)[32:], start(6)) }, "overlaps"},
		"two partitions are OEM":         {func(b []byte) { copy(entry(b, 7)[56:], entry(b, 6)[56:]) }, "there are 2 partitions labelled OEM, want 1"},
		"OEM has the type of USR":        {func(b []byte) { copy(entry(b, 6)[:16], entry(b, 3)[:16]) }, "partition OEM has type 5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"},
		"the header is elsewhere":        {func(b []byte) { put64(b[512+24:], 7) }, "the GPT header at sector 1 says it is at 7"},
		"the entries are nowhere":        {func(b []byte) { put64(b[512+72:], 1<<60) }, "the GPT's entries are said to be at sector"},
		"there are no entries":           {func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 0) }, "the GPT has 0 entries"},
		"there are far too many":         {func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 1<<31) }, "the GPT has 2147483648 entries"},
		"entries have no size":           {func(b []byte) { binary.LittleEndian.PutUint32(b[512+84:], 0) }, "entries of 0 bytes"},
		"the header is a whole sector":   {func(b []byte) { binary.LittleEndian.PutUint32(b[512+12:], 1<<20) }, "the GPT header says it has 1048576 bytes"},
	} {
		b := append([]byte(nil), truth...)
		tc.lie(b)
		seal(b)
		lying := filepath.Join(t.TempDir(), "lying.bin")
		copyImage(t, path, lying, b)
		_, err := disk.ReadLayout(open(t, lying))
		if tc.want == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// copyImage makes a file as large as an image, with another head and nothing else.
func copyImage(t *testing.T, from, to string, head []byte) {
	t.Helper()
	st, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, head, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(to, st.Size()); err != nil {
		t.Fatal(err)
	}
}
