//go:build e2e

package byhand

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imagectl/imagectl/test/lab"
)

// event is what each machine comes to, in this order.
type event string

const (
	up       event = "its system is up"
	imported event = "container images are imported"
	joined   event = "kubeadm is done"
	ready    event = "Ready"
)

// race is one cluster on its way, from the first start of the written disks on. It is
// safe for concurrent use.
type race struct {
	start time.Time
	log   func(format string, args ...any)
	// before is how long it took to write the disks of machines that were empty; 0 when
	// nobody asked.
	before time.Duration

	mu sync.Mutex
	at map[event]map[string]time.Duration
}

func newRace(log func(format string, args ...any)) *race {
	return &race{start: time.Now(), log: log, at: map[event]map[string]time.Duration{up: {}, imported: {}, joined: {}, ready: {}}}
}

// saw notes when a machine was first seen to have come so far.
func (r *race) saw(e event, machine string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.at[e][machine]; !known {
		r.at[e][machine] = time.Since(r.start)
		r.log("%s: %s (%s after its disk was started)", machine, e, r.at[e][machine].Round(time.Second))
	}
}

// last is when the last of some machines came so far; of all when none are named.
func (r *race) last(e event, among ...string) time.Duration {
	all := r.order(e, among)
	if len(all) == 0 {
		return 0
	}
	return all[len(all)-1]
}

// order lists when machines came so far, the first of them first; all machines when none
// are named.
func (r *race) order(e event, among []string) []time.Duration {
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

// missing is what one machine has not come to yet; empty when all have come so far.
func (r *race) missing(e event, all []lab.Machine) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range all {
		if _, done := r.at[e][m.Name]; !done {
			return fmt.Sprintf("waiting for %s: %s", m.Name, e)
		}
	}
	return ""
}

// table compares two races; one may be nil.
func table(machines []lab.Machine, our, their *race) string {
	var planes, workers, all []string
	for _, m := range machines {
		all = append(all, m.Name)
		if m.Role == "worker" {
			workers = append(workers, m.Name)
		} else {
			planes = append(planes, m.Name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| since the written disks were started, seconds | imagectl | by hand | ratio |\n|---|---|---|---|\n")
	// n counts from 1: the nth of these machines that came so far.
	row := func(what string, e event, n int, among []string) {
		if n == 0 {
			return
		}
		we, they := seconds(our, e, n, among), seconds(their, e, n, among)
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", what, whole(we), whole(they), ratio(we, they))
	}
	row("every system is up", up, len(all), all)
	row("container images are imported everywhere", imported, len(all), all)
	row("kubeadm init is done", joined, 1, planes)
	for n := 2; n <= len(planes); n++ {
		row(fmt.Sprintf("kubeadm join is done on control plane %d", n), joined, n, planes)
	}
	row("kubeadm join is done on all workers", joined, len(workers), workers)
	row(fmt.Sprintf("all %d are Ready", len(all)), ready, len(all), all)
	if our != nil {
		fmt.Fprintf(&b, "\nimagectl, from power-on of empty machines: every disk written after %s, all Ready after %s.\n",
			our.before.Round(time.Second), (our.before + our.last(ready)).Round(time.Second))
	}
	return b.String()
}

// seconds is when the nth of some machines came so far; 0 for a race that was not run.
func seconds(r *race, e event, n int, among []string) float64 {
	if r == nil {
		return 0
	}
	all := r.order(e, among)
	if len(all) < n {
		return 0
	}
	return all[n-1].Seconds()
}

func whole(seconds float64) string {
	if seconds == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f", seconds)
}

func ratio(our, their float64) string {
	if our == 0 || their == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", our/their)
}
