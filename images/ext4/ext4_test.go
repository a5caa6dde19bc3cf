package ext4_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/ext4"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

const (
	apt = "e2fsprogs"
	mib = int64(1) << 20
)

func options() ext4.Options {
	return ext4.Options{
		Label:    "ROOT",
		UUID:     [16]byte{0xf1, 0xa7, 0xca, 0x12, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
		HashSeed: [16]byte{16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1},
		ModTime:  fstreetest.Time,
	}
}

// write makes a sparse image file and returns its path.
func write(t testing.TB, size int64, tree *fstree.Tree, o ext4.Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "root.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := ext4.Write(f, size, tree, o); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// check lets e2fsck look for anything that is not as it should be.
func check(t testing.TB, image string) {
	t.Helper()
	out := fstreetest.Run(t, apt, "e2fsck", "-f", "-n", image)
	// With -n, e2fsck answers no and may go on to exit 0: look at its words.
	for _, bad := range []string{"? no", "WARNING", "error", "invalid"} {
		if strings.Contains(out, bad) {
			t.Fatalf("e2fsck -fn:\n%s", out)
		}
	}
}

// restore lets debugfs copy everything out and compares.
func restore(t testing.TB, tree *fstree.Tree, image string) {
	t.Helper()
	dir := t.TempDir()
	out := fstreetest.Run(t, apt, "debugfs", "-R", "rdump / "+dir, image)
	if os.Getuid() == 0 && strings.Contains(out, "rdump:") {
		t.Errorf("debugfs: %s", out)
	}
	fstreetest.Compare(t, tree, dir, fstreetest.Except{Names: []string{"lost+found"}, Links: true, SpecialBits: true})
}

func TestE2fsckAndDebugfsAgree(t *testing.T) {
	for _, size := range []int64{64 * mib, 130 * mib, 1784 * mib, 2162*mib + 512} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			t.Parallel()
			tree := fstreetest.Sample(t)
			if err := tree.AddSymlink("links/longest", strings.Repeat("t", 4095)); err != nil {
				t.Fatal(err)
			}
			image := write(t, size, tree, options())
			check(t, image)
			restore(t, tree, image)
		})
	}
}

func TestEmptyTreeInAnySize(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{8 * mib, 8*mib + 4096, 127 * mib, 128 * mib, 128*mib + 4096, 136*mib + 8192, 256*mib + 12288, 5000 * mib} {
		check(t, write(t, size, new(fstree.Tree), options()))
	}
	// The largest, with few inodes: e2fsck takes its time for 268 million.
	o := options()
	o.BytesPerInode = 1 << 20
	check(t, write(t, 1<<40, new(fstree.Tree), o))
}

