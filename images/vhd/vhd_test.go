package vhd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/sparse/sparsetest"
	"github.com/imagectl/imagectl/images/vhd"
)

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return out
}

func options() vhd.Options {
	return vhd.Options{UUID: [16]byte{1, 2, 3, 15: 16}, ModTime: time.Date(2026, 8, 13, 10, 0, 0, 0, time.UTC)}
}

func write(t *testing.T, src *os.File, size int64) *os.File {
	t.Helper()
	dst, err := os.Create(filepath.Join(t.TempDir(), "disk.vhd"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dst.Close() })
	if err := vhd.Write(context.Background(), dst, src, size, options()); err != nil {
		t.Fatal(err)
	}
	return dst
}

func TestQEMUReadsWhatWeWrite(t *testing.T) {
	t.Parallel()
	// QEMU keeps holes of a fixed VHD to itself, so nothing here is very large.
	for seed, size := range []int64{1, 512, 1 << 20, 1<<20 + 1, 9<<20 + 513, 64 << 20, 600<<20 + 7} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			src := sparsetest.Image(t, uint64(seed), size)
			dst := write(t, src, size)
			var info struct {
				Size int64 `json:"virtual-size"`
			}
			out := qemuImg(t, "info", "--output=json", "-f", "vpc", dst.Name())
			if err := json.Unmarshal(out, &info); err != nil {
				t.Fatal(err)
			}
			whole := (size + 1<<20 - 1) >> 20 << 20
			if info.Size != whole {
				t.Errorf("want a disk of %d bytes, QEMU sees\n%s", whole, out)
			}
			qemuImg(t, "compare", "-f", "vpc", "-F", "raw", dst.Name(), src.Name())
			st, err := dst.Stat()
			if err != nil || st.Size() != whole+512 {
				t.Errorf("the file has %d bytes: %v", st.Size(), err)
			}
			if got, want := sparsetest.DataBytes(t, dst), sparsetest.DataBytes(t, src); got > want+8192 {
				t.Errorf("%d bytes are no holes, of the source %d", got, want)
			}
		})
	}
}

// The footer must be what QEMU writes, but for who and when.
func TestTheFooterIsQEMUsOwn(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{1 << 20, 64 << 20, 504 << 20, 8064 << 20, 127 << 30, 500 << 30} {
		src, err := os.Create(filepath.Join(t.TempDir(), "raw"))
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if err := src.Truncate(size); err != nil {
			t.Fatal(err)
		}
		foot := func(path string) []byte {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 512)
			if _, err := f.ReadAt(b, size); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			for _, r := range [][2]int{{24, 40}, {64, 84}} { // creation and creator; checksum and UUID
				clear(b[r[0]:r[1]])
			}
			return b
		}
		theirs := filepath.Join(t.TempDir(), "qemu.vhd")
		qemuImg(t, "create", "-f", "vpc", "-o", "subformat=fixed,force_size", theirs, fmt.Sprint(size))
		got, want := foot(write(t, src, size).Name()), foot(theirs)
		if size < 65535*16*255*512 {
			// QEMU gives every forced size the largest geometry; ours is the
			// specification's. Both say the same size.
			if c, h, s := int64(got[56])<<8|int64(got[57]), int64(got[58]), int64(got[59]); c*h*s*512 > size || (c+1)*h*s*512 <= size {
				t.Errorf("%d bytes: geometry %d/%d/%d is not the largest that fits", size, c, h, s)
			}
			clear(got[56:60])
			clear(want[56:60])
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got footer\n%x\nwant\n%x", size, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	src := sparsetest.Image(t, 1, 1<<20)
	dst, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	for _, size := range []int64{0, 3 << 40} {
		if err := vhd.Write(context.Background(), dst, src, size, vhd.Options{}); err == nil {
			t.Errorf("a disk of %d bytes was written", size)
		}
	}
}
