package iso_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fat"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/iso"
)

var modTime = time.Date(2025, 3, 4, 5, 6, 8, 0, time.UTC)

// program stands for ISOLINUX: what matters here is that it is found and told
// where it is.
var program = bytes.Repeat([]byte("isolinux"), 500)

// sample is an image with everything in it: kernel is in the ESP and in the
// tree, as one.
func sample(t testing.TB, edit func(*fstree.Tree, *iso.Options)) (fstree.Content, error) {
	t.Helper()
	esp := new(fstree.Tree)
	kernel := fstreetest.Noise{Seed: 4, Length: 3<<20 + 5}
	add := func(tr *fstree.Tree, path string, c fstree.Content) {
		t.Helper()
		if err := tr.AddFile(path, 0o644, c); err != nil {
			t.Fatal(err)
		}
	}
	add(esp, "EFI/BOOT/BOOTX64.EFI", fstree.Bytes("program"))
	add(esp, "KERNEL", kernel)
	volume, err := fat.New(esp, fat.Options{Label: "ESP", Serial: 7, ModTime: modTime})
	if err != nil {
		t.Fatal(err)
	}
	at, _ := volume.Offset("KERNEL")
	tr := new(fstree.Tree)
	add(tr, "BOOT/KERNEL", iso.Shared{Offset: at, Length: kernel.Length})
	add(tr, "BOOT/INITRD.GZ", fstreetest.Noise{Seed: 5, Length: 2048*3 + 1})
	add(tr, "ISOLINUX/ISOLINUX.BIN", fstree.Bytes(program))
	add(tr, "ISOLINUX/EMPTY.CFG", fstree.Bytes(nil))
	o := iso.Options{Label: "IMAGECTL_TEST", ModTime: modTime, ESP: volume, BIOS: "ISOLINUX/ISOLINUX.BIN", MBR: bytes.Repeat([]byte{0x90}, 432),
		DiskGUID: [16]byte{0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, 0x80, 1, 2, 3, 4, 5, 6, 7}, ESPGUID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9}}
	if edit != nil {
		edit(tr, &o)
	}
	return iso.New(tr, o)
}

func written(t testing.TB, c fstree.Content, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "boot.iso")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, err := io.Copy(f, r)
	if err != nil || n != c.Size() || n%iso.SectorSize != 0 {
		t.Fatalf("wrote %d bytes of %d: %v", n, c.Size(), err)
	}
	return path
}

func find(t testing.TB, text, pattern string) []string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %q in\n%s", pattern, text)
	}
	return m
}

