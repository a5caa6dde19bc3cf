package medium_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/medium"
)

func read(t testing.TB, path, aptPackage string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: apt-get install -y %s", err, aptPackage)
	}
	return b
}

// options have the real boot programs; systemd's stub passes for a kernel, being
// an EFI program too.
func options(t testing.TB) medium.Options {
	t.Helper()
	oem := new(fstree.Tree)
	if err := oem.AddFile("config.ign", 0o644, fstree.Bytes(`{"ignition":{"version":"3.4.0"}}`)); err != nil {
		t.Fatal(err)
	}
	stub := read(t, "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "systemd-boot-efi")
	return medium.Options{
		Name: "imagectl installer of lab", Label: "IMAGECTL", Arch: "amd64", OEM: oem, Stub: stub,
		Kernel: fstree.Bytes(stub), Initrd: fstreetest.Noise{Seed: 1, Length: 5<<20 + 3},
		Args: []string{"flatcar.first_boot=1", "console=ttyS0"},
		BIOS: &medium.BIOS{
			Loader: read(t, "/usr/lib/ISOLINUX/isolinux.bin", "isolinux"), MBR: read(t, "/usr/lib/ISOLINUX/isohdpfx.bin", "isolinux"),
			Module: read(t, "/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
		},
		ModTime: time.Date(2026, 8, 13, 1, 2, 4, 0, time.UTC),
	}
}

func written(t testing.TB, o medium.Options) string {
	t.Helper()
	c, err := medium.New(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "medium.iso")
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
	if _, err := io.Copy(f, r); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBothFirmwareKindsFindTheSame: what BIOS loads and what UEFI loads hold the
// same kernel, initial RAM file system and command line.
func TestBothFirmwareKindsFindTheSame(t *testing.T) {
	o := options(t)
	iso := written(t, o)
	dir := fstreetest.Scratch(t)
	fstreetest.Run(t, "xorriso", "xorriso", "-osirrox", "on", "-indev", iso, "-extract", "/", dir)
	kernel, initrd := read(t, filepath.Join(dir, "BOOT/KERNEL"), ""), read(t, filepath.Join(dir, "BOOT/INITRD"), "")
	if !bytes.Equal(kernel, o.Stub) {
		t.Error("BIOS loads another kernel")
	}
	locked := make([]byte, o.Initrd.Size())
	if r, err := o.Initrd.Open(); err != nil {
		t.Fatal(err)
	} else if _, err := io.ReadFull(r, locked); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(initrd, locked) {
		t.Fatal("the initial RAM file system does not begin with the locked one")
	}
	appended := initrd[(len(locked)+3)&^3:]
	z, err := gzip.NewReader(bytes.NewReader(appended))
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "oem.cpio")
	content, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, content, 0o644); err != nil {
		t.Fatal(err)
	}
	// With directories: Flatcar's small initrd has no usr/share.
	want := "usr\nusr/share\nusr/share/oem\nusr/share/oem/config.ign\n"
	if got := fstreetest.Run(t, "cpio", "cpio", "-t", "--quiet", "-F", archive); got != want {
		t.Errorf("the OEM archive holds\n%swant\n%s", got, want)
	}
	config := string(read(t, filepath.Join(dir, "ISOLINUX/ISOLINUX.CFG"), ""))
	for _, line := range []string{"PROMPT 0\n", "NOESCAPE 1\n", "ALLOWOPTIONS 0\n", "  APPEND flatcar.first_boot=1 console=ttyS0\n"} {
		if !strings.Contains(config, line) {
			t.Errorf("ISOLINUX's configuration lacks %q:\n%s", line, config)
		}
	}

	var at int64
	dump := fstreetest.Run(t, "fdisk", "sfdisk", "--dump", iso)
	if _, err := fmt.Sscanf(dump[strings.Index(dump, "start="):], "start=%d", &at); err != nil {
		t.Fatalf("%v:\n%s", err, dump)
	}
	efi := filepath.Join(t.TempDir(), "bootx64.efi")
	fstreetest.Run(t, "mtools", "mcopy", "-i", fmt.Sprintf("%s@@%d", iso, at*512), "::EFI/BOOT/BOOTX64.EFI", efi)
	for section, want := range map[string][]byte{
		".linux": kernel, ".initrd": initrd, ".cmdline": []byte("flatcar.first_boot=1 console=ttyS0"),
		".osrel": []byte("ID=imagectl\nNAME=imagectl\nPRETTY_NAME=\"imagectl installer of lab\"\n"),
	} {
		out := filepath.Join(t.TempDir(), "section")
		fstreetest.Run(t, "binutils", "objcopy", "-O", "binary", "--dump-section", section+"="+out, efi, filepath.Join(t.TempDir(), "unused"))
		// objcopy gives the section as it is in the file, with its padding.
		if got := read(t, out, ""); !bytes.Equal(bytes.TrimRight(got, "\x00"), bytes.TrimRight(want, "\x00")) {
			t.Errorf("%s has %d bytes, want %d that are the same for BIOS", section, len(got), len(want))
		}
	}
}

func TestTheLargeFilesAreThereOnce(t *testing.T) {
	o := options(t)
	o.Initrd = fstreetest.Noise{Seed: 2, Length: 64 << 20}
	info, err := os.Stat(written(t, o))
	if err != nil {
		t.Fatal(err)
	}
	if limit := o.Initrd.Size() + 2<<20; info.Size() > limit {
		t.Errorf("the image has %d bytes, want less than %d", info.Size(), limit)
	}
}

func TestEqualOptionsGiveEqualBytes(t *testing.T) {
	digest := func(o medium.Options) string { return fmt.Sprintf("%x", sha256.Sum256(read(t, written(t, o), ""))) }
	o := options(t)
	far := options(t)
	far.ModTime = far.ModTime.In(time.FixedZone("far", 9*3600))
	if a, b := digest(o), digest(far); a != b {
		t.Errorf("%s and %s", a, b)
	}
	other := options(t)
	other.Args = []string{"console=tty0"}
	if digest(o) == digest(other) {
		t.Error("other arguments give the same image")
	}
}

func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		edit func(*medium.Options)
		want string
	}{
		{func(o *medium.Options) { o.Arch = "arm64" }, "the kernel and the stub are for amd64, the cluster is arm64"},
		{func(o *medium.Options) { o.BIOS.Loader = bytes.Repeat([]byte("x"), 4096) }, "the loader for BIOS is not isolinux.bin of version 4 or newer"},
		{func(o *medium.Options) { o.BIOS.Module = []byte("x") }, "the module for BIOS is not ldlinux.c32 of version 5 or newer"},
		{func(o *medium.Options) { o.Name = `a "b"` }, `the name "a \"b\"" holds what os-release would need to escape`},
		{func(o *medium.Options) { o.OEM = nil }, "there are no files for the OEM directory"},
		{func(o *medium.Options) { o.Args = []string{strings.Repeat("x", 3000)} },
			"putting a unified kernel image together: the kernel's command line has 3000 characters, it takes 2047: remove kernel arguments"},
	} {
		o := options(t)
		tt.edit(&o)
		_, err := medium.New(o)
		if want := "laying out the installer's medium: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}
