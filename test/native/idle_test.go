//go:build root

package native

import (
	"fmt"
	"strings"
	"time"
)

// What an agent that has nothing to do may use.
const (
	idleTime  = time.Minute
	idleBytes = 50 << 20
	// idleCore is of one processor's time.
	idleCore = 0.005
)

// usage is what an agent has used since it was started.
type usage struct {
	pid int
	// own is processor time, started that of programs that it started and that have ended.
	own, started time.Duration
	// resident and peak are bytes.
	resident, peak int
}

func (r *rack) usage(m *machine) usage {
	r.t.Helper()
	out, err := m.on("sh", "-ec", "p=$(pidof bootstrapd); cat /proc/$p/stat; grep -E '^(VmRSS|VmHWM):' /proc/$p/status")
	if err != nil {
		r.t.Fatal(err)
	}
	stat, status, _ := strings.Cut(out, "\n")
	var u usage
	// proc(5): what follows the name in brackets begins with field 3; 14 to 17 are utime,
	// stime, cutime and cstime in hundredths of a second (USER_HZ).
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	var t [4]int
	if _, err := fmt.Sscan(strings.Join(append([]string{strings.Fields(stat)[0]}, f[11:15]...), " "), &u.pid, &t[0], &t[1], &t[2], &t[3]); err != nil {
		r.t.Fatalf("reading %q: %v", stat, err)
	}
	const tick = time.Second / 100
	u.own, u.started = time.Duration(t[0]+t[1])*tick, time.Duration(t[2]+t[3])*tick
	if _, err := fmt.Sscanf(strings.Join(strings.Fields(status), " "), "VmHWM: %d kB VmRSS: %d kB", &u.peak, &u.resident); err != nil {
		r.t.Fatalf("reading %q: %v", status, err)
	}
	u.peak, u.resident = u.peak<<10, u.resident<<10
	return u
}

// joined prints what the agents used from their system's start to a Ready node. The programs
// that they started are kubeadm first of all, and this rung's systemctl, which is slower than
// the real one.
func (r *rack) joined() {
	r.t.Helper()
	for name, m := range r.nodes {
		u := r.usage(m)
		r.t.Logf("%s: bootstrapd used %.2f s of processor time until all nodes were Ready, what it started %.2f s", name, u.own.Seconds(), u.started.Seconds())
	}
}

// idle measures agents on nodes that are as they should be.
func (r *rack) idle() {
	r.t.Helper()
	before := map[string]usage{}
	began := time.Now()
	for name, m := range r.nodes {
		before[name] = r.usage(m)
	}
	// The time is what is measured.
	time.Sleep(idleTime - time.Since(began) + time.Second)
	for name, m := range r.nodes {
		u, took := r.usage(m), time.Since(began)
		if u.pid != before[name].pid {
			r.t.Errorf("%s: bootstrapd was started anew while it should have idled", name)
			continue
		}
		core := (u.own - before[name].own).Seconds() / took.Seconds()
		started := (u.started - before[name].started).Seconds() / took.Seconds()
		r.t.Logf("%s: idle for %.0f s bootstrapd has %.1f MiB resident (peak %.1f) and uses %.2f %% of a core, what it starts %.2f %%",
			name, took.Seconds(), float64(u.resident)/(1<<20), float64(u.peak)/(1<<20), 100*core, 100*started)
		if u.resident > idleBytes || core > idleCore {
			r.t.Errorf("%s: bootstrapd has %d bytes resident and uses %.4f of a core while idle; the limits are %d and %v", name, u.resident, core, idleBytes, idleCore)
		}
	}
}
