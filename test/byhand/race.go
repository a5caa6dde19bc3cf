package byhand

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Event is what each machine comes to, in this order.
type Event string

const (
	Up       Event = "its system is up"
	Imported Event = "container images are imported"
	Joined   Event = "kubeadm is done"
	Ready    Event = "Ready"
)

// Machine is one of a cluster's.
type Machine struct {
	Name, Address string
	Worker        bool
}

// Race is one cluster on its way, from the first start of the written disks on. It is
// safe for concurrent use.
type Race struct {
	start time.Time
	log   func(format string, args ...any)
	// before is how long it took to write the disks of machines that were empty; 0 when
	// nobody asked.
	before time.Duration

	mu sync.Mutex
	at map[Event]map[string]time.Duration
}

// NewRace begins now: every disk is written, which took so long from power-on of empty machines (0:
// nobody asked), and every machine is off.
func NewRace(before time.Duration, log func(format string, args ...any)) *Race {
	return &Race{start: time.Now(), log: log, before: before, at: map[Event]map[string]time.Duration{Up: {}, Imported: {}, Joined: {}, Ready: {}}}
}

// Saw notes when a machine was first seen to have come so far.
func (r *Race) Saw(e Event, machine string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.at[e][machine]; !known {
		r.at[e][machine] = time.Since(r.start)
		r.log("%s: %s (%s after its disk was started)", machine, e, r.at[e][machine].Round(100*time.Millisecond))
	}
}

// Came says whether a machine has come so far.
func (r *Race) Came(e Event, machine string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.at[e][machine]
	return known
}

// Last is when the last machine came so far.
func (r *Race) Last(e Event) time.Duration {
	all := r.order(e, nil)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1]
}

// order lists when machines came so far, the first of them first; all machines when none
// are named.
func (r *Race) order(e Event, among []string) []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []time.Duration
	for m, at := range r.at[e] {
		if len(among) == 0 || slices.Contains(among, m) {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}

// Missing is what one machine has not come to yet; empty when all have come so far.
func (r *Race) Missing(e Event, all []Machine) string {
	for _, m := range all {
		if !r.Came(e, m.Name) {
			return fmt.Sprintf("waiting for %s: %s", m.Name, e)
		}
	}
	return ""
}

// Table compares two races; one may be nil.
func Table(machines []Machine, our, their *Race) string {
	var planes, workers, all []string
	for _, m := range machines {
		all = append(all, m.Name)
		if m.Worker {
			workers = append(workers, m.Name)
		} else {
			planes = append(planes, m.Name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| since the written disks were started, seconds | imagectl | by hand | ratio |\n|---|---|---|---|\n")
	// n counts from 1: the nth of these machines that came so far.
	row := func(what string, e Event, n int, among []string) {
		if n == 0 {
			return
		}
		we, they := seconds(our, e, n, among), seconds(their, e, n, among)
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", what, short(we), short(they), ratio(we, they))
	}
	row("every system is up", Up, len(all), all)
	row("container images are imported everywhere", Imported, len(all), all)
	row("kubeadm init is done", Joined, 1, planes)
	for n := 2; n <= len(planes); n++ {
		row(fmt.Sprintf("kubeadm join is done on control plane %d", n), Joined, n, planes)
	}
	row("kubeadm join is done on all workers", Joined, len(workers), workers)
	row(fmt.Sprintf("all %d are Ready", len(all)), Ready, len(all), all)
	if our != nil {
		fmt.Fprintf(&b, "\nimagectl, from power-on of empty machines: every disk written after %s, all Ready after %s.\n",
			our.before.Round(time.Second), (our.before + our.Last(Ready)).Round(time.Second))
	}
	return b.String()
}

// seconds is when the nth of some machines came so far; 0 for a race that was not run.
func seconds(r *Race, e Event, n int, among []string) float64 {
	if r == nil {
		return 0
	}
	all := r.order(e, among)
	if len(all) < n {
		return 0
	}
	return all[n-1].Seconds()
}

// short is a time as it is read: machines that are processes are up within a second.
func short(seconds float64) string {
	switch {
	case seconds == 0:
		return ""
	case seconds < 100:
		return fmt.Sprintf("%.1f", seconds)
	}
	return fmt.Sprintf("%.0f", seconds)
}

func ratio(our, their float64) string {
	if our == 0 || their == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", our/their)
}