// TestForeignToolsReadTheImage: xorriso and isoinfo the volume and its boot
// catalogue, sfdisk the partition table, mtools the ESP where both say it is.
func TestForeignToolsReadTheImage(t *testing.T) {
	c, err := sample(t, nil)
	img := written(t, c, err)

	boot := fstreetest.Run(t, "xorriso", "xorriso", "-indev", img, "-report_el_torito", "plain")
	if strings.Contains(boot, "WARNING") || strings.Contains(boot, "FAILURE") || strings.Contains(boot, "SORRY") {
		t.Errorf("xorriso complains:\n%s", boot)
	}
	find(t, boot, `El Torito boot img :   1  BIOS  y   none  0x0000  0x00      4 +\d+`)
	esp := find(t, boot, `El Torito boot img :   2  UEFI  y   none  0x0000  0x00 +(\d+) +(\d+)`)
	find(t, boot, `El Torito img opts :   1  boot-info-table`)
	find(t, boot, `El Torito img path :   1  /ISOLINUX/ISOLINUX.BIN`)

	info := fstreetest.Run(t, "genisoimage", "isoinfo", "-d", "-i", img)
	find(t, info, `Volume id: IMAGECTL_TEST`)
	find(t, info, `Volume size is: `+fmt.Sprint(c.Size()/2048))
	list := fstreetest.Run(t, "genisoimage", "isoinfo", "-l", "-i", img)
	for _, want := range []string{`3145733 Mar +4 2025 \[ +\d+ 00\]  KERNEL\.;1`, `6145 Mar .*INITRD\.GZ;1`, ` 0 Mar .*EMPTY\.CFG;1`, `Directory listing of /ISOLINUX/`} {
		find(t, list, want)
	}
	paths := fstreetest.Run(t, "genisoimage", "isoinfo", "-p", "-i", img)
	find(t, paths, `(?s)1:    1 .*2:    1 .* BOOT\n.*3:    1 .* ISOLINUX\n`)

	verify := fstreetest.Run(t, "fdisk", "sfdisk", "--verify", img)
	if !strings.Contains(verify, "No errors detected.") {
		t.Errorf("sfdisk: %s", verify)
	}
	dump := fstreetest.Run(t, "fdisk", "sfdisk", "--dump", img)
	find(t, dump, `label-id: 10325476-98BA-DCFE-8001-020304050607`)
	part := find(t, dump, `start= +(\d+), size= +(\d+), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid=01020304-0506-0708-0900-000000000000, name="EFI boot"`)
	var sector, start int64
	fmt.Sscan(esp[2], &sector)
	fmt.Sscan(part[1], &start)
	if start != sector*4 || part[2] != esp[1] {
		t.Errorf("the partition is at %d with %s sectors, El Torito's ESP at %d with %s", start, part[2], sector*4, esp[1])
	}
	if out := fstreetest.Run(t, "mtools", "mdir", "-b", "-i", fmt.Sprintf("%s@@%d", img, start*512), "::EFI/BOOT"); !strings.Contains(out, "BOOTX64.EFI") {
		t.Errorf("mdir: %s", out)
	}
}

func TestFilesComeBack(t *testing.T) {
	c, err := sample(t, nil)
	img := written(t, c, err)
	dir := fstreetest.Scratch(t)
	fstreetest.Run(t, "xorriso", "xorriso", "-osirrox", "on", "-indev", img, "-extract", "/", dir)
	for name, want := range map[string]fstree.Content{
		"BOOT/KERNEL": fstreetest.Noise{Seed: 4, Length: 3<<20 + 5}, "BOOT/INITRD.GZ": fstreetest.Noise{Seed: 5, Length: 2048*3 + 1}, "ISOLINUX/EMPTY.CFG": fstree.Bytes(nil),
	} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		r, err := want.Open()
		if err != nil {
			t.Fatal(err)
		}
		if sum(t, f) != sum(t, r) {
			t.Errorf("%s has other content", name)
		}
		f.Close()
	}
	got, err := os.ReadFile(filepath.Join(dir, "ISOLINUX/ISOLINUX.BIN"))
	if err != nil || len(got) != len(program) || !bytes.Equal(got[:8], program[:8]) || !bytes.Equal(got[64:], program[64:]) {
		t.Errorf("the boot program differs in more than its table: %v", err)
	}
}

