package vm

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"time"
)

// reachedUserspace is what a kernel without a root file system prints at the end.
var reachedUserspace = regexp.MustCompile(`Unable to mount root fs|No working init found|VFS: Cannot open root device`)

// ProbeAccel returns "kvm" when a guest really boots the given kernel under it
// within a minute, else "tcg". A /dev/kvm that opens proves nothing: nested
// virtualisation has been seen to hang a stock kernel.
func ProbeAccel(ctx context.Context, kernel string) Accel {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host",
		"-m", "512", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-append", "console=ttyS0 panic=-1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err == nil && reachedUserspace.Match(out) {
		return "kvm"
	}
	return "tcg"
}
