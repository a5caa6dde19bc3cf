package syslog

import (
	"slices"
	"sync"
)

const (
	// tailLines is how much of each machine is remembered.
	tailLines = 100
	// maxTails bounds the machines that cluster.yaml does not name, and maxListed the
	// others: the one that was silent longest is forgotten.
	maxTails  = 1024
	maxListed = 4 * maxTails
)

// Tails are the last lines of machines, by the MAC addresses or addresses that they were
// heard from. Machines of cluster.yaml are kept apart, since anybody can invent others. The
// zero value is ready; it is safe for concurrent use.
type Tails struct {
	mu             sync.Mutex
	listed, others tails
}

type tails map[string][]Line

// Add keeps a line of a machine, which cluster.yaml names or not.
func (t *Tails) Add(machine string, listed bool, l Line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listed == nil {
		t.listed, t.others = tails{}, tails{}
	}
	if listed {
		t.listed.add(machine, maxListed, l)
		return
	}
	t.others.add(machine, maxTails, l)
}

func (t tails) add(machine string, most int, l Line) {
	lines, known := t[machine]
	if !known && len(t) >= most {
		t.forgetOne()
	}
	if len(lines) == tailLines {
		lines = slices.Delete(lines, 0, 1)
	}
	t[machine] = append(lines, l)
}

func (t tails) forgetOne() {
	oldest := ""
	for machine, lines := range t {
		if oldest == "" || lines[len(lines)-1].At.Before(t[oldest][len(t[oldest])-1].At) {
			oldest = machine
		}
	}
	delete(t, oldest)
}

// Tail returns the last n lines of a machine that is known by any of these, oldest
// first.
func (t *Tails) Tail(n int, machine ...string) []Line {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Line
	for _, m := range machine {
		out = append(append(out, t.others[m]...), t.listed[m]...)
	}
	slices.SortStableFunc(out, func(a, b Line) int { return a.At.Compare(b.At) })
	return out[max(0, len(out)-n):]
}
