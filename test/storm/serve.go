package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// served is imagectl serve in a network namespace of its own, at the other end of
// the wire.
type served struct {
	cmd *exec.Cmd
	// ready is how long it took from its start to its readiness line.
	ready time.Duration
	log   *os.File
}

// serve starts the program. The shell waits until its namespace has the card.
func (s *storm) serve(ctx context.Context, imagectl, dir string) (*served, error) {
	log, err := os.OpenFile(filepath.Join(dir, "serve.log"), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", "-c", `read -r go
ip link set lo up && ip address add `+serverAddress+`/16 dev rack && ip link set rack addrgenmode none txqueuelen 20000 up || exit 1
[ -z "$NEIGHBOURS" ] || ip -batch "$NEIGHBOURS" || exit 1
exec "$0" serve --state state`, imagectl)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "IMAGECTL_CONFIG="+filepath.Join(dir, "context.json"), "IMAGECTL_CACHE="+filepath.Join(dir, "cache"), "NEIGHBOURS="+s.neighbours)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting imagectl serve: %w", err)
	}
	v := &served{cmd: cmd, log: log}
	if err := run(ctx, "ip", "link", "set", "rack", "netns", strconv.Itoa(cmd.Process.Pid)); err != nil {
		return nil, errors.Join(err, v.kill())
	}
	begin := time.Now()
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return nil, errors.Join(err, v.kill())
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "imagectl serve: ready: ") {
		return nil, errors.Join(fmt.Errorf("imagectl serve says %q, and on its standard error:\n%s", line, v.tail()), v.kill())
	}
	v.ready = time.Since(begin)
	return v, nil
}

// arm lets every machine be installed, through the operator's own command.
func (v *served) arm(ctx context.Context, imagectl, dir string) error {
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(v.cmd.Process.Pid), "--net", imagectl, "machines", "arm", "--all")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "IMAGECTL_CONFIG="+filepath.Join(dir, "context.json"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("arming all machines: %w: %.2000s", err, out)
	}
	return nil
}

var memoryLine = regexp.MustCompile(`(VmHWM|VmRSS):\s+(\d+) kB`)

// memory is the largest and the present resident size in MB.
func (v *served) memory() (peak, now int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.cmd.Process.Pid))
	if err != nil {
		return 0, 0, fmt.Errorf("measuring imagectl serve: %w", err)
	}
	for _, m := range memoryLine.FindAllSubmatch(b, -1) {
		kib, err := strconv.Atoi(string(m[2]))
		if err != nil {
			return 0, 0, err
		}
		if string(m[1]) == "VmHWM" {
			peak = kib >> 10
		} else {
			now = kib >> 10
		}
	}
	return peak, now, nil
}

// processor is the time that it has worked.
func (v *served) processor() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	field := strings.Fields(rest)
	var ticks int
	for _, i := range []int{11, 12} {
		if i < len(field) {
			n, _ := strconv.Atoi(field[i])
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// stop ends it as an operator does.
func (v *served) stop() error {
	defer v.log.Close()
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := v.cmd.Wait(); err != nil {
		return fmt.Errorf("imagectl serve ended with %w:\n%s", err, v.tail())
	}
	return nil
}

func (v *served) kill() error {
	defer v.log.Close()
	err := v.cmd.Process.Kill()
	_ = v.cmd.Wait() // it was killed
	return err
}

// tail is the end of its log.
func (v *served) tail() string {
	b, err := os.ReadFile(v.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %q: %w: %s", name, args, err, out)
	}
	return nil
}
