package qcow2_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/imagectl/imagectl/images/qcow2"
	"github.com/imagectl/imagectl/images/sparse/sparsetest"
)

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	var problems bytes.Buffer
	cmd := exec.Command("qemu-img", args...)
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s%s", args, err, out, problems.String())
	}
	return out
}

func write(t *testing.T, src *os.File, size int64, o qcow2.Options) string {
	t.Helper()
	dst, err := os.Create(filepath.Join(t.TempDir(), "disk.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := qcow2.Write(context.Background(), dst, src, size, o); err != nil {
		t.Fatal(err)
	}
	return dst.Name()
}

// judge has QEMU check the structure, refcounts included, and compare contents.
func judge(t *testing.T, path string, src *os.File, size int64) {
	t.Helper()
	var check struct {
		CheckErrors int `json:"check-errors"`
		Leaks       int `json:"leaks"`
		Corruptions int `json:"corruptions"`
	}
	out := qemuImg(t, "check", "--output=json", "-f", "qcow2", path)
	if err := json.Unmarshal(out, &check); err != nil || check.CheckErrors+check.Leaks+check.Corruptions != 0 {
		t.Errorf("qemu-img check: %v\n%s", err, out)
	}
	qemuImg(t, "compare", "-f", "qcow2", "-F", "raw", path, src.Name())
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out = qemuImg(t, "info", "--output=json", "-f", "qcow2", path)
	if want := (size + 511) / 512 * 512; json.Unmarshal(out, &info) != nil || info.Size != want {
		t.Errorf("qemu-img info: want size %d\n%s", want, out)
	}
}

func TestQEMUReadsWhatWeWrite(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]qcow2.Options{"deflate": {}, "zstd": {Compression: qcow2.Zstd}} {
		// Sizes around a sector, a cluster and what one L2 table covers (512 MiB with
		// clusters of 64 KiB, 2 GiB with those of 128).
		for seed, size := range []int64{1, 512, 65535, 65536, 65537, 1 << 20, 131072, 131073, 9<<20 + 513, 512 << 20, 512<<20 + 1, 2 << 30, 2<<30 + 12345} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
				t.Parallel()
				src := sparsetest.Image(t, uint64(seed), size)
				judge(t, write(t, src, size, o), src, size)
			})
		}
	}
}

func FuzzImages(f *testing.F) {
	f.Add(uint64(1), uint32(1<<20), false)
	f.Add(uint64(2), uint32(3<<20+1), true)
	f.Add(uint64(3), uint32(600<<20+511), true)
	f.Fuzz(func(t *testing.T, seed uint64, size uint32, zstd bool) {
		s := int64(size)%(1<<30) + 1
		o := qcow2.Options{}
		if zstd {
			o.Compression = qcow2.Zstd
		}
		src := sparsetest.Image(t, seed, s)
		judge(t, write(t, src, s, o), src, s)
	})
}

// Noise does not shrink and is stored as it is; compressed clusters between fill
// gaps, and many tiny ones share one cluster.
func TestNoiseAndTinyClustersShareTheFile(t *testing.T) {
	t.Parallel()
	noise, err := os.ReadFile(sparsetest.Image(t, 11, 64<<20).Name())
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	const clusters = 8192 + 700
	b := make([]byte, 65536)
	for i := range int64(clusters) {
		clear(b)
		switch {
		case i > 2000 && i < 7000: // 5000 clusters of a dozen bytes each
			b[0] = byte(i)
		case i%5 == 0:
			for j := range b {
				b[j] = byte(i*7+int64(j)*int64(j)>>3) ^ noise[(i*65536+int64(j)*131)%int64(len(noise))]
			}
		default:
			copy(b, fmt.Sprint(i))
		}
		if _, err := src.WriteAt(b, i*65536); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []qcow2.Options{{}, {Compression: qcow2.Zstd}} {
		judge(t, write(t, src, clusters*65536, o), src, clusters*65536)
	}
}

// Not parallel: it changes the number of processors.
func TestTheBytesDoNotDependOnTheNumberOfProcessors(t *testing.T) {
	const size = 40<<20 + 3
	src := sparsetest.Image(t, 5, size)
	for _, o := range []qcow2.Options{{}, {Compression: qcow2.Zstd}} {
		read := func() []byte {
			b, err := os.ReadFile(write(t, src, size, o))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		many := read()
		old := runtime.GOMAXPROCS(1)
		one := read()
		runtime.GOMAXPROCS(old)
		if !bytes.Equal(one, many) {
			t.Errorf("%+v: one processor writes other bytes than %d", o, old)
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
	for _, size := range []int64{0, 1 << 52} {
		if err := qcow2.Write(context.Background(), dst, src, size, qcow2.Options{}); err == nil {
			t.Errorf("a disk of %d bytes was written", size)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := qcow2.Write(ctx, dst, src, 1<<20, qcow2.Options{}); err == nil {
		t.Error("a cancelled context did not stop it")
	}
}
