package vmdk_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/sparse/sparsetest"
	"github.com/imagectl/imagectl/images/vmdk"
)

var contentID = [16]byte{0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 0x0a, 0x0b, 0x0c, 0x0d}

func write(t testing.TB, src *os.File, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := vmdk.Write(context.Background(), &b, src, size, vmdk.Options{ContentID: contentID}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tool runs a foreign judge; one that is not installed fails the test.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestForeignReadersSeeTheImage(t *testing.T) {
	t.Parallel()
	const grain, table = vmdk.GrainSize, 512 * vmdk.GrainSize
	for seed, size := range []int64{1, 511, 512, grain - 1, grain, grain + 1, 3_000_001, table - 512, table, table + 1, 5*table + 7*grain + 4096, 9 * table} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			raw := sparsetest.Image(t, uint64(seed), size)
			path := filepath.Join(t.TempDir(), "disk.vmdk")
			b := write(t, raw, size)
			if len(b)%512 != 0 {
				t.Errorf("the file has %d bytes, not whole sectors", len(b))
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := tool(t, "qemu-img", "check", "-f", "vmdk", path); !strings.Contains(got, "No errors") {
				t.Errorf("qemu-img check: %s", got)
			}
			tool(t, "qemu-img", "compare", "-f", "vmdk", "-F", "raw", path, raw.Name())
			var info struct {
				VirtualSize int64 `json:"virtual-size"`
				Specific    struct {
					Data struct {
						CID        uint32
						ParentCID  uint32 `json:"parent-cid"`
						CreateType string `json:"create-type"`
					}
				} `json:"format-specific"`
			}
			if err := json.Unmarshal([]byte(tool(t, "qemu-img", "info", "--output=json", path)), &info); err != nil {
				t.Fatal(err)
			}
			if got, want := info.VirtualSize, vmdk.Capacity(size); got != want {
				t.Errorf("got a disk of %d bytes, want %d", got, want)
			}
			if d := info.Specific.Data; d.CID != 0x0a0b0c0d || d.ParentCID != 0xffffffff || d.CreateType != "streamOptimized" {
				t.Errorf("qemu-img reads the descriptor as %+v", d)
			}
			if got := tool(t, "vmdkinfo", path); !strings.Contains(got, "Stream optimized") || !strings.Contains(got, "0x0a0b0c0d") {
				t.Errorf("libvmdk reads %s", got)
			}
		})
	}
}

// VMware's own converter gives a compressed grain and its header no more than
// this much room.
const roomInVMware = 129 * 512

func TestStreamIsInOrderAndEndsAsTheSpecificationSays(t *testing.T) {
	t.Parallel()
	size := int64(3*512*vmdk.GrainSize + 12345)
	b := write(t, sparsetest.Image(t, 42, size), size)
	u32, u64 := func(off int) uint32 { return le(b[off : off+4]) }, func(off int) uint64 {
		return uint64(le(b[off:off+4])) | uint64(le(b[off+4:off+8]))<<32
	}
	grains, kinds, last := 0, []uint32{}, int64(-1)
	at := 128 * 512
	for at < len(b) {
		value, length := u64(at), int(u32(at+8))
		if length > 0 {
			if int64(value) <= last || value%128 != 0 {
				t.Fatalf("grain of sector %d follows %d", value, last)
			}
			if length+12 > roomInVMware {
				t.Errorf("grain of sector %d has %d bytes", value, length)
			}
			last = int64(value)
			grains++
			at += (12 + length + 511) / 512 * 512
			continue
		}
		kinds = append(kinds, u32(at+12))
		at += 512 + int(value)*512
	}
	if grains == 0 || len(kinds) < 4 {
		t.Fatalf("got %d grains and markers %v", grains, kinds)
	}
	for _, k := range kinds[:len(kinds)-3] {
		if k != 1 {
			t.Errorf("got markers %v, want grain tables first", kinds)
		}
	}
	if got := fmt.Sprint(kinds[len(kinds)-3:]); got != "[2 3 0]" {
		t.Errorf("the last markers are %s, want directory, footer and end [2 3 0]", got)
	}
	footer := len(b) - 2*512
	if got := u64(56); got != 1<<64-1 {
		t.Errorf("the header's directory is at %d, want it left to the footer", got)
	}
	if got := u64(footer + 56); got == 0 || int(got)*512 >= footer {
		t.Errorf("the footer's directory is at sector %d", got)
	}
	b[footer+56], b[footer+57], b[footer+58], b[footer+59] = 0xff, 0xff, 0xff, 0xff
	b[footer+60], b[footer+61], b[footer+62], b[footer+63] = 0xff, 0xff, 0xff, 0xff
	if !bytes.Equal(b[:512], b[footer:footer+512]) {
		t.Error("header and footer differ in more than the directory's place")
	}
}

func le(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func TestDescriptorSaysWhatVSphereAsksFor(t *testing.T) {
	t.Parallel()
	size := int64(8 << 30)
	f, err := os.Create(filepath.Join(t.TempDir(), "raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	got, _, _ := strings.Cut(string(write(t, f, size)[512:21*512]), "\x00")
	want := `# Disk DescriptorFile
version=1
CID=0a0b0c0d
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RDONLY 16777216 SPARSE "stream.vmdk"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "1045"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "deadbeef01020304050607080a0b0c0d"
ddb.toolsInstallType = "4"
ddb.toolsVersion = "2147483647"
ddb.virtualHWVersion = "4"
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Not parallel: it changes the number of processors.
func TestBytesDependOnTheImageAlone(t *testing.T) {
	size := int64(20 << 20)
	raw := sparsetest.Image(t, 7, size)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	want := sha256.Sum256(write(t, raw, size))
	for _, n := range []int{2, 3, 16} {
		runtime.GOMAXPROCS(n)
		if got := sha256.Sum256(write(t, raw, size)); got != want {
			t.Errorf("with %d processors the file differs", n)
		}
	}
	// The same content without any hole.
	b, err := os.ReadFile(raw.Name())
	if err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(t.TempDir(), "full")
	if err := os.WriteFile(full, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(full)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := sha256.Sum256(write(t, f, size)); got != want {
		t.Error("without holes the file differs")
	}
}

type fullDisk struct{ left int }

var errFull = errors.New("no room")

func (w *fullDisk) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestFailuresEndTheWriting(t *testing.T) {
	t.Parallel()
	size := int64(64 << 20)
	raw := sparsetest.Image(t, 9, size)
	for _, left := range []int{0, 70_000, 300_000} {
		if err := vmdk.Write(context.Background(), &fullDisk{left: left}, raw, size, vmdk.Options{}); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: got %v", left, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := vmdk.Write(ctx, io.Discard, raw, size, vmdk.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	for size, want := range map[int64]string{
		0:       "an image of 0 bytes does not fit the format; it must have 1 to 2199023255552",
		4 << 40: "an image of 4398046511104 bytes does not fit",
	} {
		err := vmdk.Write(context.Background(), io.Discard, raw, size, vmdk.Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("size %d: got %v, want %q", size, err, want)
		}
	}
}
