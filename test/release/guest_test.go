//go:build vm

package release_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/imagectl/imagectl/test/vm"
)

// bootLimit is generous: two busy cores without KVM boot in one to two minutes.
const bootLimit = 20 * time.Minute

// escapes are the terminal sequences that GRUB and systemd print.
var escapes = regexp.MustCompile("\x1b(?:\\[[0-9;?=]*[A-Za-z]|[()][0-9A-B])")

// A guest is a QEMU machine with user networking, and its serial console.
type guest struct {
	t       *testing.T
	mu      sync.Mutex
	changed chan struct{}
	lines   []string
	ended   bool
	cmd     *exec.Cmd
	done    chan struct{}
}

// boot starts QEMU with the machine's usual parts and args; the test's end
// stops it.
func boot(t *testing.T, args ...string) *guest {
	t.Helper()
	args = append([]string{
		"-machine", "q35", "-accel", "tcg", "-cpu", vm.EmulatedCPU, "-smp", "1", "-m", "2048",
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "std", "-monitor", "none", "-serial", "stdio",
		"-object", "rng-random,filename=/dev/urandom,id=rng", "-device", "virtio-rng-pci,rng=rng",
	}, args...)
	return watch(t, "qemu-system-x86_64", args...)
}

// watch starts a program whose output is a guest's console; the test's end stops
// it.
func watch(t *testing.T, program string, args ...string) *guest {
	t.Helper()
	g := &guest{t: t, changed: make(chan struct{}), done: make(chan struct{})}
	g.cmd = exec.Command(program, args...)
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	g.cmd.Stderr = os.Stderr
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.ArtifactDir(), "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.done)
		defer log.Close()
		r := bufio.NewReader(io.TeeReader(out, log))
		for {
			line, err := r.ReadString('\n')
			g.add(escapes.ReplaceAllString(strings.TrimRight(line, "\r\n"), ""), err != nil)
			if err != nil {
				break
			}
		}
		_ = g.cmd.Wait() // how it ended is on the console
	}()
	t.Cleanup(g.stop)
	return g
}

func (g *guest) add(line string, ended bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lines = append(g.lines, line)
	g.ended = ended
	close(g.changed)
	g.changed = make(chan struct{})
}

// stop pulls the plug.
func (g *guest) stop() {
	_ = g.cmd.Process.Kill() // an error says that it is gone already
	<-g.done
}

// wait returns the groups of the first console line that matches; a stopped
// boot or a panic that was not asked for ends the test.
func (g *guest) wait(pattern string) []string {
	g.t.Helper()
	re := regexp.MustCompile(pattern)
	stopped := regexp.MustCompile(`BOOT STOPPED|Kernel panic`)
	limit := time.After(bootLimit)
	for next := 0; ; {
		g.mu.Lock()
		lines, ended, changed := g.lines[next:], g.ended, g.changed
		next = len(g.lines)
		g.mu.Unlock()
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
			if stopped.MatchString(line) {
				g.t.Fatalf("waiting for %q: the boot stopped: %s\n%s", pattern, line, g.tail())
			}
		}
		if ended {
			g.t.Fatalf("waiting for %q: the guest ended\n%s", pattern, g.tail())
		}
		select {
		case <-changed:
		case <-limit:
			g.t.Fatalf("waiting for %q: nothing within %s\n%s", pattern, bootLimit, g.tail())
		}
	}
}

// report returns the value of one `REPORT name=value` line.
func (g *guest) report(name string) string {
	g.t.Helper()
	return g.wait(`REPORT ` + name + `=(.*)`)[1]
}

// printed says whether a line seen so far contains text.
func (g *guest) printed(text string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, line := range g.lines {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}

func (g *guest) tail() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return strings.Join(g.lines[max(0, len(g.lines)-25):], "\n")
}
