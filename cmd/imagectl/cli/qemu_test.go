package cli

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func hostWith(files ...string) host {
	return host{
		Exists: func(path string) bool { return slices.Contains(files, path) },
		Path:   []string{"", "/usr/local/bin", "/usr/bin"}, Arch: "amd64", CPUInfo: "flags\t\t: fpu vmx sse\n",
	}
}

func TestQEMUArguments(t *testing.T) {
	t.Parallel()
	const qemu = "/usr/bin/qemu-system-x86_64"
	base := func(name, accel string) []string {
		return []string{
			qemu, "-name", name, "-machine", "q35", "-accel", accel, "-cpu", "max", "-smp", "2", "-m", "2048",
			"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-serial", "mon:stdio",
			"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
			"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		}
	}
	disk := func(format, file string) []string {
		return []string{"-drive", "if=none,id=disk,snapshot=on,format=" + format + ",file=" + file, "-device", "virtio-blk-pci,drive=disk,bootindex=1"}
	}
	flash := func(code, vars string) []string {
		return []string{"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + code, "-drive", "if=pflash,format=raw,unit=1,snapshot=on,file=" + vars}
	}
	with := func(t trial, change func(*trial)) trial { change(&t); return t }
	plain := trial{Image: "/out/a.raw", Firmware: "bios", Accel: "auto", MemoryMiB: 2048, CPUs: 2}
	for name, tc := range map[string]struct {
		trial trial
		host  host
		want  []string
		how   string
	}{
		"a disk under KVM": {plain, hostWith(qemu), append(base("a.raw", "kvm"), disk("raw", "/out/a.raw")...), "SeaBIOS, 2 CPUs, 2048 MiB, with KVM; --accel tcg if nothing appears"},
		"a path with commas": {
			with(plain, func(t *trial) { t.Image = "/a,b/c,d.qcow2"; t.Accel = "tcg" }), hostWith(qemu),
			append(base("c,,d.qcow2", "tcg"), disk("qcow2", "/a,,b/c,,d.qcow2")...), "SeaBIOS, 2 CPUs, 2048 MiB, emulated, as asked for",
		},
		"UEFI of Debian": {
			with(plain, func(t *trial) { t.Firmware = "uefi"; t.Image = "/out/a.vmdk" }),
			hostWith(qemu, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
			append(append(base("a.vmdk", "kvm"), disk("vmdk", "/out/a.vmdk")...), flash("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")...),
			"UEFI, 2 CPUs, 2048 MiB, with KVM; --accel tcg if nothing appears",
		},
		"UEFI of Fedora": {
			with(plain, func(t *trial) { t.Firmware = "uefi"; t.Image = "/out/a.vhd" }),
			hostWith(qemu, "/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", "/usr/share/OVMF/OVMF_CODE.fd"),
			append(append(base("a.vhd", "kvm"), disk("vpc", "/out/a.vhd")...), flash("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd")...),
			"UEFI, 2 CPUs, 2048 MiB, with KVM; --accel tcg if nothing appears",
		},
		"a CD": {
			with(plain, func(t *trial) { t.Image = "/out/a.iso" }), hostWith(qemu),
			append(base("a.iso", "kvm"), "-drive", "if=none,id=disk,media=cdrom,readonly=on,format=raw,file=/out/a.iso", "-device", "ide-cd,drive=disk,bootindex=1"),
			"SeaBIOS, 2 CPUs, 2048 MiB, with KVM; --accel tcg if nothing appears",
		},
	} {
		got, how, err := qemuArgs(tc.trial, tc.host)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(got, tc.want); diff != "" {
			t.Errorf("%s: got -, want +\n%s", name, diff)
		}
		if how != tc.how {
			t.Errorf("%s: got %q, want %q", name, how, tc.how)
		}
	}
	for name, tc := range map[string]struct {
		trial trial
		host  host
		want  string
	}{
		"no QEMU":                  {plain, hostWith(), "qemu-system-x86_64 is not in $PATH; install it (Debian: qemu-system-x86"},
		"no UEFI firmware":         {with(plain, func(t *trial) { t.Firmware = "uefi" }), hostWith(qemu, "/usr/share/OVMF/OVMF_CODE.fd"), "no UEFI firmware for QEMU is installed (Debian: ovmf"},
		"an install stream":        {with(plain, func(t *trial) { t.Image = "/out/a.raw.zst" }), hostWith(qemu), "/out/a.raw.zst is nothing that QEMU boots"},
		"KVM on another processor": {with(plain, func(t *trial) { t.Accel = "kvm" }), func() host { h := hostWith(qemu); h.Arch = "arm64"; return h }(), "KVM cannot be used: this is no x86-64 machine"},
	} {
		if _, _, err := qemuArgs(tc.trial, tc.host); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestKVMIsUsedOnlyWhereItCanWork(t *testing.T) {
	t.Parallel()
	good := hostWith()
	for name, tc := range map[string]struct {
		change      func(*host)
		accel, want string
	}{
		"Intel":                       {func(*host) {}, "kvm", "with KVM"},
		"AMD":                         {func(h *host) { h.CPUInfo = "flags : svm" }, "kvm", "with KVM"},
		"a device that may not open":  {func(h *host) { h.KVM = errors.New("open /dev/kvm: permission denied") }, "tcg", "emulated and slow: open /dev/kvm: permission denied"},
		"a device without processor":  {func(h *host) { h.CPUInfo = "flags : fpu vmx_like" }, "tcg", "emulated and slow: the processor offers no virtualization"},
		"a processor of another kind": {func(h *host) { h.Arch = "arm64" }, "tcg", "emulated and slow: this is no x86-64 machine"},
	} {
		h := good
		tc.change(&h)
		accel, why, err := chooseAccel("auto", h)
		if err != nil || accel != tc.accel || !strings.HasPrefix(why, tc.want) {
			t.Errorf("%s: got %s, %q, %v, want %s, %q", name, accel, why, err, tc.accel, tc.want)
		}
	}
}
