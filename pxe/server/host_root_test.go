//go:build root

package server_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// host is another host of the lab: a network namespace.
type host struct {
	t    *testing.T
	pid  int
	name string
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	p := start(t, nil, "unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity")
	p.wait("^up$")
	return &host{t: t, pid: p.cmd.Process.Pid, name: name}
}

// plug gives the host a card on a bridge; cidr may be empty.
func (h *host) plug(card, bridge, cidr string) {
	h.t.Helper()
	port := h.name + "-" + card
	for _, args := range [][]string{
		{"ip", "link", "add", port, "type", "veth", "peer", "name", card, "netns", strconv.Itoa(h.pid)},
		{"ip", "link", "set", port, "master", bridge, "up"},
		h.inside("ip", "link", "set", card, "up"),
	} {
		h.must(args...)
	}
	if cidr != "" {
		h.must(h.inside("ip", "address", "add", cidr, "dev", card)...)
	}
	// The kernel says only a moment later that the link is there; Kea looks once, and
	// does not listen where there is none.
	show := h.inside("ip", "-o", "link", "show", "dev", card)
	for end := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		out, err := exec.Command(show[0], show[1:]...).Output()
		if err != nil {
			h.t.Fatal(err)
		}
		if strings.Contains(string(out), "state UP") {
			break
		}
		if time.Now().After(end) {
			h.t.Fatalf("the link of %s is not there after five minutes: %s", card, out)
		}
	}
	h.t.Cleanup(func() { _ = run("ip", "link", "delete", port) }) // gone with the host, if that was quicker
}

func (h *host) must(args ...string) {
	h.t.Helper()
	if err := run(args[0], args[1:]...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) inside(args ...string) []string {
	return append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", h.pid), "--"}, args...)
}

// start runs a program on the host.
func (h *host) start(args ...string) *process {
	h.t.Helper()
	return start(h.t, nil, h.inside(args...)...)
}

// process is a program that the test talks with by what it prints.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
}

// start runs a program until the test ends.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(args[0], args[1:]...), lines: make(chan string)}
	p.cmd.Env = append(os.Environ(), env...)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = write, write
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(p.lines)
		defer read.Close()
		for in := bufio.NewScanner(read); in.Scan(); {
			fmt.Fprintf(t.Output(), "%s: %s\n", filepath.Base(args[0]), in.Text())
			select {
			case p.lines <- in.Text():
			case <-stop:
				_, _ = io.Copy(io.Discard, read)
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		_ = p.cmd.Wait()
		<-done
	})
	return p
}

// wait waits for a line and returns the groups of the expression.
func (p *process) wait(expr string) []string {
	p.t.Helper()
	want := regexp.MustCompile(expr)
	for line := range p.lines {
		if m := want.FindStringSubmatch(line); m != nil {
			go func() { // what it says later is only for the log
				for range p.lines {
				}
			}()
			return m
		}
	}
	p.t.Fatalf("%s ended without a line that matches %s", p.cmd, expr)
	return nil
}

// copied is a program under another path: on a Debian with AppArmor, those at
// their own may not read our files.
func copied(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), filepath.Base(program))
	if err := os.WriteFile(to, readFile(t, path), 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}
