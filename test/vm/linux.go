package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// RunLinux starts a Linux of its own as a program (Debian's user-mode-linux, whose kernel
// has what this machine's may lack: bonds, VLANs) and returns what it printed when it has
// switched itself off. Its first process is an executable file; it sees this machine's
// files, read-only, and WORK, an empty directory, in which it finds the kernel's modules
// (modprobe -d "$WORK") and may write. More are further arguments of the kernel, of which
// those like KEY=value become the process's environment.
//
// When ctx ends it is killed, and the output until then comes with ctx's error.
func RunLinux(ctx context.Context, process, work string, more ...string) ([]byte, error) {
	const linux, modules = "/usr/bin/linux.uml", "/usr/lib/uml/modules"
	for _, f := range []string{linux, modules} {
		if _, err := os.Stat(f); err != nil {
			return nil, fmt.Errorf("starting a Linux as a program: %w (make deps installs it)", err)
		}
	}
	if err := os.MkdirAll(filepath.Join(work, "lib"), 0o755); err != nil {
		return nil, fmt.Errorf("starting a Linux as a program: %w", err)
	}
	if err := os.Symlink(modules, filepath.Join(work, "lib/modules")); err != nil {
		return nil, fmt.Errorf("starting a Linux as a program: %w", err)
	}
	process, err := filepath.Abs(process)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, linux, append([]string{
		"mem=256M", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + process, "WORK=" + work,
		"con=null", "con0=fd:0,fd:1", "quiet", "panic=-1",
	}, more...)...)
	cmd.Dir = work
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + work, "TMPDIR=" + work}
	// It is several processes, and stops when all of them do.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// It ends with 0 or 1, as the console goes, so its caller looks at what it printed.
	var ended *exec.ExitError
	if err := cmd.Run(); err != nil && ctx.Err() == nil && !errors.As(err, &ended) && !errors.Is(err, exec.ErrWaitDelay) {
		return out.Bytes(), fmt.Errorf("running %s: %w", linux, err)
	}
	if ctx.Err() != nil {
		return out.Bytes(), fmt.Errorf("running %s: %w", linux, context.Cause(ctx))
	}
	return out.Bytes(), nil
}
