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

// Funnel keeps the newest boot of each machine, and how often each came to which stage.
// It is safe for concurrent use.
type Funnel struct {
	mu sync.Mutex
	// listed has an entry for every machine of cluster.yaml from the start.
	listed   map[string]*followed
	unlisted map[card]Boot
	// strangers is how often all others came to each stage, the forgotten ones too.
	strangers Counts
}

// Counts is how often stages were reached, in the order of boot.Stages.
type Counts [7]uint64

// followed is a machine of cluster.yaml. There may be very many, and each of them in one
// piece costs the garbage collector little.
type followed struct {
	boot    Boot
	reached Counts
}

type card [6]byte

// New follows the machines with these names, and a bounded number of others.
func New(names []string) *Funnel {
	f := &Funnel{listed: make(map[string]*followed, len(names)), unlisted: map[card]Boot{}}
	all := make([]followed, len(names))
	for i, n := range names {
		f.listed[n] = &all[i]
	}
	return f
}

// Record takes an event and returns what it changed. Events of a machine without name
// and Ethernet address are dropped.
func (f *Funnel) Record(e boot.Event) (s Step) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, listed := f.listed[e.Name]
	reached := &f.strangers
	switch {
	case listed:
		m.boot, s = m.boot.Next(e)
		reached = &m.reached
	case len(e.Machine.MAC) != 6:
		return Step{}
	default:
		key := card(e.Machine.MAC)
		if _, ok := f.unlisted[key]; !ok && len(f.unlisted) >= maxUnlisted {
			f.forget()
		}
		f.unlisted[key], s = f.unlisted[key].Next(e)
	}
	if s.To != "" {
		reached[order(s.To)]++
	}
	return s
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
	// Reached counts all boots of a machine that cluster.yaml names.
	Reached Counts
}

// Strangers is how often the machines that cluster.yaml does not name reached each stage.
func (f *Funnel) Strangers() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.strangers
}

// Machines returns all: those of cluster.yaml by name, then the others by address.
func (f *Funnel) Machines() []Machine {
	f.mu.Lock()
	out := make([]Machine, 0, len(f.listed)+len(f.unlisted))
	for name, m := range f.listed {
		out = append(out, Machine{Name: name, Boot: m.boot, Reached: m.reached})
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
