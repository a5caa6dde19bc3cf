package funnel

import (
	"bytes"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/imagectl/imagectl/pxe/boot"
)

// maxUnlisted bounds the memory of machines that cluster.yaml does not name; who
// was silent longest is forgotten.
const maxUnlisted = 256

// Funnel keeps the newest boot of each machine. It is safe for concurrent use.
type Funnel struct {
	mu sync.Mutex
	// listed has an entry for every machine of cluster.yaml from the start.
	listed   map[string]Boot
	unlisted map[card]Boot
}

type card [6]byte

// New follows the machines with these names, and a bounded number of others.
func New(names []string) *Funnel {
	f := &Funnel{listed: map[string]Boot{}, unlisted: map[card]Boot{}}
	for _, n := range names {
		f.listed[n] = Boot{}
	}
	return f
}

// Record takes an event and returns what it changed, and whether the machine is
// one of cluster.yaml. Events of a machine without name and Ethernet address are
// dropped.
func (f *Funnel) Record(e boot.Event) (s Step, listed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, listed := f.listed[e.Name]
	switch {
	case listed:
		f.listed[e.Name], s = b.Next(e)
	case len(e.Machine.MAC) != 6:
		return Step{}, false
	default:
		key := card(e.Machine.MAC)
		if _, ok := f.unlisted[key]; !ok && len(f.unlisted) >= maxUnlisted {
			f.forget()
		}
		f.unlisted[key], s = f.unlisted[key].Next(e)
	}
	return s, listed
}

// forget drops the unlisted machine that was silent longest.
func (f *Funnel) forget() {
	var oldest card
	first := true
	for key, b := range f.unlisted {
		if first || b.Seen.Before(f.unlisted[oldest].Seen) {
			oldest, first = key, false
		}
	}
	delete(f.unlisted, oldest)
}

// Follows says whether there is a boot of an unlisted machine with this card.
func (f *Funnel) Follows(mac net.HardwareAddr) bool {
	if len(mac) != 6 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.unlisted[card(mac)]
	return ok
}

// Machine is one machine with its boot.
type Machine struct {
	// Name is empty for a machine that cluster.yaml does not name; then MAC is set.
	Name string
	MAC  net.HardwareAddr
	Boot Boot
}

// Machines returns all: those of cluster.yaml by name, then the others by address.
func (f *Funnel) Machines() []Machine {
	f.mu.Lock()
	out := make([]Machine, 0, len(f.listed)+len(f.unlisted))
	for name, b := range f.listed {
		out = append(out, Machine{Name: name, Boot: b})
	}
	for key, b := range f.unlisted {
		out = append(out, Machine{MAC: net.HardwareAddr(key[:]), Boot: b})
	}
	f.mu.Unlock()
	slices.SortFunc(out, func(a, b Machine) int {
		if (a.Name == "") != (b.Name == "") {
			return strings.Compare(b.Name, a.Name)
		}
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return bytes.Compare(a.MAC, b.MAC)
	})
	return out
}