func sum(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestLargeDirectories: records do not cross sectors, path tables hold all.
func TestLargeDirectories(t *testing.T) {
	c, err := sample(t, func(tr *fstree.Tree, _ *iso.Options) {
		for i := range 400 {
			if err := tr.AddFile(fmt.Sprintf("MANY/D%d/F%d.TXT", i, i), 0o644, fstree.Bytes(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	})
	img := written(t, c, err)
	out := fstreetest.Run(t, "genisoimage", "isoinfo", "-f", "-i", img)
	if got := strings.Count(out, "/MANY/D"); got != 800 {
		t.Errorf("isoinfo lists %d entries, want 800", got)
	}
	dir := fstreetest.Scratch(t)
	fstreetest.Run(t, "xorriso", "xorriso", "-osirrox", "on", "-indev", img, "-extract", "/MANY", dir)
	if b, err := os.ReadFile(filepath.Join(dir, "D399/F399.TXT")); string(b) != "399" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestOnlyUEFI(t *testing.T) {
	c, err := sample(t, func(_ *fstree.Tree, o *iso.Options) { o.BIOS, o.MBR = "", nil })
	img := written(t, c, err)
	out := fstreetest.Run(t, "xorriso", "xorriso", "-indev", img, "-report_el_torito", "plain")
	find(t, out, `El Torito boot img :   1  UEFI  y   none`)
}

// TestALargeESPExtendsToTheEnd: its size does not fit into the catalogue's field.
func TestALargeESPExtendsToTheEnd(t *testing.T) {
	esp := new(fstree.Tree)
	if err := esp.AddFile("BIG", 0o644, fstree.Zeros(40<<20)); err != nil {
		t.Fatal(err)
	}
	volume, err := fat.New(esp, fat.Options{Label: "ESP"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := sample(t, func(_ *fstree.Tree, o *iso.Options) { o.ESP = volume })
	img := written(t, c, err)
	out := fstreetest.Run(t, "xorriso", "xorriso", "-indev", img, "-report_el_torito", "plain")
	find(t, out, `El Torito boot img :   2  UEFI  y   none  0x0000  0x00      0 `)
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	digest := func(zone *time.Location) string {
		c, err := sample(t, func(_ *fstree.Tree, o *iso.Options) { o.ModTime = o.ModTime.In(zone) })
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return sum(t, r)
	}
	if a, b := digest(time.UTC), digest(time.FixedZone("far", -9*3600)); a != b {
		t.Errorf("%s and %s", a, b)
	}
}

func TestRefusals(t *testing.T) {
	file := func(name string, c fstree.Content) func(*fstree.Tree, *iso.Options) {
		return func(tr *fstree.Tree, _ *iso.Options) {
			if err := tr.AddFile(name, 0o644, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	x := fstree.Bytes("x")
	for _, tt := range []struct {
		edit func(*fstree.Tree, *iso.Options)
		want string
	}{
		{file("isolinux.bin", x), `isolinux.bin: the name "isolinux.bin" is no short name of A-Z, 0-9 and _, such as ISOLINUX.BIN`},
		{file("D.X/F", x), `D.X: the name "D.X" is no short name of A-Z, 0-9 and _, such as ISOLINUX.BIN`},
		{file("1/2/3/4/5/6/7/8", x), `1/2/3/4/5/6/7/8: it is on level 9, the format has 8`},
		{file("BIG", fstree.Zeros(1<<32)), `BIG: the file has 4294967296 bytes, the format holds less than 4 GiB`},
		{file("S", iso.Shared{Offset: 100, Length: 1}), `S: bytes 100 to 101 of the ESP cannot be a file: it has 8435712, and a file begins at a multiple of 2048`},
		{file("S", iso.Shared{Offset: 2048, Length: 1 << 30}), `S: bytes 2048 to 1073743872 of the ESP cannot be a file: it has 8435712, and a file begins at a multiple of 2048`},
		{func(_ *fstree.Tree, o *iso.Options) { o.Label = "a" }, `the label "a" is not 1 to 32 of A-Z, 0-9 and _`},
		{func(_ *fstree.Tree, o *iso.Options) { o.BIOS = "NONE" }, `NONE, which a BIOS shall start, is not in the tree`},
		{func(_ *fstree.Tree, o *iso.Options) { o.BIOS = "ISOLINUX/EMPTY.CFG" }, `ISOLINUX/EMPTY.CFG: 0 bytes are no boot program of 64 bytes to 1 MiB`},
		{func(_ *fstree.Tree, o *iso.Options) { o.BIOS = "" }, `there is boot code for disks and no program for BIOS, which it would start`},
		{func(_ *fstree.Tree, o *iso.Options) { o.MBR = make([]byte, 512) }, `the boot code for disks has 512 bytes, there is room for 432`},
		{func(_ *fstree.Tree, o *iso.Options) { o.ESP = fstree.Zeros(100) }, `the ESP must have a multiple of 2048 bytes, and some`},
	} {
		_, err := sample(t, tt.edit)
		if want := "laying out an ISO 9660 image: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}
