package btrfs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/imagectl/imagectl/images/btrfs"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

const (
	apt = "btrfs-progs"
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func options() btrfs.Options {
	return btrfs.Options{
		Label:   "OEM",
		UUID:    [16]byte{0xf1, 0xa7, 0xca, 0x12, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
		ModTime: fstreetest.Time,
	}
}

// write makes a sparse image file and returns its path.
func write(t testing.TB, size int64, tree *fstree.Tree, o btrfs.Options) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "oem.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := btrfs.Write(f, size, tree, o); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// check lets btrfs-progs verify every reference and every checksum.
func check(t testing.TB, image string) {
	t.Helper()
	out := fstreetest.Run(t, apt, "btrfs", "check", "--check-data-csum", image)
	if !strings.Contains(out, "no error found") || strings.Contains(strings.ToLower(out), "warning") {
		t.Fatalf("btrfs check:\n%s", out)
	}
}

// restore lets btrfs-progs copy everything out and compares.
func restore(t testing.TB, tree *fstree.Tree, image string) {
	t.Helper()
	dir := t.TempDir()
	argv := []string{"btrfs", "restore", "--symlinks", image, dir}
	if os.Getuid() == 0 { // it stops at the first owner it may not set
		argv = append(argv[:2], append([]string{"--metadata"}, argv[2:]...)...)
	}
	fstreetest.Run(t, apt, argv...)
	fstreetest.Compare(t, tree, dir, fstreetest.Except{Root: true, Links: true, DirTimes: true, SpecialBits: true, Metadata: os.Getuid() != 0})
}

// grubReads lets GRUB's own driver compare every file of the tree.
func grubReads(t testing.TB, tree *fstree.Tree, image string) {
	t.Helper()
	for _, e := range tree.Entries() {
		// grub-fstest's own command line cannot carry those names.
		if e.Type != fstree.File || strings.ContainsAny(e.Path, " \n") || !utf8.ValidString(e.Path) {
			continue
		}
		host := filepath.Join(t.TempDir(), "want")
		f, err := os.Create(host)
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Content.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, r); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		fstreetest.Run(t, "grub-common", "grub-fstest", image, "cmp", "(loop0)/"+e.Path, host)
	}
}

func add(t testing.TB, tree *fstree.Tree, path string, c fstree.Content) {
	t.Helper()
	if err := tree.AddFile(path, 0o644, c); err != nil {
		t.Fatal(err)
	}
}

func TestBtrfsProgsAgree(t *testing.T) {
	for _, size := range []int64{128 * mib, gib, 2000*mib + 512} {
		t.Run(fmt.Sprintf("%d bytes", size), func(t *testing.T) {
			t.Parallel()
			tree := fstreetest.Sample(t)
			image := write(t, size, tree, options())
			check(t, image)
			restore(t, tree, image)
		})
	}
}

// What imagectl puts into OEM, and content on both sides of the superblock's
// copy at 64 MiB.
func TestGrubReadsTheOEMPartition(t *testing.T) {
	tree := new(fstree.Tree)
	add(t, tree, "config.ign", fstree.Bytes(`{"ignition":{"version":"3.4.0"}}`))
	add(t, tree, "grub.cfg", fstree.Bytes("set linux_append=\"quiet\"\n"))
	add(t, tree, "base/base.ign", fstree.Bytes(strings.Repeat("{}", 3000)))
	add(t, tree, "sysext/a.raw", fstreetest.Noise{Seed: 1, Length: 20*mib + 1})
	add(t, tree, "sysext/b.raw", fstreetest.Noise{Seed: 2, Length: 50*mib + 4095})
	add(t, tree, "sysext/c.raw", fstreetest.Noise{Seed: 3, Length: 20 * mib})
	add(t, tree, "sizes/2047", fstreetest.Noise{Seed: 4, Length: 2047})
	add(t, tree, "sizes/2048", fstreetest.Noise{Seed: 4, Length: 2048})
	add(t, tree, "sizes/zeros", fstreetest.Zeros(3*mib))
	if err := tree.AddSymlink("current.ign", "base/base.ign"); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{128 * mib, gib} {
		image := write(t, size, tree, options())
		check(t, image)
		restore(t, tree, image)
		grubReads(t, tree, image)
		got := fstreetest.Run(t, "grub-common", "grub-fstest", image, "ls", "(loop0)/")
		for _, want := range []string{"config.ign", "grub.cfg", "base/", "sysext/", "current.ign"} {
			if !strings.Contains(got, want) {
				t.Errorf("grub ls does not show %s: %s", want, got)
			}
		}
		got = fstreetest.Run(t, "grub-common", "grub-fstest", image, "cat", "(loop0)/current.ign")
		if got != strings.Repeat("{}", 3000) {
			t.Errorf("grub follows the link to %q", got)
		}
	}
}

func TestGrubReadsTreesOfSeveralLevels(t *testing.T) {
	tree := fstreetest.Sample(t)
	small := new(fstree.Tree)
	for _, e := range tree.Entries() { // GRUB's start-up takes its time: not all 1,000
		if strings.HasPrefix(e.Path, "sizes/") || strings.HasPrefix(e.Path, "many/entry-050") || strings.HasSuffix(e.Path, "/leaf") {
			if err := small.Add(e); err != nil {
				t.Fatal(err)
			}
		}
	}
	grubReads(t, small, write(t, 128*mib, tree, options()))
}

func TestSuperblockSaysWhatWasAsked(t *testing.T) {
	image := write(t, 128*mib, new(fstree.Tree), options())
	check(t, image)
	for _, mirror := range []string{"0", "1"} {
		got := fstreetest.Run(t, apt, "btrfs", "inspect-internal", "dump-super", "--super", mirror, image)
		fields := map[string]string{}
		for line := range strings.Lines(got) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
				fields[name] = strings.TrimSpace(value)
			}
		}
		for name, want := range map[string]string{
			"magic": "_BHRfS_M [match]", "label": "OEM", "fsid": "f1a7ca12-0506-4708-890a-0b0c0d0e0f10",
			"total_bytes": "134217728", "sectorsize": "4096", "nodesize": "4096", "csum_type": "0 (crc32c)",
			"compat_ro_flags": "0x3", "incompat_flags": "0x345", // as mkfs.btrfs --mixed of btrfs-progs 6.2
		} {
			if fields[name] != want {
				t.Errorf("copy %s: %s is %q, want %q", mirror, name, fields[name], want)
			}
		}
		if !strings.Contains(fields["csum"], "[match]") {
			t.Errorf("copy %s: checksum %s", mirror, fields["csum"])
		}
	}
}

