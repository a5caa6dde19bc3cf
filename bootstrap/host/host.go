// Package host is the only package of the agent that touches the node: its
// files, units, programs, devices, clock and console. Everything above it
// decides; this package does, and says exactly what failed.
//
// A Host has one directory in front of every path and one function that runs
// programs. Package hosttest replaces both, so the steps of the agent run in a
// test directory as any user.
package host

import (
	"context"
	"path/filepath"
)

// Host is the machine this process runs on. The zero value is the real one. It
// is safe for concurrent use once its fields are set.
type Host struct {
	// Root is put in front of every path, devices and /sys included. Empty on a
	// node.
	Root string
	// Exec runs a program; nil means really run it. This is the whole seam for
	// tests.
	Exec func(context.Context, Command) ([]byte, error)
}

// Path is where a path of the node lies for this process: for packages that work in one
// directory of it.
func (h *Host) Path(name string) string {
	if h.Root == "" {
		return name
	}
	return filepath.Join(h.Root, name)
}
