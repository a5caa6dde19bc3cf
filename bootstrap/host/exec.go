package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Command is a program to run. Secrets never go into Argv: /proc shows it.
type Command struct {
	// Argv is the program, found in PATH, and its arguments.
	Argv []string
	// Stdin may be nil.
	Stdin []byte
	// Env is added to the environment of this process.
	Env []string
}

// RunError says that a program failed: which, what it printed, and how it ended.
type RunError struct {
	Argv   []string
	Output []byte
	Cause  error
}

// outputKept bounds what of a program's output ends up in an error message, in
// bytes. Reports to the server are cut at 1024, and the reason stands at the end.
const outputKept = 700

// coloured matches what programs colour their output with (ECMA-48, SGR).
var coloured = regexp.MustCompile("\x1b\\[[0-9;]*m")

func (e *RunError) Error() string {
	out := bytes.TrimSpace(coloured.ReplaceAll(e.Output, nil))
	if len(out) > outputKept {
		out = append([]byte("…"), out[len(out)-outputKept:]...)
	}
	// The cut may have gone through a letter, and the message travels as UTF-8.
	out = bytes.ToValidUTF8(out, []byte("?"))
	if len(out) == 0 {
		return fmt.Sprintf("running %s: %v", strings.Join(e.Argv, " "), e.Cause)
	}
	return fmt.Sprintf("running %s: %v: %s", strings.Join(e.Argv, " "), e.Cause, out)
}

func (e *RunError) Unwrap() error { return e.Cause }

// Run runs a program to its end and returns its standard output. The error is a
// *RunError that holds standard error as well. The program dies with ctx and
// with this process: a second agent must never meet the first one's kubeadm.
func (h *Host) Run(ctx context.Context, c Command) ([]byte, error) {
	if h.Exec != nil {
		return h.Exec(ctx, c)
	}
	// Each stream is copied by a goroutine of its own, so each has its own end.
	var out, errOut tail
	cmd := command(ctx, c)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	// Pdeathsig is tied to the thread that forks, so that thread must live as
	// long as the program does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return out.b, &RunError{Argv: c.Argv, Output: append(bytes.Clone(out.b), errOut.b...), Cause: err}
	}
	return out.b, nil
}

// Stream runs a program and hands its standard output to read, which decides
// when it has seen enough; the program is ended then.
func (h *Host) Stream(ctx context.Context, c Command, read func(io.Reader) error) error {
	if h.Exec != nil {
		out, err := h.Exec(ctx, c)
		if err != nil {
			return err
		}
		return read(bytes.NewReader(out))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := command(ctx, c)
	var errOut tail
	cmd.Stderr = &errOut
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return &RunError{Argv: c.Argv, Cause: err}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return &RunError{Argv: c.Argv, Cause: err}
	}
	readErr := read(pipe)
	if readErr != nil {
		cancel()
	}
	waitErr := cmd.Wait()
	if readErr != nil {
		return readErr
	}
	if waitErr != nil {
		return &RunError{Argv: c.Argv, Output: errOut.b, Cause: waitErr}
	}
	return nil
}

func command(ctx context.Context, c Command) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env = append(os.Environ(), c.Env...)
	if c.Stdin != nil {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	// A grandchild that keeps the pipe open must not keep us.
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// tail keeps the last megabyte written to it: enough for any answer that we
// parse, and a bound on a program that babbles.
type tail struct{ b []byte }

const tailMax = 1 << 20

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - tailMax; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// StartUnit starts a systemd unit without waiting for its start job, so that
// the agent can be ordered before it.
func (h *Host) StartUnit(ctx context.Context, unit string) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "start", "--no-block", unit}})
	return err
}

// RestartUnit restarts a systemd unit and waits for the job.
func (h *Host) RestartUnit(ctx context.Context, unit string) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "restart", unit}})
	return err
}

// StopUnit stops a systemd unit and waits until it is down.
func (h *Host) StopUnit(ctx context.Context, unit string) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "stop", unit}})
	return err
}

// KillUnit ends the processes of a systemd unit at once, without asking them.
func (h *Host) KillUnit(ctx context.Context, unit string) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "kill", "--signal=SIGKILL", unit}})
	return err
}

// ReloadUnits makes systemd read its unit files again.
func (h *Host) ReloadUnits(ctx context.Context) error {
	_, err := h.Run(ctx, Command{Argv: []string{"systemctl", "daemon-reload"}})
	return err
}

// UnitState returns what "systemctl is-active" prints: active, activating,
// inactive, failed, ... That command exits 3 for all but the first; only an
// empty answer is an error.
func (h *Host) UnitState(ctx context.Context, unit string) (string, error) {
	out, err := h.Run(ctx, Command{Argv: []string{"systemctl", "is-active", unit}})
	state := strings.TrimSpace(string(out))
	var run *RunError
	if err != nil && (state == "" || !errors.As(err, &run)) {
		return "", err
	}
	return state, nil
}
