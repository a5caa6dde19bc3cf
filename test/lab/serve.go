package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Process is a long-running program of the lab's.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Serve starts imagectl serve and waits until it says that it is ready.
func (l *Lab) Serve(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(l.Work, "serve.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(l.Bin, "imagectl"), append([]string{"serve", "--state", l.State(), "--out", "out"}, l.ServeArgs...)...)
	cmd.Dir = l.Site
	cmd.Env = l.environment()
	cmd.Stdout, cmd.Stderr = log, io.Writer(log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting imagectl serve: %w", err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	l.serve = p
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	return Until(ctx, func() (bool, string, error) {
		select {
		case <-p.done:
			text, _ := os.ReadFile(filepath.Join(l.Work, "serve.log"))
			return false, "", fmt.Errorf("imagectl serve ended (%v):\n%s", p.err, text)
		default:
		}
		_, err := l.Imagectl(ctx, "machines", "ls", "-o", "json")
		return err == nil, fmt.Sprintf("waiting for imagectl serve: %v", err), nil
	})
}

// died returns an error once the server has ended. Until then, one call that failed
// is a reason to ask again: the machine is slow and shared.
func (l *Lab) died() error {
	select {
	case <-l.serve.done:
		return fmt.Errorf("imagectl serve ended: %v", l.serve.err)
	default:
		return nil
	}
}

// State is the server's state directory.
func (l *Lab) State() string { return filepath.Join(l.Work, "state") }

// ServerPID is the process id of imagectl serve.
func (l *Lab) ServerPID() int { return l.serve.cmd.Process.Pid }

// KillServe ends imagectl serve with SIGKILL, as a power cut would.
func (l *Lab) KillServe() { l.serve.Kill() }

// StopServe ends imagectl serve with SIGTERM and reports how it ended.
func (l *Lab) StopServe() error {
	if err := l.serve.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-l.serve.done:
		return l.serve.err
	case <-time.After(time.Minute):
		l.serve.Kill()
		return fmt.Errorf("imagectl serve did not stop within a minute of SIGTERM")
	}
}

// Kill ends the process and waits for its end.
func (p *Process) Kill() {
	// The error says that it is gone already, which is what we want.
	_ = p.cmd.Process.Kill()
	<-p.done
}
