//go:build root

package lldp

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// lldpd, which is what servers and many switches run, at the other end of a cable.
func TestLldpdIsHeard(t *testing.T) {
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	run("ip", "link", "add", "lldp-here", "type", "veth", "peer", "name", "lldp-there")
	t.Cleanup(func() { run("ip", "link", "del", "lldp-here") })
	run("ip", "link", "set", "lldp-here", "up")
	run("ip", "link", "set", "lldp-there", "alias", "to the machine", "up")

	// lldpcli is another user, who may not enter a directory of the test's.
	dir, err := os.MkdirTemp("", "lldp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	daemon := exec.CommandContext(t.Context(), "lldpd", "-d", "-u", socket, "-I", "lldp-there", "-C", "lldp-there", "-S", "a test", "-O", "/dev/null")
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })

	ctx, cancel := context.WithTimeout(t.Context(), 2*Interval)
	defer cancel()
	// It sends when it starts, and we may be late: have it send each second.
	go func() {
		for exec.CommandContext(ctx, "lldpcli", "-u", socket, "configure", "lldp", "tx-interval", "1").Run() != nil && ctx.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
	}()
	got, err := Listen(ctx, "lldp-here")
	if err != nil {
		t.Fatal(err)
	}
	if got.Chassis == "" || got.System == "" || got.Port == "" {
		t.Errorf("heard %+v, want chassis, system and port", got)
	}
	t.Logf("heard %+v", got)

	silent, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	run("ip", "link", "set", "lldp-there", "down")
	run("ip", "link", "add", "lldp-quiet", "type", "veth", "peer", "name", "lldp-nobody")
	t.Cleanup(func() { run("ip", "link", "del", "lldp-quiet") })
	if n, err := Listen(silent, "lldp-quiet"); err == nil {
		t.Errorf("heard %+v where nobody is", n)
	}
}
