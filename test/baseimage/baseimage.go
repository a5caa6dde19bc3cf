// Package baseimage makes small disk images that are laid out as Flatcar's are
// (reference layouts of 4081 and 4593, scaled down), with sfdisk, mkfs.fat,
// mkfs.btrfs, mke2fs and mtools, for tests of what reads and rewrites such images. They
// do not boot: USR-A holds noise.
package baseimage

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Options vary an image. The zero value is the layout of 4593 and later, with an
// empty OEM.
type Options struct {
	// Small is the layout of 4081 and before: other offsets.
	Small bool
	// Arch says whose boot programs the ESP has: amd64 or arm64; "" means amd64.
	Arch string
	// OEM is a directory whose content the OEM partition gets; empty for none.
	OEM string
	// OEMFile replaces the OEM partition's whole content, when set.
	OEMFile []byte
	// Root is a directory whose content the ROOT partition gets besides Flatcar's
	// empty directories; empty for none.
	Root string
	// RootFile replaces the start of the ROOT partition, when set.
	RootFile []byte
	// RootMiB is ROOT's size; 0 means 32.
	RootMiB int
}

type part struct {
	number, mib   int
	label         string
	typ, id, attr string
}

// Make writes an image into dir and returns its path. It fails the test when a
// tool is missing.
func Make(t testing.TB, dir string, o Options) string {
	t.Helper()
	if o.RootMiB == 0 {
		o.RootMiB = 32
	}
	// Hardly more than the file systems need: every byte is packed, unpacked and
	// summed by many tests.
	esp, usr, oem := 38, 4, 28
	if o.Small {
		esp, usr, oem = 34, 2, 24
	}
	const usrType = "5DFBF5F4-2848-4BAC-AA5E-0D9A20B745A6"
	const linux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	parts := []part{
		{1, esp, "EFI-SYSTEM", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "", "LegacyBIOSBootable"},
		{2, 2, "BIOS-BOOT", "21686148-6449-6E6F-744E-656564454649", "", ""},
		{3, usr, "USR-A", usrType, "7130C94A-213A-4E5A-8E26-6CCE9662F132", "GUID:48,56"},
		{4, usr, "USR-B", usrType, "E03DD35C-7C2D-4A47-B3FE-27F15780A57C", ""},
		{6, oem, "OEM", linux, "", ""},
		{7, 2, "OEM-CONFIG", "C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0", "", ""},
		{9, o.RootMiB, "ROOT", "3884DD41-8582-4404-B9A8-E9B84F2DF50E", "", ""},
	}
	img := filepath.Join(dir, "base.bin")
	script := "label: gpt\nlabel-id: 00000000-0000-0000-0000-000000000001\nunit: sectors\n\n"
	at := 2 // MiB
	offsets := map[string]int64{}
	for _, p := range parts {
		script += fmt.Sprintf("%d : start=%d, size=%d, type=%s, name=%q", p.number, at*2048, p.mib*2048, p.typ, p.label)
		if p.id != "" {
			script += ", uuid=" + p.id
		}
		if p.attr != "" {
			script += fmt.Sprintf(", attrs=%q", p.attr)
		}
		script += "\n"
		offsets[p.label] = int64(at) << 20
		at += (p.mib + 1) / 2 * 2
	}
	f, err := os.OpenFile(img, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(at+2) << 20); err != nil {
		t.Fatal(err)
	}
	run(t, script, "sfdisk", "-q", img)
	place := func(label string, mib int, mkfs func(path string)) {
		tmp := filepath.Join(dir, label)
		if err := os.WriteFile(tmp, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(tmp, int64(mib)<<20); err != nil {
			t.Fatal(err)
		}
		mkfs(tmp)
		b, err := os.ReadFile(tmp)
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(tmp)
		for i := 0; i < len(b); i += 4096 {
			if block := b[i:min(i+4096, len(b))]; !bytes.Equal(block, make([]byte, len(block))) {
				if _, err := f.WriteAt(block, offsets[label]+int64(i)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	place("EFI-SYSTEM", esp, func(p string) {
		run(t, "", "mkfs.fat", "-F", "32", "-n", "EFI-SYSTEM", p)
		fillESP(t, p, dir, o.Arch)
	})
	place("ROOT", o.RootMiB, func(p string) {
		if o.RootFile != nil {
			if err := os.WriteFile(p, o.RootFile, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		src := t.TempDir()
		if o.Root != "" {
			if err := os.CopyFS(src, os.DirFS(o.Root)); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []string{"boot", "usr", "oem"} {
			if err := os.MkdirAll(filepath.Join(src, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		run(t, "", "mke2fs", "-q", "-t", "ext4", "-L", "ROOT", "-d", src, p)
	})
	place("OEM", oem, func(p string) {
		if o.OEMFile != nil {
			if err := os.WriteFile(p, o.OEMFile, 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		args := []string{"-q", "--mixed", "-m", "single", "-d", "single", "-L", "OEM", p}
		if o.OEM != "" {
			args = append([]string{"--rootdir", o.OEM}, args...)
		}
		run(t, "", "mkfs.btrfs", args...)
	})
	// Two of bzip2's blocks; more would only cost the compressors time.
	noise := make([]byte, 1<<20)
	rnd := rand.New(rand.NewPCG(7, 7))
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for label, n := range map[string]int{"USR-A": len(noise), "BIOS-BOOT": 30000} {
		if _, err := f.WriteAt(noise[:n], offsets[label]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(noise[:440], 0); err != nil {
		t.Fatal(err)
	}
	return img
}

// fillESP adds what Flatcar's grub_install.sh and build_image_util.sh put there, by
// name.
func fillESP(t testing.TB, esp, dir, arch string) {
	t.Helper()
	boot, grub := "EFI/boot/bootx64.efi", "EFI/boot/grubx64.efi"
	if arch == "arm64" {
		boot, grub = "EFI/boot/bootaa64.efi", "EFI/boot/grubaa64.efi"
	}
	run(t, "", "mmd", "-i", esp, "::EFI", "::EFI/boot", "::flatcar", "::flatcar/grub")
	tmp := filepath.Join(dir, "file")
	for _, name := range []string{"flatcar/vmlinuz-a", "flatcar/first_boot", "flatcar/grub/grub.cfg.tar", grub, boot} {
		if err := os.WriteFile(tmp, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "", "mcopy", "-i", esp, tmp, "::"+name)
	}
	os.Remove(tmp)
}

func run(t testing.TB, stdin, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	// Where Debian keeps file system tools, for users whose PATH lacks it.
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if p, err := exec.LookPath(name); err != nil {
		for _, d := range []string{"/usr/sbin", "/sbin"} {
			if _, err := os.Stat(filepath.Join(d, name)); err == nil {
				p = filepath.Join(d, name)
			}
		}
		if p == "" {
			t.Fatalf("%s is missing: run make tools, which installs it", name)
		}
		cmd.Path, cmd.Err = p, nil
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
