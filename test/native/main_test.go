//go:build root

package native

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMain is four programs: the tests, which run themselves again in a network
// namespace of their own; init of a node; and the node's systemctl.
func TestMain(m *testing.M) {
	switch {
	case filepath.Base(os.Args[0]) == "systemctl":
		os.Exit(systemctl(os.Args[1:]))
	case os.Getenv("NATIVE_NODE") != "":
		if err := runInit(os.Getenv("NATIVE_NODE")); err != nil {
			fmt.Fprintln(os.Stderr, "init:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case os.Getenv("NATIVE_INSIDE") == "":
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "NATIVE_INSIDE=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "this rung needs root:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
