package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	serverAddress = "10.96.0.1"
	clientAddress = "10.96.0.2"
	network       = "10.96.0.0/12"
	bits          = "/12"
)

// serverCard is the network card of the servers.
var serverCard = net.HardwareAddr{0x52, 0x54, 1, 0, 0, 1}

// space is the servers' network namespace at the other end of a veth pair; ours
// has the clients.
type space struct {
	holder *exec.Cmd
}

func newSpace(ctx context.Context) (*space, error) {
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		return nil, fmt.Errorf("making the servers' network namespace: %w", err)
	}
	s := &space{holder}
	pid := strconv.Itoa(holder.Process.Pid)
	for _, argv := range [][]string{
		{"ip", "link", "add", "probe", "type", "veth", "peer", "name", "rack", "address", serverCard.String(), "netns", pid},
		{"ip", "address", "add", clientAddress + bits, "dev", "probe"},
		{"ip", "link", "set", "probe", "up"},
		s.argv("ip", "link", "set", "lo", "up"),
		s.argv("ip", "address", "add", serverAddress+bits, "dev", "rack"),
		s.argv("ip", "link", "set", "rack", "up"),
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			s.close()
			return nil, fmt.Errorf("running %q: %w: %s", argv, err, out)
		}
	}
	return s, nil
}

func (s *space) argv(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(s.holder.Process.Pid), "--net"}, argv...)
}

// run runs a program in the space.
func (s *space) run(ctx context.Context, argv ...string) error {
	all := s.argv(argv...)
	if out, err := exec.CommandContext(ctx, all[0], all[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %q: %w: %s", argv, err, out)
	}
	return nil
}

func (s *space) close() {
	_ = s.holder.Process.Kill()
	_ = s.holder.Wait() // it was killed
}

// daemon is a running server.
type daemon struct {
	cmd  *exec.Cmd
	said bytes.Buffer
	done chan struct{}
}

// start runs a server in the space and waits until up says that it answers.
func (s *space) start(ctx context.Context, up func() error, argv ...string) (*daemon, error) {
	all := s.argv(argv...)
	d := &daemon{cmd: exec.Command(all[0], all[1:]...), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = &d.said, &d.said
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = d.cmd.Wait() // it is stopped by a signal
		close(d.done)
	}()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		err := up()
		if err == nil {
			return d, nil
		}
		select {
		case <-d.done:
			return nil, fmt.Errorf("%s ended:\n%s", argv[0], d.said.Bytes())
		case <-ctx.Done():
			d.stop()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.stop()
			return nil, fmt.Errorf("%s does not answer: %w", argv[0], err)
		}
	}
}

// stop ends a server and waits for its end.
func (d *daemon) stop() {
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// spent is the processor time that a server has used so far, to a hundredth of a second.
// What the kernel does for its packets on their way counts only where it is done in the
// server's name.
func (d *daemon) spent() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(text, []byte(") ")) // the name may have blanks
	fields := bytes.Fields(after)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(string(fields[11]))
	system, _ := strconv.Atoi(string(fields[12]))
	return time.Duration(user+system) * time.Second / 100 // USER_HZ of all architectures here
}

// listens says whether a TCP server is up.
func listens(at string) func() error {
	return func() error {
		c, err := net.DialTimeout("tcp4", at, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// bound says whether a UDP port of the space is taken.
func (s *space) bound(ctx context.Context, port int) func() error {
	return func() error {
		argv := s.argv("ss", "-Hlun", "sport", "=", ":"+strconv.Itoa(port))
		out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
		if err == nil && len(bytes.TrimSpace(out)) == 0 {
			err = fmt.Errorf("nobody listens on port %d", port)
		}
		return err
	}
}

// printMachine says on what the figures were found.
func printMachine() {
	model := "unknown processor"
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		for in := bufio.NewScanner(f); in.Scan(); {
			if key, value, ok := strings.Cut(in.Text(), ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
		f.Close()
	}
	load, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(load), " ")
	cpus, _ := os.ReadFile("/sys/devices/system/cpu/online")
	fmt.Printf("processors %s (%s), shared by servers and clients; load %s before the run\n", bytes.TrimSpace(cpus), model, one)
}

// missing names the first program that is not installed.
func missing(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w: %s is not installed", errNotCompared, p)
		}
	}
	return nil
}

var errNotCompared = errors.New("not compared")
