package compress_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/imagectl/imagectl/images/compress"
	"github.com/imagectl/imagectl/images/sparse/sparsetest"
)

type writer func(ctx context.Context, w io.Writer, src *os.File) error

// tools unpack each format; the programs of the same name judge.
func tools() map[string]writer {
	return map[string]writer{"gzip": compress.Gzip, "xz": compress.XZ, "zstd": compress.Zstd}
}

func pack(t *testing.T, w writer, src *os.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := w(context.Background(), &out, src); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestForeignToolsUnpackTheImage(t *testing.T) {
	t.Parallel()
	for tool, w := range tools() {
		for seed, size := range []int64{1, 511, 4 << 20, 9<<20 + 513, 40<<20 + 7} {
			t.Run(fmt.Sprintf("%s %d", tool, size), func(t *testing.T) {
				t.Parallel()
				src := sparsetest.Image(t, uint64(seed), size)
				packed := pack(t, w, src)
				for _, arg := range []string{"-t", "-dc"} {
					cmd := exec.Command(tool, arg)
					cmd.Stdin = bytes.NewReader(packed)
					var got, problems bytes.Buffer
					cmd.Stdout, cmd.Stderr = &got, &problems
					if err := cmd.Run(); err != nil {
						t.Fatalf("%s %s: %v\n%s", tool, arg, err, problems.String())
					}
					if arg == "-t" {
						continue
					}
					want, err := os.ReadFile(src.Name())
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got.Bytes(), want) {
						t.Errorf("%s unpacks %d bytes that are not the image of %d", tool, got.Len(), len(want))
					}
				}
			})
		}
	}
}

// xz reads the index only when it lists.
func TestXZListsTheBlocks(t *testing.T) {
	t.Parallel()
	src := sparsetest.Image(t, 3, 20<<20)
	path := src.Name() + ".xz"
	if err := os.WriteFile(path, pack(t, compress.XZ, src), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("xz", "--robot", "--list", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("file\t1\t5\t")) || !bytes.Contains(out, []byte("\t20971520\t")) || !bytes.Contains(out, []byte("CRC64")) {
		t.Errorf("xz lists\n%s", out)
	}
}

// Not parallel: it changes the number of processors.
func TestTheBytesDoNotDependOnTheNumberOfProcessors(t *testing.T) {
	src := sparsetest.Image(t, 7, 24<<20+100)
	for tool, w := range tools() {
		many := pack(t, w, src)
		old := runtime.GOMAXPROCS(1)
		one := pack(t, w, src)
		runtime.GOMAXPROCS(old)
		if !bytes.Equal(one, many) {
			t.Errorf("%s: one processor writes other bytes than %d", tool, old)
		}
	}
}

func TestACancelledContextStops(t *testing.T) {
	t.Parallel()
	src := sparsetest.Image(t, 5, 8<<20)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for tool, w := range tools() {
		if err := w(ctx, io.Discard, src); err == nil {
			t.Errorf("%s: no error", tool)
		}
	}
}
