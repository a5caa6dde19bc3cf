//go:build root

package native

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// joins is how many workers join, one after the other.
const joins = 20

// Workers join a cluster of one control plane, one after the other, from power-on to
// Ready. What each stage takes comes from the server's audit log and from the agent's
// own. A worker that is Ready is switched off, so that the next one has the machine for
// itself; two are left on, to see what an agent needs that has nothing to do.
func TestBenchJoin(t *testing.T) {
	names := []string{"cp1"}
	for i := range joins {
		names = append(names, fmt.Sprintf("w%02d", i+1))
	}
	r := darkRack(t, pki.Lifetimes{}, names...)
	s := stages{}
	for i, name := range names {
		began := time.Now()
		r.power(name, i+1)
		r.admit(name)
		r.wait(15*time.Minute, name, func() (bool, string) {
			now := r.views()[name].GetState()
			return now == "ready", now
		})
		if name == "cp1" {
			t.Logf("the control plane is Ready %.1f s after power-on", time.Since(began).Seconds())
			continue
		}
		s.read(r, name, began)
		if i < len(names)-1 {
			r.nodes[name].off(t)
		}
	}
	s.print(t)
	r.idle("cp1", names[len(names)-1])
}

// stages are what parts of a join took, in the order in which they were seen first.
type stages struct {
	names []string
	took  map[string][]time.Duration
}

func (s *stages) add(name string, d time.Duration) {
	if s.took == nil {
		s.took = map[string][]time.Duration{}
	}
	if s.took[name] == nil {
		s.names = append(s.names, name)
	}
	s.took[name] = append(s.took[name], d)
}

var actingRE = regexp.MustCompile(`time=(\S+) .*msg=acting step=(\S+)`)

// read adds one machine's way from power-on to Ready.
func (s *stages) read(r *rack, name string, began time.Time) {
	r.t.Helper()
	at := map[string]time.Time{}
	note := func(what string, when time.Time) {
		if _, ok := at[what]; !ok {
			at[what] = when
		}
	}
	var tip audit.Tip
	for line, err := range r.store.AuditLines(r.t.Context()) {
		if err != nil {
			r.t.Fatal(err)
		}
		var e audit.Entry
		if e, tip, err = audit.Open(tip, line); err != nil {
			r.t.Fatal(err)
		}
		if e.Machine != name {
			continue
		}
		note(e.Action, e.Time)
		if e.Action == "machine-reported" {
			note(e.After, e.Time)
		}
	}
	last := began
	for _, stage := range []struct{ event, what string }{
		{"enrol-asked", "power-on until its key is on record"},
		{"key-approved", "the test reads the code and approves"},
		{"machine-armed", "the test arms it"},
		{"certificate-issued", "until it asks again and has its certificate"},
		{"installing", "until it begins to write the disk"},
		{"installed", "the disk is written"},
		{"enrolled", "reboot, until the installed system reports"},
	} {
		when, ok := at[stage.event]
		if !ok {
			r.t.Fatalf("the audit log has no %s of %s: %v", stage.event, name, at)
		}
		s.add(stage.what, max(when.Sub(last), 0))
		last = when
	}
	s.steps(r, name, at["ready"])
	s.add("enrolled until Ready", at["ready"].Sub(at["enrolled"]))
	s.add("POWER-ON UNTIL READY", at["ready"].Sub(began))
	s.add("the same without the operator's part", at["ready"].Sub(began)-at["machine-armed"].Sub(at["enrol-asked"]))
}

// steps adds what the installed system's agent did: each step lasts until the next one
// begins.
func (s *stages) steps(r *rack, name string, ready time.Time) {
	r.t.Helper()
	text, err := os.ReadFile(r.nodes[name].Dir + "/bootstrapd.service.log")
	if err != nil {
		r.t.Fatal(err)
	}
	type begun struct {
		name string
		at   time.Time
	}
	var all []begun
	for _, m := range actingRE.FindAllSubmatch(text, -1) {
		when, err := time.Parse(time.RFC3339Nano, string(m[1]))
		if err != nil {
			r.t.Fatal(err)
		}
		if !slices.ContainsFunc(all, func(b begun) bool { return b.name == string(m[2]) }) {
			all = append(all, begun{string(m[2]), when})
		}
	}
	for i, b := range all {
		end := ready
		if i+1 < len(all) {
			end = all[i+1].at
		}
		s.add("  from step "+b.name+" to the next", end.Sub(b.at))
	}
}

func (s *stages) print(t *testing.T) {
	t.Helper()
	for _, name := range s.names {
		all := slices.Sorted(slices.Values(s.took[name]))
		at := func(percent int) float64 { return all[min(len(all)*percent/100, len(all)-1)].Seconds() }
		t.Logf("%-48s p50 %6.2f s  p99 %6.2f s  (%d)", name, at(50), at(99), len(all))
	}
	if n := len(s.took["POWER-ON UNTIL READY"]); n < joins {
		t.Errorf("%d joins were measured, want %d", n, joins)
	}
}

// Bounds of an agent that has nothing to do.
const (
	idleFor    = time.Minute
	idleCPU    = 0.005 // of one core
	idleMemory = 50 << 10
)

// idle measures the agents of nodes where nothing happens.
func (r *rack) idle(names ...string) {
	r.t.Helper()
	type used struct{ own, children, kib int64 }
	look := func(name string) used {
		m := r.nodes[name]
		// utime, stime, cutime and cstime of proc_pid_stat(5), in hundredths of a second.
		out, err := m.on("sh", "-c", "p=$(pidof bootstrapd) && sed 's/.*) //' /proc/$p/stat && grep VmRSS /proc/$p/status")
		if err != nil {
			r.t.Fatal(err)
		}
		stat, rss, _ := strings.Cut(out, "\n")
		f := append(strings.Fields(stat), "", "", "", "", "", "", "", "", "", "", "", "", "", "", "")
		number := func(s string) int64 {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil {
				r.t.Fatalf("%s: %q: %v", name, out, err)
			}
			return n
		}
		u := used{own: number(f[11]) + number(f[12]), children: number(f[13]) + number(f[14])}
		if f := strings.Fields(rss); len(f) > 1 {
			u.kib = number(f[1])
		}
		return u
	}
	// The last step of a join begins no new ones, but its process has just worked.
	time.Sleep(5 * time.Second)
	before := map[string]used{}
	for _, name := range names {
		before[name] = look(name)
	}
	began := time.Now()
	time.Sleep(idleFor) // what is measured is a time in which nothing happens
	for _, name := range names {
		now := look(name)
		over := time.Since(began).Seconds() * 100
		own, children := float64(now.own-before[name].own)/over, float64(now.children-before[name].children)/over
		r.t.Logf("%s: idle bootstrapd has %d MiB resident and takes %.2f %% of a core, what it starts another %.2f %%", name, now.kib>>10, own*100, children*100)
		if now.kib > idleMemory || now.kib == 0 {
			r.t.Errorf("%s: bootstrapd has %d KiB resident, want at most %d", name, now.kib, idleMemory)
		}
		if own > idleCPU {
			r.t.Errorf("%s: bootstrapd takes %.2f %% of a core, want at most %.1f", name, own*100, idleCPU*100)
		}
	}
}
