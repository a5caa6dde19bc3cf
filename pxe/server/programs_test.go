package server

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"strings"
	"testing"
)

// efi is the shortest program that has a PE header.
func efi(t *testing.T, machine, subsystem uint16) []byte {
	t.Helper()
	var b bytes.Buffer
	dos := make([]byte, 64)
	copy(dos, "MZ")
	dos[0x3c] = 64
	b.Write(dos)
	b.WriteString("PE\x00\x00")
	for _, part := range []any{
		pe.FileHeader{Machine: machine, SizeOfOptionalHeader: uint16(binary.Size(pe.OptionalHeader64{}))},
		pe.OptionalHeader64{Magic: 0x20b, Subsystem: subsystem, NumberOfRvaAndSizes: 16},
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestProgramsForOtherFirmwareAreRefused(t *testing.T) {
	t.Parallel()
	bios, uefi := []byte("\x4d\x45 undionly"), efi(t, pe.IMAGE_FILE_MACHINE_AMD64, efiApplication)
	arm := efi(t, pe.IMAGE_FILE_MACHINE_ARM64, efiApplication)
	for _, c := range []struct {
		name              string
		bios, uefi, arm64 []byte
		want              string
	}{
		{"as they should be", bios, uefi, nil, ""},
		{"the two were mistaken for each other", uefi, bios, nil, "checking boot.ipxe.bios: it is a program for UEFI (x86-64), which a BIOS cannot start; lock iPXE's undionly.kpxe there"},
		{"nothing for BIOS", nil, uefi, nil, "checking boot.ipxe.bios: it is empty; lock iPXE's undionly.kpxe there"},
		{"too much for BIOS", make([]byte, 1<<20), uefi, nil, "checking boot.ipxe.bios: its 1048576 bytes are more than the 655360 that a BIOS can load; lock iPXE's undionly.kpxe there"},
		{"BIOS' for both", bios, bios, nil, "checking boot.ipxe.uefi: it is no program for UEFI: reading its PE header: "},
		{"arm64's", bios, efi(t, pe.IMAGE_FILE_MACHINE_ARM64, efiApplication), nil, "checking boot.ipxe.uefi: it is for arm64, and the machines are x86-64; lock iPXE's snponly.efi of x86_64-efi there"},
		{"32 bits", bios, efi(t, pe.IMAGE_FILE_MACHINE_I386, efiApplication), nil, "checking boot.ipxe.uefi: it is for 32-bit x86, and the machines are x86-64; lock iPXE's snponly.efi of x86_64-efi there"},
		{"a driver", bios, efi(t, pe.IMAGE_FILE_MACHINE_AMD64, 11), nil, "checking boot.ipxe.uefi: it is no program for UEFI: its PE subsystem is 11, an EFI application's is 10; lock iPXE's snponly.efi there"},
		{"all three", bios, uefi, arm, ""},
		{"x86-64's for arm64", bios, uefi, uefi, "checking boot.ipxe.arm64: it is for x86-64, and the machines are arm64; lock iPXE's snponly.efi of arm64-efi there"},
		{"BIOS' for arm64", bios, uefi, bios, "checking boot.ipxe.arm64: it is no program for UEFI: reading its PE header: "},
		{"nothing for arm64", bios, uefi, []byte{}, "checking boot.ipxe.arm64: it is no program for UEFI: reading its PE header: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := CheckPrograms(c.bios, c.uefi, c.arm64)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestGRUBForOtherFirmwareIsRefused(t *testing.T) {
	t.Parallel()
	good, arm := efi(t, pe.IMAGE_FILE_MACHINE_AMD64, efiApplication), efi(t, pe.IMAGE_FILE_MACHINE_ARM64, efiApplication)
	for _, c := range []struct {
		shim, program []byte
		want          string
	}{
		{good, good, ""},
		{nil, good, "checking boot.grub.shim: it is no program for UEFI: "},
		{good, arm, "checking boot.grub.grub: it is for arm64; lock one of x86-64 there"},
	} {
		if err := CheckGRUB(c.shim, c.program); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}
