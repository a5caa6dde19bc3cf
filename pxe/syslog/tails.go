package syslog

import (
	"slices"
	"sync"
)

const (
	// tailLines is how much of each machine is remembered.
	tailLines = 100
	// maxTails bounds the machines: the one that was silent longest is forgotten.
	maxTails = 1024
)

// Tails are the last lines of machines, by the MAC addresses or addresses that they were
// heard from. The zero value is ready; it is safe for concurrent use.
type Tails struct {
	mu sync.Mutex
	by map[string][]Line
}

// Add keeps a line.
func (t *Tails) Add(machine string, l Line) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string][]Line{}
	}
	lines, known := t.by[machine]
	if !known && len(t.by) >= maxTails {
		t.forgetOne()
	}
	if len(lines) == tailLines {
		lines = slices.Delete(lines, 0, 1)
	}
	t.by[machine] = append(lines, l)
}

func (t *Tails) forgetOne() {
	oldest := ""
	for machine, lines := range t.by {
		if oldest == "" || lines[len(lines)-1].At.Before(t.by[oldest][len(t.by[oldest])-1].At) {
			oldest = machine
		}
	}
	delete(t.by, oldest)
}

// Tail returns the last n lines of a machine that is known by any of these, oldest
// first.
func (t *Tails) Tail(n int, machine ...string) []Line {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Line
	for _, m := range machine {
		out = append(out, t.by[m]...)
	}
	slices.SortStableFunc(out, func(a, b Line) int { return a.At.Compare(b.At) })
	return out[max(0, len(out)-n):]
}
