// Package medium lays out what a machine boots that cannot be netbooted: an ISO
// image with the same kernel, initial RAM file system and arguments that PXE gives,
// and files for Flatcar's OEM directory in place of what a network would tell. It
// boots by UEFI and BIOS, from a CD (a BMC's virtual one too) and from a USB stick.
//
// UEFI starts a unified kernel image, BIOS starts ISOLINUX, which loads the same
// bytes of kernel and initial RAM file system from within that. There is no menu,
// no prompt, and no way to add an argument at the console.
//
// The result is an fstree.Content; equal options give equal bytes.
package medium

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/cpio"
	"github.com/imagectl/imagectl/images/fat"
	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/iso"
	"github.com/imagectl/imagectl/images/uki"
)

// Options say what goes in. All are required but BIOS and Signer.
type Options struct {
	// Name is shown by boot menus, such as "imagectl installer of prod".
	Name string
	// Label is the volume's: 1 to 11 of A-Z, 0-9 and "_".
	Label string
	// Arch is amd64 or arm64.
	Arch string
	// Kernel and Initrd are Flatcar's for PXE.
	Kernel, Initrd fstree.Content
	// OEM holds files for the root of Flatcar's OEM directory, such as config.ign.
	OEM *fstree.Tree
	// Args are the kernel's arguments.
	Args []string
	// Stub is systemd's, see images/uki.
	Stub []byte
	// Signer signs what UEFI starts; nil leaves it unsigned. There is no signature of
	// what BIOS starts.
	Signer uki.Signer
	// BIOS is what BIOS boots with; nil for an image that only UEFI boots, which
	// is all that arm64 has.
	BIOS *BIOS
	// ModTime is the time of all files.
	ModTime time.Time
}

// BIOS is ISOLINUX of one version, its files as Debian's packages isolinux and
// syslinux-common have them.
type BIOS struct {
	// Loader is isolinux.bin, Module ldlinux.c32, MBR isohdpfx.bin.
	Loader, Module, MBR []byte
}

// Paths on the medium.
const (
	kernelPath = "BOOT/KERNEL"
	initrdPath = "BOOT/INITRD"
	loaderPath = "ISOLINUX/ISOLINUX.BIN"
	modulePath = "ISOLINUX/LDLINUX.C32"
	configPath = "ISOLINUX/ISOLINUX.CFG"
)

// New lays a medium out.
func New(o Options) (fstree.Content, error) {
	content, err := layOut(o)
	if err != nil {
		return nil, fmt.Errorf("laying out the installer's medium: %w", err)
	}
	return content, nil
}

// Program is what UEFI starts from the medium, for firmware that is given it in
// another way. Label and BIOS are not looked at.
func Program(o Options) (*uki.Image, error) {
	oem, err := Archive(o.OEM, o.ModTime)
	if err != nil {
		return nil, fmt.Errorf("archiving the installer's files: %w", err)
	}
	return program(o, oem)
}

func program(o Options, oem []byte) (*uki.Image, error) {
	if strings.ContainsAny(o.Name, "\"\n\\$`") {
		return nil, fmt.Errorf("the name %q holds what os-release would need to escape", o.Name)
	}
	p, err := uki.New(uki.Options{
		Stub: o.Stub, Kernel: o.Kernel, Cmdline: cmdline(o), Signer: o.Signer,
		OSRelease: "ID=imagectl\nNAME=imagectl\nPRETTY_NAME=\"" + o.Name + "\"\n",
		// The kernel wants an archive to begin at a multiple of 4.
		Initrd: fstree.Sequence{o.Initrd, fstree.Zeros(-o.Initrd.Size() & 3), fstree.Bytes(oem)},
	})
	if err != nil {
		return nil, err
	}
	if p.Arch() != o.Arch {
		return nil, fmt.Errorf("the kernel and the stub are for %s, the cluster is %s", p.Arch(), o.Arch)
	}
	return p, nil
}

func cmdline(o Options) string { return strings.Join(o.Args, " ") }

