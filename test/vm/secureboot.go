package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// secureArgs is OVMF with Secure Boot, which keeps its variables where only code in
// system management mode writes.
func secureArgs(vars string) []string {
	return []string{
		"-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
		"-drive", "if=pflash,format=raw,unit=1,file=" + vars,
	}
}

// EnrolKeys makes a file of firmware variables, for Config.SecureVariables, with keys
// of one's own: a machine takes PK.auth, KEK.auth and db.auth from a stick with
// systemd-boot, as docs/images.md has it. dir holds them, and the result is in work.
func EnrolKeys(ctx context.Context, dir, work string) (string, error) {
	vars, stick := filepath.Join(work, "secure.vars"), filepath.Join(work, "stick")
	empty, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		return "", fmt.Errorf("copying firmware variables (apt-get install ovmf): %w", err)
	}
	if err := os.WriteFile(vars, empty, 0o644); err != nil {
		return "", err
	}
	conf := filepath.Join(work, "loader.conf")
	if err := os.WriteFile(conf, []byte("secure-boot-enroll force\n"), 0o644); err != nil {
		return "", err
	}
	commands := [][]string{
		{"mkfs.fat", "-C", stick, "65536"},
		{"mmd", "-i", stick, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/keys", "::/loader/keys/auto"},
		{"mcopy", "-i", stick, "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", "::/EFI/BOOT/BOOTX64.EFI"},
		{"mcopy", "-i", stick, conf, "::/loader/loader.conf"},
		{"mcopy", "-i", stick, filepath.Join(dir, "PK.auth"), filepath.Join(dir, "KEK.auth"), filepath.Join(dir, "db.auth"), "::/loader/keys/auto/"},
		// It restarts the machine when it is done, which ends QEMU.
		append([]string{
			"qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", EmulatedCPU, "-m", "512", "-no-reboot",
			"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-monitor", "none", "-serial", "stdio",
			"-drive", "if=none,id=stick,format=raw,readonly=on,file=" + stick, "-device", "virtio-blk-pci,drive=stick,bootindex=1",
		}, secureArgs(vars)...),
	}
	var out []byte
	for _, argv := range commands {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if out, err = cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("enrolling keys: %s: %w: %s", argv[0], err, out)
		}
	}
	for _, name := range []string{"PK", "KEK"} {
		want, err := os.ReadFile(filepath.Join(dir, name+".esl"))
		if err != nil {
			return "", err
		}
		got, err := NVRAM{Path: vars}.Read(name)
		if err != nil || !bytes.Equal(got, want) {
			return "", fmt.Errorf("enrolling keys: the firmware's %s is not what was enrolled: %x, %v\n%s", name, got, err, out)
		}
	}
	return vars, nil
}
