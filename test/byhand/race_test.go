//go:build e2e

package byhand

import (
	"fmt"
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
	r.mu.Lock()
	defer r.mu.Unlock()
	var out time.Duration
	if len(among) == 0 {
		for _, at := range r.at[e] {
			out = max(out, at)
		}
	}
	for _, m := range among {
		out = max(out, r.at[e][m])
	}
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
	row := func(what string, e event, among []string) {
		if len(among) > 0 {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", what, seconds(our, e, among), seconds(their, e, among), ratio(our, their, e, among))
		}
	}
	row("every system is up", up, all)
	row("container images are imported everywhere", imported, all)
	row("kubeadm init is done on "+planes[0], joined, planes[:1])
	for i, name := range planes[1:] {
		row("kubeadm join is done on "+name, joined, planes[i+1:i+2])
	}
	row("kubeadm join is done on all workers", joined, workers)
	row(fmt.Sprintf("all %d are Ready", len(all)), ready, all)
	if our != nil {
		fmt.Fprintf(&b, "\nimagectl, from power-on of empty machines: every disk written after %s, all Ready after %s.\n",
			our.before.Round(time.Second), (our.before + our.last(ready)).Round(time.Second))
	}
	return b.String()
}

func seconds(r *race, e event, among []string) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%.0f", r.last(e, among...).Seconds())
}

func ratio(our, their *race, e event, among []string) string {
	if our == nil || their == nil {
		return ""
	}
	return fmt.Sprintf("%.2f", our.last(e, among...).Seconds()/their.last(e, among...).Seconds())
}