func layOut(o Options) (fstree.Content, error) {
	oem, err := Archive(o.OEM, o.ModTime)
	if err != nil {
		return nil, err
	}
	p, err := program(o, oem)
	if err != nil {
		return nil, err
	}
	name, err := defaultProgram(o.Arch)
	if err != nil {
		return nil, err
	}
	sum := identity(o, oem)
	esp := new(fstree.Tree)
	if err := esp.AddFile(name, 0o644, p); err != nil {
		return nil, err
	}
	volume, err := fat.New(esp, fat.Options{Label: o.Label, Serial: binary.LittleEndian.Uint32(sum[:]), ModTime: o.ModTime})
	if err != nil {
		return nil, err
	}
	i := iso.Options{Label: o.Label, ModTime: o.ModTime, ESP: volume, DiskGUID: guid(sum, "disk"), ESPGUID: guid(sum, "esp")}
	tree := new(fstree.Tree)
	if o.BIOS != nil {
		if o.Arch != "amd64" {
			return nil, fmt.Errorf("there are programs for BIOS, which %s does not have", o.Arch)
		}
		at, _ := volume.Offset(name)
		if err := o.BIOS.add(tree, at, p, cmdline(o)); err != nil {
			return nil, err
		}
		i.BIOS, i.MBR = loaderPath, o.BIOS.MBR
	}
	return iso.New(tree, i)
}

// Archive makes files for the root of Flatcar's OEM directory into a compressed cpio
// archive, which follows the initial RAM file system: what follows an archive of another
// length than firmware expects gets lost unless it is compressed. The installer has them
// below /oem. Genuine Flatcar copies them there (bootengine, 99setup-root).
func Archive(oem *fstree.Tree, modTime time.Time) ([]byte, error) {
	if oem == nil {
		return nil, errors.New("there are no files for the OEM directory")
	}
	tree := new(fstree.Tree)
	for _, e := range oem.Entries() {
		// The path that every Flatcar release reads.
		e.Path = path.Join("usr/share/oem", e.Path)
		if err := tree.Add(e); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	err := cpio.WriteGzip(&b, tree, cpio.Options{ModTime: modTime})
	return b.Bytes(), err
}

// defaultProgram is what UEFI starts from a medium that it has no entry for
// (UEFI 2.10, 3.5.1.1).
func defaultProgram(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "EFI/BOOT/BOOTX64.EFI", nil
	case "arm64":
		return "EFI/BOOT/BOOTAA64.EFI", nil
	}
	return "", fmt.Errorf("architecture %q is not supported; supported are amd64 and arm64", arch)
}

// add puts ISOLINUX onto the medium, which loads parts of the program at an
// offset of the ESP.
func (b *BIOS) add(t *fstree.Tree, at int64, program *uki.Image, cmdline string) error {
	// The magic number by which boot code for disks knows that it got ISOLINUX.
	if len(b.Loader) < 68 || binary.LittleEndian.Uint32(b.Loader[64:]) != 0x7078c0fb {
		return errors.New("the loader for BIOS is not isolinux.bin of version 4 or newer")
	}
	if !bytes.HasPrefix(b.Module, []byte("\x7fELF")) {
		return errors.New("the module for BIOS is not ldlinux.c32 of version 5 or newer")
	}
	part := func(s uki.Section) fstree.Content { return iso.Shared{Offset: at + s.Offset, Length: s.Length} }
	for _, f := range []struct {
		path    string
		content fstree.Content
	}{
		{kernelPath, part(program.Section(uki.Kernel))},
		{initrdPath, part(program.Section(uki.Initrd))},
		{loaderPath, fstree.Bytes(b.Loader)},
		{modulePath, fstree.Bytes(b.Module)},
		{configPath, fstree.Bytes(config(cmdline))},
	} {
		if err := t.AddFile(f.path, 0o644, f.content); err != nil {
			return err
		}
	}
	return nil
}

// config is ISOLINUX's: boot at once, and let nobody at the console in between.
func config(cmdline string) string {
	return "DEFAULT imagectl\nPROMPT 0\nNOESCAPE 1\nALLOWOPTIONS 0\n" +
		"LABEL imagectl\n  LINUX /" + kernelPath + "\n  INITRD /" + initrdPath + "\n  APPEND " + cmdline + "\n"
}

// identity is a digest of what tells one medium from another.
func identity(o Options, oem []byte) [32]byte {
	h := sha256.New()
	for _, s := range append([]string{"imagectl medium 1", o.Name, o.Label, o.Arch, string(oem), o.ModTime.UTC().String()}, o.Args...) {
		fmt.Fprintf(h, "%d:%s\n", len(s), s)
	}
	return [32]byte(h.Sum(nil))
}

// guid is a UUID in version 8's form (RFC 9562).
func guid(sum [32]byte, what string) [16]byte {
	d := sha256.Sum256(append(sum[:], what...))
	g := [16]byte(d[:16])
	g[6] = g[6]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return g
}