func TestEmptyTreeInAnySize(t *testing.T) {
	for _, size := range []int64{16 * mib, 16*mib + 4096, 64 * mib, 64*mib + 4096, 64*mib + 65536, 65 * mib, gib, 256 * gib} {
		check(t, write(t, size, new(fstree.Tree), options()))
	}
}

// The content ends before, at, in and behind the stripe of the superblock's
// copy, which lies 59 MiB into the chunk.
func TestContentAroundTheSuperblockCopy(t *testing.T) {
	for _, length := range []int64{59*mib - 40*4096, 59*mib - 4096, 59 * mib, 59*mib + 1, 60 * mib} {
		tree := new(fstree.Tree)
		add(t, tree, "data", fstreetest.Noise{Seed: 1, Length: length})
		image := write(t, 128*mib, tree, options())
		check(t, image)
		restore(t, tree, image)
	}
}

// The kernel keeps names of one hash in one item.
func TestNamesWithEqualHashes(t *testing.T) {
	table := crc32.MakeTable(crc32.Castagnoli)
	seen := map[uint32]string{}
	tree, pairs := new(fstree.Tree), 0
	for i := 0; pairs < 5; i++ {
		name := fmt.Sprintf("%08x", i*2654435761)
		hash := crc32.Update(1, table, []byte(name))
		if other, ok := seen[hash]; ok {
			pairs++
			add(t, tree, name, fstree.Bytes(name))
			add(t, tree, other, fstree.Bytes(other))
		}
		seen[hash] = name
	}
	image := write(t, 64*mib, tree, options())
	check(t, image)
	restore(t, tree, image)
	grubReads(t, tree, image)
	if got := fstreetest.Run(t, apt, "btrfs", "inspect-internal", "dump-tree", "-t", "fs", image); strings.Count(got, "DIR_ITEM") != pairs {
		t.Errorf("there should be %d items for %d names:\n%s", pairs, 2*pairs, got)
	}
}

