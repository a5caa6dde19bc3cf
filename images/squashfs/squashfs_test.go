package squashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/squashfs"
)

const apt = "squashfs-tools"

// write makes an image file and returns its path.
func write(t testing.TB, tree *fstree.Tree, o squashfs.Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "test.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := squashfs.Write(f, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != size || size%4096 != 0 {
		t.Fatalf("Write returned %d, the image has %d bytes", size, st.Size())
	}
	return f.Name()
}

// unpack lets unsquashfs restore an image and compares the result.
func unpack(t testing.TB, tree *fstree.Tree, image string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	argv := []string{"unsquashfs", "-no-progress", "-dest", dir, image}
	if os.Getuid() != 0 {
		argv = append(argv[:1], append([]string{"-ignore-errors"}, argv[1:]...)...)
	}
	fstreetest.Run(t, apt, argv...)
	fstreetest.Compare(t, tree, dir, fstreetest.Except{})
}

func TestUnsquashfsRestoresTheTree(t *testing.T) {
	for _, blockSize := range []int{4096, 131072, 1 << 20} {
		t.Run(fmt.Sprintf("block size %d", blockSize), func(t *testing.T) {
			t.Parallel()
			tree := fstreetest.Sample(t)
			if err := tree.AddSymlink("links/longest", strings.Repeat("t", 4095)); err != nil {
				t.Fatal(err)
			}
			image := write(t, tree, squashfs.Options{ModTime: fstreetest.Time, BlockSize: blockSize})
			unpack(t, tree, image)
			stat := fstreetest.Run(t, apt, "unsquashfs", "-stat", image)
			for _, want := range []string{
				"Found a valid SQUASHFS 4:0 superblock", "Compression zstd",
				"Creation or last append time Tue Mar  4", "Filesystem is exportable via NFS", "Xattrs are not stored",
				fmt.Sprintf("Number of inodes %d", len(tree.Entries())),
			} {
				if !strings.Contains(stat, want) {
					t.Errorf("unsquashfs -stat does not say %q:\n%s", want, stat)
				}
			}
		})
	}
}

func TestEmptyTree(t *testing.T) {
	tree := new(fstree.Tree)
	image := write(t, tree, squashfs.Options{ModTime: fstreetest.Time})
	unpack(t, tree, image)
}

func TestEqualFilesAreStoredOnce(t *testing.T) {
	size := func(names ...string) int64 {
		tree := new(fstree.Tree)
		for _, n := range names {
			if err := tree.AddFile(n, 0o644, fstreetest.Noise{Seed: 1, Length: 1 << 20}); err != nil {
				t.Fatal(err)
			}
		}
		st, err := os.Stat(write(t, tree, squashfs.Options{}))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	if one, four := size("a"), size("a", "b", "c", "d"); four > one+4096 {
		t.Errorf("one file takes %d bytes, four equal ones %d", one, four)
	}
}

func TestZerosTakeNoSpace(t *testing.T) {
	tree := new(fstree.Tree)
	if err := tree.AddFile("zeros", 0o644, fstreetest.Zeros(64<<20)); err != nil {
		t.Fatal(err)
	}
	image := write(t, tree, squashfs.Options{ModTime: fstreetest.Time})
	if st, err := os.Stat(image); err != nil || st.Size() != 4096 {
		t.Errorf("64 MiB of zeros take %d bytes (%v), want 4096", st.Size(), err)
	}
	unpack(t, tree, image)
}

func TestBytesDependOnTheTreeOnly(t *testing.T) {
	read := func(o squashfs.Options) []byte {
		b, err := os.ReadFile(write(t, fstreetest.Sample(t), o))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := read(squashfs.Options{ModTime: fstreetest.Time})
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for _, procs := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(procs)
		if !bytes.Equal(first, read(squashfs.Options{ModTime: fstreetest.Time})) {
			t.Errorf("with GOMAXPROCS %d the image differs", procs)
		}
	}
	if !bytes.Equal(first, read(squashfs.Options{ModTime: fstreetest.Time, Workers: 7})) {
		t.Error("with 7 workers the image differs")
	}
}

func TestRefusals(t *testing.T) {
	entry := func(e fstree.Entry) *fstree.Tree {
		tree := new(fstree.Tree)
		if err := tree.Add(e); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	for name, c := range map[string]struct {
		tree *fstree.Tree
		o    squashfs.Options
		want string
	}{
		"odd block size": {new(fstree.Tree), squashfs.Options{BlockSize: 5000},
			"writing squashfs: block size 5000 is no power of two from 4096 to 1048576"},
		"image time": {new(fstree.Tree), squashfs.Options{ModTime: time.Unix(-1, 0)},
			"writing squashfs: the modification time 1969-12-31T23:59:59Z is outside 1970 to 2106, which is all the format can hold"},
		"entry time": {entry(fstree.Entry{Path: "d", ModTime: time.Unix(1<<32, 0)}), squashfs.Options{},
			"writing d to squashfs: the modification time 2106-02-07T06:28:16Z is outside 1970 to 2106, which is all the format can hold"},
	} {
		_, err := squashfs.Write(discard{}, c.tree, c.o)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}

// discard fails after limit bytes, when limit is not 0.
type discard struct{ limit int64 }

var errFull = errors.New("disk full")

func (d discard) WriteAt(p []byte, off int64) (int, error) {
	if d.limit > 0 && off+int64(len(p)) > d.limit {
		return 0, errFull
	}
	return len(p), nil
}

func TestFullDiskEndsThePipeline(t *testing.T) {
	tree := fstreetest.Sample(t)
	if err := tree.AddFile("big", 0o644, fstreetest.Noise{Seed: 1, Length: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := squashfs.Write(discard{limit: 1 << 20}, tree, squashfs.Options{}); !errors.Is(err, errFull) {
		t.Errorf("got %v, want %v", err, errFull)
	}
}

func FuzzTree(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 9, 0, 1, 200, 2, 2, 255, 130, 1, 250, 3, 0, 40, 1, 2, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := fstreetest.Shape(data)
		unpack(t, tree, write(t, tree, squashfs.Options{ModTime: fstreetest.Time, BlockSize: 4096}))
	})
}
