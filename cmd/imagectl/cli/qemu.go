package cli

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// trial is a virtual machine to try an image in.
type trial struct {
	// Image is an absolute path.
	Image string
	// Firmware is bios or uefi.
	Firmware string
	// Accel is auto, kvm or tcg.
	Accel string
	// MemoryMiB and CPUs are the machine's.
	MemoryMiB, CPUs int
}

// host is what decides how QEMU can be called here.
type host struct {
	// Exists tells whether a path can be read.
	Exists func(path string) bool
	// Path is $PATH.
	Path []string
	// Arch is GOARCH.
	Arch string
	// CPUInfo is /proc/cpuinfo.
	CPUInfo string
	// KVM is the error of opening /dev/kvm to read and write.
	KVM error
}

const qemuProgram = "qemu-system-x86_64"

// imageDrivers are what QEMU calls a file, by the end of its name. An ISO is a
// raw file in another drive.
func imageDrivers() map[string]string {
	return map[string]string{
		".raw": "raw", ".bin": "raw", ".img": "raw", ".iso": "raw",
		".qcow2": "qcow2", ".vmdk": "vmdk", ".vhd": "vpc",
	}
}

// bootable tells whether QEMU boots a file of this name.
func bootable(name string) bool { return imageDrivers()[filepath.Ext(name)] != "" }

// firmwareFiles are UEFI's code and empty variables, where distributions have them.
func firmwareFiles() [][2]string {
	return [][2]string{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},                 // Debian, Ubuntu
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},         // Arch
		{"/usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd"},     // Arch until 2024
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},             // Fedora
		{"/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"}, // openSUSE
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},                       // older Debian, Ubuntu, Fedora
	}
}

// chooseAccel decides between the processor's own virtualization and an emulator
// that is some twenty times slower, and says why. A /dev/kvm that opens proves
// little: kernels without either processor flag have been seen to offer one under
// which a stock kernel hangs.
func chooseAccel(want string, h host) (accel, why string, err error) {
	reason := ""
	switch flags := strings.Fields(h.CPUInfo); {
	case h.Arch != "amd64":
		reason = "this is no x86-64 machine"
	case h.KVM != nil:
		reason = h.KVM.Error()
	case !slices.Contains(flags, "vmx") && !slices.Contains(flags, "svm"):
		reason = "the processor offers no virtualization (vmx or svm in /proc/cpuinfo)"
	}
	switch {
	case want == "tcg":
		return "tcg", "emulated, as asked for", nil
	case want == "kvm" && h.Arch != "amd64":
		return "", "", usageError{fmt.Errorf("KVM cannot be used: %s; --accel tcg emulates", reason)}
	case want == "kvm":
		return "kvm", "with KVM, as asked for", nil
	case reason != "":
		return "tcg", "emulated and slow: " + reason, nil
	}
	return "kvm", "with KVM; --accel tcg if nothing appears", nil
}

// qemuArgs is the command that runs a trial, its path first, and a sentence on
// how. Nothing that the machine writes survives it: QEMU keeps that in a file
// without a name in $TMPDIR (/var/tmp).
func qemuArgs(t trial, h host) (argv []string, how string, err error) {
	program := ""
	for _, dir := range h.Path {
		if p := filepath.Join(dir, qemuProgram); dir != "" && h.Exists(p) {
			program = p
			break
		}
	}
	if program == "" {
		return nil, "", errors.New(qemuProgram + " is not in $PATH; install it (Debian: qemu-system-x86, Fedora: qemu-system-x86-core, Arch: qemu-system-x86)")
	}
	driver := imageDrivers()[filepath.Ext(t.Image)]
	if driver == "" {
		return nil, "", usageError{fmt.Errorf("%s is nothing that QEMU boots; it boots .raw, .qcow2, .vmdk, .vhd and .iso", t.Image)}
	}
	accel, why, err := chooseAccel(t.Accel, h)
	if err != nil {
		return nil, "", err
	}
	argv = []string{
		program, "-name", option(filepath.Base(t.Image)), "-machine", "q35", "-accel", accel, "-cpu", "max",
		"-smp", strconv.Itoa(t.CPUs), "-m", strconv.Itoa(t.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-serial", "mon:stdio",
		"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
	}
	if filepath.Ext(t.Image) == ".iso" {
		argv = append(argv, "-drive", "if=none,id=disk,media=cdrom,readonly=on,format=raw,file="+option(t.Image),
			"-device", "ide-cd,drive=disk,bootindex=1")
	} else {
		argv = append(argv, "-drive", "if=none,id=disk,snapshot=on,format="+driver+",file="+option(t.Image),
			"-device", "virtio-blk-pci,drive=disk,bootindex=1")
	}
	name := "SeaBIOS"
	if t.Firmware == "uefi" {
		code, vars, err := findFirmware(h)
		if err != nil {
			return nil, "", err
		}
		name = "UEFI"
		argv = append(argv, "-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+option(code),
			"-drive", "if=pflash,format=raw,unit=1,snapshot=on,file="+option(vars))
	}
	return argv, fmt.Sprintf("%s, %d CPUs, %d MiB, %s", name, t.CPUs, t.MemoryMiB, why), nil
}

func findFirmware(h host) (code, vars string, err error) {
	for _, f := range firmwareFiles() {
		if h.Exists(f[0]) && h.Exists(f[1]) {
			return f[0], f[1], nil
		}
	}
	return "", "", errors.New("no UEFI firmware for QEMU is installed (Debian: ovmf, Fedora: edk2-ovmf, Arch: edk2-ovmf); --firmware bios needs none")
}

// option writes a value for QEMU, to which a comma separates options.
func option(v string) string { return strings.ReplaceAll(v, ",", ",,") }
