package vm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Sentinel is what a sentinel disk prints on the serial port before it halts.
const Sentinel = "SENTINEL: this machine booted its own disk"

// sentinelSize is large enough for a FAT32 EFI system partition.
const sentinelSize = 128 << 20

// WriteSentinelDisk makes a bootable disk whose program only prints Sentinel and
// halts, for BIOS (a boot sector) or UEFI (GRUB on an EFI system partition).
func WriteSentinelDisk(path string, fw Firmware) error {
	if fw == AAVMF {
		return errors.New("writing a disk that shows it was booted: there is no program for arm64 in it")
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(path, sentinelSize); err != nil {
		return err
	}
	if fw == SeaBIOS {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(bootSector(Sentinel), 0)
		return err
	}
	return writeEFISentinel(path)
}

// bootSector is a BIOS boot program of 512 bytes that writes text to the first
// serial port and halts. The bytes are:
//
//	cli; cld; xor ax,ax; mov ds,ax; mov si,text
//	next: lodsb; test al,al; jz halt; mov ah,al
//	wait: mov dx,3fdh; in al,dx; test al,20h; jz wait
//	      mov al,ah; mov dx,3f8h; out dx,al; jmp next
//	halt: hlt; jmp halt
func bootSector(text string) []byte {
	program := []byte{
		0xfa, 0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x23, 0x7c,
		0xac, 0x84, 0xc0, 0x74, 0x12, 0x88, 0xc4,
		0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8,
		0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9,
		0xf4, 0xeb, 0xfd,
	}
	sector := make([]byte, 512)
	n := copy(sector, program)
	copy(sector[n:], "\r\n"+text+"\r\n\x00")
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

func writeEFISentinel(path string) error {
	dir, err := os.MkdirTemp("", "imagectl-sentinel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cfg := filepath.Join(dir, "grub.cfg")
	script := "serial --unit=0 --speed=115200\nterminal_output serial\necho\necho '" + Sentinel + "'\nhalt\n"
	if err := os.WriteFile(cfg, []byte(script), 0o644); err != nil {
		return err
	}
	efi := filepath.Join(dir, "bootx64.efi")
	const espStart = 2048 // sectors
	esp := fmt.Sprintf("%s@@%d", path, espStart*512)
	for _, step := range [][]string{
		{"grub-mkstandalone", "-O", "x86_64-efi", "-o", efi, "boot/grub/grub.cfg=" + cfg},
		{"sgdisk", "--clear", fmt.Sprintf("--new=1:%d:0", espStart), "--typecode=1:ef00", path},
		{"mformat", "-i", esp, "-F", "-T", fmt.Sprint(sentinelSize/512 - espStart - 34), "::"},
		{"mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", esp, efi, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		cmd := exec.Command(step[0], step[1:]...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("making the sentinel disk: %s: %w: %s", step[0], err, out.Bytes())
		}
	}
	return nil
}
