// Package daemon runs servers of other hands for tests, until the test ends.
package daemon

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// patience is how long a server may take until it answers.
const patience = 2 * time.Minute

// Start starts a program and returns when ready does so without an error. from says
// where to get the program. It ends with the test, also with one that is killed.
func Start(t testing.TB, cmd *exec.Cmd, from string, ready func() error) {
	t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s (%s): %v", cmd.Args[0], from, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(patience); ; {
		err := ready()
		if err == nil {
			return
		}
		select {
		case end := <-ended:
			ended <- end
			t.Fatalf("%s ended: %v: %s", cmd.Args[0], end, said.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer after %s: %v", cmd.Args[0], patience, err)
		}
	}
}

// Address is a TCP address of this machine that is the test's until it ends, for programs that
// want to open theirs themselves, and later: the kernel gives its port to nobody, and no other
// test gets it, in this process or another.
func Address(t testing.TB) string {
	t.Helper()
	for range 1000 {
		// Below those of net.ipv4.ip_local_port_range.
		port := 20000 + rand.IntN(12000)
		// Whoever has this name has the port: storetest.Port goes by it too, and is not imported,
		// for etcd comes with it.
		owner, err := net.Listen("unix", fmt.Sprintf("@imagectl-test-port-%d", port))
		if err != nil {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			owner.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { owner.Close() })
		return address
	}
	t.Fatal("no port between 20000 and 31999 is free")
	return ""
}
