package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// child is a server in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	dir   string
	url   string
}

// start runs this program again as a server, and returns when it listens.
func start(ctx context.Context, dir string, args ...string) (*child, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.CommandContext(ctx, exe, append(args, "-dir", dir)...), dir: dir}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	if c.url, err = bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("starting the server: %w", errors.Join(err, c.cmd.Wait()))
	}
	c.url = strings.TrimSpace(c.url)
	return c, nil
}

// end stops it in order, kill does not.
func (c *child) end() error {
	c.stdin.Close()
	return c.cmd.Wait()
}

func (c *child) kill() error {
	if err := c.cmd.Process.Kill(); err != nil {
		return err
	}
	var exit *exec.ExitError
	if err := c.cmd.Wait(); !errors.As(err, &exit) {
		return fmt.Errorf("killing the server: %w", err)
	}
	return nil
}

// spent is what a process has used so far.
type spent struct {
	cpu time.Duration
	// peak is that of resident memory, in bytes.
	peak int64
}

func (s spent) since(before spent) spent { return spent{cpu: s.cpu - before.cpu, peak: s.peak} }

// spent reads proc_pid_stat(5): utime and stime are fields 14 and 15, in ticks of
// which Linux has 100 a second on every architecture that Go knows.
func (c *child) spent() (spent, error) { return spentBy(c.cmd.Process.Pid) }

func spentBy(pid int) (spent, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return spent{}, err
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return spent{}, fmt.Errorf("reading %q", stat)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return spent{}, err
	}
	s := spent{cpu: time.Duration(user+system) * 10 * time.Millisecond}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return spent{}, err
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &s.peak); err == nil {
			s.peak <<= 10
		}
	}
	return s, nil
}

func readCA(dir string) (*x509.CertPool, *x509.Certificate, error) {
	pem, err := os.ReadFile(filepath.Join(dir, caFile))
	if err != nil {
		return nil, nil, err
	}
	ca, err := pki.ParseCertificatePEM(pem)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, ca, nil
}
