package server

import (
	"bytes"
	"debug/pe"
	"fmt"
)

// maxBIOS is how large a program can be that a BIOS loads: what is free below 640 KiB.
const maxBIOS = 640 << 10

// efiApplication is the PE subsystem of what UEFI starts (PE/COFF, "Windows Subsystem").
const efiApplication = 10

// CheckPrograms says which of iPXE's programs its firmware could not start: that is
// one for another kind of firmware or another processor, or no program at all. arm64 is
// nil where there is none.
func CheckPrograms(bios, uefi, arm64 []byte) error {
	const hint = "lock iPXE's %s there"
	machine, err := peMachine(bios)
	switch {
	case err == nil:
		return fmt.Errorf("checking boot.ipxe.bios: it is a program for UEFI (%s), which a BIOS cannot start; "+hint, machine, biosName)
	case len(bios) == 0:
		return fmt.Errorf("checking boot.ipxe.bios: it is empty; "+hint, biosName)
	case len(bios) > maxBIOS:
		return fmt.Errorf("checking boot.ipxe.bios: its %d bytes are more than the %d that a BIOS can load; "+hint, len(bios), maxBIOS, biosName)
	}
	for _, p := range []struct {
		key, machine, from string
		content            []byte
	}{{"uefi", "x86-64", "x86_64-efi", uefi}, {"arm64", "arm64", "arm64-efi", arm64}} {
		if p.key == "arm64" && p.content == nil {
			continue
		}
		machine, err = peMachine(p.content)
		if err != nil {
			return fmt.Errorf("checking boot.ipxe.%s: it is no program for UEFI: %w; "+hint, p.key, err, uefiName)
		}
		if machine != p.machine {
			return fmt.Errorf("checking boot.ipxe.%s: it is for %s, and the machines are %s; "+hint, p.key, machine, p.machine, uefiName+" of "+p.from)
		}
	}
	return nil
}

// CheckGRUB says which of shim and GRUB UEFI on x86-64 could not start.
func CheckGRUB(shim, program []byte) error {
	for _, p := range []struct {
		key     string
		content []byte
	}{{"boot.grub.shim", shim}, {"boot.grub.grub", program}} {
		machine, err := peMachine(p.content)
		if err != nil {
			return fmt.Errorf("checking %s: it is no program for UEFI: %w; lock one of x86-64 there", p.key, err)
		}
		if machine != "x86-64" {
			return fmt.Errorf("checking %s: it is for %s; lock one of x86-64 there", p.key, machine)
		}
	}
	return nil
}

// peMachine is the processor that an EFI application is for.
func peMachine(program []byte) (string, error) {
	f, err := pe.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", fmt.Errorf("reading its PE header: %w", err)
	}
	defer f.Close()
	subsystem := uint16(0)
	switch h := f.OptionalHeader.(type) {
	case *pe.OptionalHeader64:
		subsystem = h.Subsystem
	case *pe.OptionalHeader32:
		subsystem = h.Subsystem
	}
	if subsystem != efiApplication {
		return "", fmt.Errorf("its PE subsystem is %d, an EFI application's is %d", subsystem, efiApplication)
	}
	switch f.Machine {
	case pe.IMAGE_FILE_MACHINE_AMD64:
		return "x86-64", nil
	case pe.IMAGE_FILE_MACHINE_ARM64:
		return "arm64", nil
	case pe.IMAGE_FILE_MACHINE_I386:
		return "32-bit x86", nil
	}
	return fmt.Sprintf("machine type %#x", f.Machine), nil
}