func TestFullDevice(t *testing.T) {
	tree := new(fstree.Tree)
	add(t, tree, "data", fstreetest.Noise{Seed: 1, Length: 122 * mib})
	image := write(t, 128*mib, tree, options())
	check(t, image)
	restore(t, tree, image)
}

func TestBytesDependOnTheArgumentsOnly(t *testing.T) {
	digest := func() [sha256.Size]byte {
		b, err := os.ReadFile(write(t, 64*mib, fstreetest.Sample(t), options()))
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b)
	}
	first := digest()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	if digest() != first {
		t.Error("two writes differ")
	}
}

func TestRefusals(t *testing.T) {
	tree := func(e fstree.Entry) *fstree.Tree {
		tree := new(fstree.Tree)
		if err := tree.Add(e); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	empty := new(fstree.Tree)
	long := options()
	long.Label = strings.Repeat("l", 256)
	for name, c := range map[string]struct {
		size int64
		tree *fstree.Tree
		o    btrfs.Options
		want string
	}{
		"label":     {16 * mib, empty, long, "making btrfs: label of 256 bytes, 255 are possible"},
		"no UUID":   {16 * mib, empty, btrfs.Options{}, "making btrfs: the UUID is not set"},
		"too small": {16*mib - 1, empty, options(), "making btrfs: size 16777215 is outside 16 MiB to 256 GiB"},
		"too large": {256*gib + 1, empty, options(), "making btrfs: size 274877906945 is outside 16 MiB to 256 GiB"},
		"full": {16 * mib, tree(fstree.Entry{Path: "opt/big", Type: fstree.File, Content: fstreetest.Zeros(12 * mib)}), options(),
			"making btrfs of 16777216 bytes: writing opt/big: the tree does not fit into the 16777216 bytes: make the file system larger"},
		"full of metadata": {16 * mib, tree(fstree.Entry{Path: "opt/big", Type: fstree.File, Content: fstreetest.Zeros(11 * mib)}), options(),
			"making btrfs of 16777216 bytes: the tree does not fit into the 16777216 bytes: make the file system larger"},
		"target": {16 * mib, tree(fstree.Entry{Path: "a", Type: fstree.Symlink, Link: strings.Repeat("t", 3950)}), options(),
			"making btrfs of 16777216 bytes: writing a: the target has 3950 bytes, a node holds 3949"},
	} {
		err := btrfs.Write(discard{}, c.size, c.tree, c.o)
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
	f.Add([]byte("000"))
	f.Add(bytes.Repeat([]byte{1, 0, 240, 0, 7, 200, 130, 9, 255}, 90))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree := fstreetest.Shape(data)
		for _, e := range tree.Entries() {
			if len(e.Link) > 3949 {
				t.Skip("a target that no node holds: see TestRefusals")
			}
		}
		// btrfs restore of 6.2 forgets the mode of an empty directory when it is
		// the last inode, on the kernel's file systems too.
		add(t, tree, "z-last", fstree.Bytes("last\n"))
		image := write(t, 400*mib, tree, options())
		check(t, image)
		restore(t, tree, image)
	})
}
