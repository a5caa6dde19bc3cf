package fat_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fat"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

var options = fat.Options{Label: "IMAGECTL", Serial: 0x1234abcd, ModTime: time.Date(2025, 3, 4, 5, 6, 8, 0, time.UTC)}

func tree(t testing.TB, files map[string]fstree.Content) *fstree.Tree {
	t.Helper()
	tr := new(fstree.Tree)
	for name, c := range files {
		if err := tr.AddFile(name, 0o644, c); err != nil {
			t.Fatal(err)
		}
	}
	return tr
}

// written writes a volume to a file.
func written(t testing.TB, v *fat.Volume) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fat.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := v.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, err := io.Copy(f, r)
	if err != nil || n != v.Size() {
		t.Fatalf("wrote %d bytes of %d: %v", n, v.Size(), err)
	}
	return path
}

func TestVolumesPassFsckAndGiveTheirFilesBack(t *testing.T) {
	many := map[string]fstree.Content{"EMPTY": fstree.Bytes(nil), "A/B/C/D/DEEP.TXT": fstree.Bytes("deep\n")}
	for i := range 300 {
		many[fmt.Sprintf("MANY/F%d.BIN", i)] = fstreetest.Noise{Seed: uint64(i), Length: int64(i * 31)}
	}
	for name, tt := range map[string]struct {
		files map[string]fstree.Content
		kind  string
	}{
		"nothing":                 {nil, "FAT16"},
		"small":                   {map[string]fstree.Content{"EFI/BOOT/BOOTX64.EFI": fstreetest.Noise{Seed: 1, Length: 1<<20 + 1}}, "FAT16"},
		"many files":              {many, "FAT16"},
		"more than 65535 sectors": {map[string]fstree.Content{"BIG.BIN": fstreetest.Noise{Seed: 2, Length: 60 << 20}}, "FAT16"},
		"too big for FAT16":       {map[string]fstree.Content{"BIG.BIN": fstreetest.Noise{Seed: 3, Length: 128 << 20}, "X/Y.Z": fstree.Bytes("z")}, "FAT32"},
		"at the limit":            {map[string]fstree.Content{"BIG.BIN": fstree.Zeros(65509 * 2048)}, "FAT16"},
		"just above the limit":    {map[string]fstree.Content{"BIG.BIN": fstree.Zeros(65509*2048 + 1)}, "FAT32"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := tree(t, tt.files)
			v, err := fat.New(tr, options)
			if err != nil {
				t.Fatal(err)
			}
			img := written(t, v)
			out := fstreetest.Run(t, "dosfstools", "fsck.fat", "-n", "-v", img)
			if strings.Contains(out, "ifferen") || strings.Contains(out, "wrong") {
				t.Errorf("fsck.fat complains:\n%s", out)
			}
			if out := fstreetest.Run(t, "mtools", "minfo", "-i", img, "::"); !strings.Contains(out, `disk type="`+tt.kind) {
				t.Errorf("want %s, minfo says:\n%s", tt.kind, out)
			}
			if out := fstreetest.Run(t, "mtools", "mdir", "-i", img, "::"); !strings.Contains(out, "Volume in drive : is IMAGECTL") {
				t.Errorf("no label:\n%s", out)
			}
			dir := t.TempDir()
			if len(tt.files) > 0 {
				fstreetest.Run(t, "mtools", "mcopy", "-s", "-n", "-i", img, "::*", dir)
			}
			fstreetest.Compare(t, tr, dir, fstreetest.Except{Root: true, Metadata: true})
			for name, c := range tt.files {
				checkOffset(t, v, img, name, c)
			}
		})
	}
}

// checkOffset compares what lies where the volume says with the file.
func checkOffset(t *testing.T, v *fat.Volume, img, name string, c fstree.Content) {
	t.Helper()
	off, ok := v.Offset(name)
	if ok != (c.Size() > 0) || off%fat.ClusterSize != 0 {
		t.Errorf("%s is at %d, %v", name, off, ok)
	}
	f, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	if ok && sum(t, io.NewSectionReader(f, off, c.Size())) != sum(t, want) {
		t.Errorf("%s is not at %d", name, off)
	}
}

func sum(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestEqualTreesGiveEqualBytes(t *testing.T) {
	digest := func(zone *time.Location) string {
		o := options
		o.ModTime = o.ModTime.In(zone)
		v, err := fat.New(tree(t, map[string]fstree.Content{"EFI/BOOT/BOOTX64.EFI": fstree.Bytes("x"), "EFI/B.TXT": fstree.Bytes("y")}), o)
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return sum(t, r)
	}
	if a, b := digest(time.UTC), digest(time.FixedZone("far", 9*3600)); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

func TestRefusals(t *testing.T) {
	link := new(fstree.Tree)
	if err := link.AddSymlink("L", "x"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		tree  *fstree.Tree
		label string
		want  string
	}{
		{tree(t, map[string]fstree.Content{"EFI/boot.efi": fstree.Bytes("x")}), "X", `EFI/boot.efi: the name "boot.efi" is no short name in upper case, such as BOOTX64.EFI`},
		{tree(t, map[string]fstree.Content{"BOOTX64LONG.EFI": fstree.Bytes("x")}), "X", `BOOTX64LONG.EFI: the name "BOOTX64LONG.EFI" is no short name in upper case, such as BOOTX64.EFI`},
		{tree(t, map[string]fstree.Content{"A.B.C": fstree.Bytes("x")}), "X", `A.B.C: the name "A.B.C" is no short name in upper case, such as BOOTX64.EFI`},
		{tree(t, map[string]fstree.Content{"BIG": fstree.Zeros(1 << 32)}), "X", `BIG: the file has 4294967296 bytes, the format holds less than 4 GiB`},
		{link, "X", `L: the format holds no symbolic links`},
		{new(fstree.Tree), "lower", `the label "lower" is not 1 to 11 of A-Z, 0-9, blank, - and _`},
	} {
		_, err := fat.New(tt.tree, fat.Options{Label: tt.label})
		if want := "laying out a FAT file system: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
