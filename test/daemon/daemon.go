// Package daemon runs servers of other hands for tests, until the test ends.
package daemon

import (
	"bytes"
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

// Address is a TCP address of this machine that was free a moment ago, for programs that
// want to open theirs themselves.
func Address(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
