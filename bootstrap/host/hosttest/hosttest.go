// Package hosttest is a node in a temporary directory: real files, and units
// and programs that are data.
package hosttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
)

// Node is a host.Host on a temporary directory.
type Node struct {
	*host.Host

	mu sync.Mutex
	// units maps a unit to its state; a missing one is inactive.
	units map[string]string
	// programs maps a program to what it does.
	programs map[string]func(host.Command) ([]byte, error)
	ran      []string
}

// New makes a node with an empty root directory.
func New(t *testing.T) *Node {
	t.Helper()
	n := &Node{units: map[string]string{}, programs: map[string]func(host.Command) ([]byte, error){}}
	n.Host = &host.Host{Root: t.TempDir(), Exec: n.exec}
	n.Program("systemctl", n.systemctl)
	if err := os.MkdirAll(filepath.Join(n.Root, "/proc/sys/kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	return n
}

// Program says what a program does; a program that nobody set is not found.
func (n *Node) Program(name string, does func(host.Command) ([]byte, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.programs[name] = does
}

// SetUnit sets a unit's state.
func (n *Node) SetUnit(unit, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.units[unit] = state
}

// Units returns the units with their states.
func (n *Node) Units() map[string]string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.units)
}

// Ran returns the command lines run since the last call, oldest first.
func (n *Node) Ran() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ran := slices.Clone(n.ran)
	n.ran = nil
	return ran
}

func (n *Node) exec(_ context.Context, c host.Command) ([]byte, error) {
	n.mu.Lock()
	n.ran = append(n.ran, strings.Join(c.Argv, " "))
	does := n.programs[c.Argv[0]]
	n.mu.Unlock()
	if does == nil {
		return nil, &host.RunError{Argv: c.Argv, Cause: errors.New("executable file not found in $PATH")}
	}
	return does(c)
}

func (n *Node) systemctl(c host.Command) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	unit := c.Argv[len(c.Argv)-1]
	switch c.Argv[1] {
	case "start", "restart":
		n.units[unit] = "active"
	case "stop":
		n.units[unit] = "inactive"
	case "is-active":
		if n.units[unit] == "active" {
			return []byte("active\n"), nil
		}
		state := n.units[unit]
		if state == "" {
			state = "inactive"
		}
		return []byte(state + "\n"), &host.RunError{Argv: c.Argv, Cause: errors.New("exit status 3")}
	case "kill": // and systemd starts it again
	case "daemon-reload", "reboot", "poweroff":
	default:
		return nil, &host.RunError{Argv: c.Argv, Cause: fmt.Errorf("unknown verb %s", c.Argv[1])}
	}
	return nil, nil
}