func TestSuperblockSaysWhatWasAsked(t *testing.T) {
	got := fstreetest.Run(t, apt, "dumpe2fs", "-h", write(t, 1784*mib, new(fstree.Tree), options()))
	for field, want := range map[string]string{
		"Filesystem volume name": "ROOT",
		"Filesystem UUID":        "f1a7ca12-0506-4708-890a-0b0c0d0e0f10",
		"Filesystem features":    "has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
		"Filesystem state":       "clean",
		"Errors behavior":        "Remount read-only",
		"Inode count":            "456736", // one for 4096 bytes
		"Block count":            "456704",
		"Block size":             "4096",
		"Inode size":             "256",
		"Filesystem created":     "Tue Mar  4 05:06:07 2025",
		"Directory Hash Seed":    "100f0e0d-0c0b-0a09-0807-060504030201",
		"Default mount options":  "user_xattr acl",
		"Total journal size":     "32M",
	} {
		found := false
		for line := range strings.Lines(got) {
			name, value, _ := strings.Cut(line, ":")
			found = found || name == field && strings.TrimSpace(value) == want
		}
		if !found {
			t.Errorf("dumpe2fs -h does not say %s: %s", field, want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// Offline growth, as far as the descriptors kept for it should reach. Online
// growth needs a mount: see root_test.go.
func TestResize2fsGrowsTheFileSystem(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ from, to int64 }{
		{64 * mib, 640 * mib}, {1784 * mib, 17840 * mib}, {1784 * mib, 200 << 30},
	} {
		tree := new(fstree.Tree)
		if err := tree.AddFile("opt/extensions/kubernetes.raw", 0o644, fstreetest.Noise{Seed: 1, Length: 20 * mib}); err != nil {
			t.Fatal(err)
		}
		image := write(t, c.from, tree, options())
		if err := os.Truncate(image, c.to); err != nil {
			t.Fatal(err)
		}
		fstreetest.Run(t, apt, "resize2fs", "-f", image)
		check(t, image)
		restore(t, tree, image)
		if got := fstreetest.Run(t, apt, "dumpe2fs", "-h", image); !strings.Contains(got, fmt.Sprintf("%d\n", c.to/4096)) {
			t.Errorf("after growing to %d bytes:\n%s", c.to, got)
		}
	}
}

func TestLargeFilesSpanGroups(t *testing.T) {
	t.Parallel()
	tree := new(fstree.Tree)
	// 3 GiB are about 27 extents with 4096 bytes per inode: more than an inode
	// holds. Zeros are not written, so this costs little.
	for name, c := range map[string]fstree.Content{
		"opt/extensions/zeros.raw": fstreetest.Zeros(3<<30 + 5),
		"opt/extensions/noise.raw": fstreetest.Noise{Seed: 3, Length: 150*mib + 5},
	} {
		if err := tree.AddFile(name, 0o644, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.AddSymlink("etc/extensions/noise.raw", "/opt/extensions/noise.raw"); err != nil {
		t.Fatal(err)
	}
	image := write(t, 4096*mib, tree, options())
	check(t, image)
	got := filepath.Join(t.TempDir(), "noise")
	fstreetest.Run(t, apt, "debugfs", "-R", "dump /opt/extensions/noise.raw "+got, image)
	if sum(t, got) != sumContent(t, fstreetest.Noise{Seed: 3, Length: 150*mib + 5}) {
		t.Error("noise.raw has other content")
	}
	stat := fstreetest.Run(t, apt, "debugfs", "-R", "stat /opt/extensions/zeros.raw", image)
	if !strings.Contains(stat, "(ETB0)") {
		t.Errorf("zeros.raw has no extent tree:\n%s", stat)
	}
}

func sum(t testing.TB, name string) string {
	c, err := fstree.FromFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return sumContent(t, c)
}

func sumContent(t testing.TB, c fstree.Content) string {
	r, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

func TestBytesDependOnTheArgumentsOnly(t *testing.T) {
	first := sum(t, write(t, 130*mib, fstreetest.Sample(t), options()))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if sum(t, write(t, 130*mib, fstreetest.Sample(t), options())) != first {
		t.Error("two writes differ")
	}
}

func TestHolesStayHoles(t *testing.T) {
	image := write(t, 2000*mib, new(fstree.Tree), options())
	disk := strings.Fields(fstreetest.Run(t, "coreutils", "du", "--block-size=1K", image))[0]
	if len(disk) > 4 { // less than 10 MB
		t.Errorf("an empty file system of 2000 MiB takes %s KiB", disk)
	}
}

func TestRefusals(t *testing.T) {
	with := func(change func(*ext4.Options)) ext4.Options {
		o := options()
		change(&o)
		return o
	}
	tree := func(entries ...fstree.Entry) *fstree.Tree {
		tree := new(fstree.Tree)
		for _, e := range entries {
			if err := tree.Add(e); err != nil {
				t.Fatal(err)
			}
		}
		return tree
	}
	many := make([]fstree.Entry, 200)
	for i := range many {
		many[i] = fstree.Entry{Path: fmt.Sprint(i)}
	}
	for name, c := range map[string]struct {
		size int64
		tree *fstree.Tree
		o    ext4.Options
		want string
	}{
		"label":      {8 * mib, tree(), with(func(o *ext4.Options) { o.Label = "a-label-too-long!" }), `making ext4: label "a-label-too-long!" is 17 bytes long, 16 are possible`},
		"no UUID":    {8 * mib, tree(), ext4.Options{}, "making ext4: the UUID is not set"},
		"too small":  {8*mib - 1, tree(), options(), "making ext4: size 8388607 is outside 8 MiB to 1 TiB"},
		"too large":  {1<<40 + 1, tree(), options(), "making ext4: size 1099511627777 is outside 8 MiB to 1 TiB"},
		"ratio":      {8 * mib, tree(), with(func(o *ext4.Options) { o.BytesPerInode = 512 }), "making ext4: 512 bytes per inode is outside 1024 to 67108864"},
		"time":       {8 * mib, tree(), with(func(o *ext4.Options) { o.ModTime = time.Unix(1<<40, 0) }), "making ext4 of 8388608 bytes: writing the resize inode: the time 36812-02-20T00:36:16Z is outside 1901 to 2446, which is all the format can hold"},
		"full":       {8 * mib, tree(fstree.Entry{Path: "opt/big", Type: fstree.File, Content: fstreetest.Zeros(9 * mib)}), options(), "making ext4 of 8388608 bytes: writing opt/big: the tree does not fit: make the file system larger"},
		"lost+found": {8 * mib, tree(fstree.Entry{Path: "lost+found"}), options(), "making ext4 of 8388608 bytes: lost+found is in the tree; every ext4 has its own"},
		"inodes":     {8 * mib, tree(many...), with(func(o *ext4.Options) { o.BytesPerInode = 65536 }), "making ext4 of 8388608 bytes: the tree has more entries than the 128 inodes: make the file system larger"},
	} {
		err := ext4.Write(discard{}, c.size, c.tree, c.o)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: got  %v\nwant %s", name, err, c.want)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func FuzzTree(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 9, 0, 1, 200, 2, 2, 255, 130, 1, 250, 3, 0, 40, 1, 2, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := fstreetest.Shape(data)
		image := write(t, 256*mib, tree, options())
		check(t, image)
		if os.Getuid() == 0 {
			restore(t, tree, image)
		}
	})
}
