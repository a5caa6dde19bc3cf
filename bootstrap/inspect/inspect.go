// Package inspect reads what a running system says about itself, for people who cannot log
// in to it: /proc, /sys, netlink, systemd's own socket, kubelet's log files. It starts no
// program and changes nothing.
//
// It answers with messages of the wire contract. Requests come checked and bounded
// (package nodeapi does it); what the system itself makes large, such as the number of its
// processes, is bounded here, and the answer says when something is missing. It decides
// nothing about who may ask.
package inspect

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// Bounds on what a system can make one answer hold.
const (
	processesMax   = 8192
	commandMax     = 2048 // bytes of a process's arguments
	socketsMax     = 8192
	routesMax      = 8192
	mountsMax      = 1024
	containersMax  = 4096
	descriptorsMax = 200_000 // looked at to find out who holds a socket
)

// System is a machine. The zero value is not ready; it is safe for concurrent use.
type System struct {
	// Root is put in front of every path; empty on a node. What the kernel says by system
	// calls (netlink, adjtimex, statfs) is of this machine whatever Root is.
	Root string
	// Now is the clock.
	Now func() time.Time
	// Stuck holds a place for each call that may hang in the kernel, such as statfs of a
	// network file system whose server is gone: its capacity is how many may. Nil for none,
	// and then no file system's use is looked at.
	Stuck chan struct{}
}

// New is the machine that this process runs on, under a root as host.Host has it.
func New(root string, now func() time.Time) *System {
	return &System{Root: root, Now: now, Stuck: make(chan struct{}, 16)}
}

func (s *System) path(name string) string { return s.Root + name }

func (s *System) proc() (procfs.FS, error) { return procfs.NewFS(s.path("/proc")) }

// word is a file's content without white space around it; empty when there is none.
func (s *System) word(name ...string) string {
	b, err := os.ReadFile(s.path(filepath.Join(name...)))
	if err != nil {
		return ""
	}
	return clean(strings.TrimSpace(string(b)))
}

// number is a file's content; 0 when there is none.
func (s *System) number(name ...string) uint64 {
	n, err := strconv.ParseUint(s.word(name...), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// clean makes anything fit for a string of the wire contract.
func clean(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
