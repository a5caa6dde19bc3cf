//go:build root

package native

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// retime changes the times of etcd in cluster.yaml under a cluster that runs: the server is started
// anew with it, as an operator does. Each member is started anew once, never while another one is
// not well, and what etcd says at its start has the new times. A server with the same times again
// starts nothing.
func (r *rack) retime(host *probe, w *writer, want serverapi.Etcd) {
	r.t.Helper()
	var names []string
	before, logs := map[string]int{}, map[string]int{}
	for name, m := range r.nodes {
		names = append(names, name)
		pids := m.programs(r.t, "etcd")
		if len(pids) != 1 {
			r.t.Fatalf("etcd's processes on %s: %v", name, pids)
		}
		before[name], logs[name] = pids[0], len(r.etcdLog(name))
	}
	slices.Sort(names)
	again := func() {
		r.stop()
		r.conf.Etcd = want
		r.up()
	}
	acked := w.count()
	w.since(acked)
	began := time.Now()
	again()
	said := map[string]bool{}
	r.wait(10*time.Minute, "all members to run with other times", func() (bool, string) {
		if resp, err := r.op.Status(r.t.Context(), connect.NewRequest(&api.StatusRequest{})); err == nil {
			for _, name := range names {
				if strings.Contains(resp.Msg.GetEtcd().GetSummary(), name+" starts its member anew with other times, one at a time") {
					said[name] = true
				}
			}
		}
		var now, away []string
		for _, name := range names {
			switch pids := r.nodes[name].programs(r.t, "etcd"); {
			case len(pids) != 1:
				away = append(away, name)
			case pids[0] != before[name]:
				now = append(now, name)
			}
		}
		if len(away) > 1 {
			r.t.Errorf("%v are started anew at once", away)
		}
		if len(now) < len(names) {
			return false, fmt.Sprintf("started anew: %v", now)
		}
		for _, m := range r.memberList() {
			if !m.Follows {
				return false, m.Name + " does not follow a leader"
			}
		}
		return true, fmt.Sprintf("started anew: %v", now)
	})
	w.more(20)
	took := time.Since(began)
	n, gap := w.since(acked)
	starts := func() (out []string) {
		for _, name := range names {
			started, with := 0, 0
			for line := range strings.Lines(r.etcdLog(name)[logs[name]:]) {
				if strings.Contains(line, `"starting an etcd server"`) {
					started++
					if strings.Contains(line, fmt.Sprintf(`"heartbeat-interval":"%s","election-timeout":"%s"`, want.Heartbeat, want.Election)) {
						with++
					}
				}
			}
			out = append(out, fmt.Sprintf("%s %d, %d with the new times", name, started, with))
		}
		return out
	}
	var each []string
	for _, name := range names {
		each = append(each, name+" 1, 1 with the new times")
		b, err := os.ReadFile(r.nodes[name].path(etcd.ConfigPath))
		if err != nil {
			r.t.Fatal(err)
		}
		if have, err := etcd.ReadTiming(b); err != nil || have != etcd.Timing(want) {
			r.t.Errorf("the file of %s has %v: %v", name, have, err)
		}
	}
	if have := starts(); !slices.Equal(have, each) {
		r.t.Errorf("etcd was started: %v, want %v", have, each)
	}
	host.meets(r.t, "longest time without an acknowledged write while members were started anew, of three elections", gap, 3*want.Election, began)
	if len(said) == 0 {
		r.t.Error("status did not say that a member is started anew")
	}
	r.t.Logf("three members run with %s after %.1f s: %d writes acknowledged meanwhile, %.2f s at most between two; status named %d of them", etcd.Timing(want), took.Seconds(), n, gap.Seconds(), len(said))

	again()
	r.ready(5*time.Minute, func(map[string]*api.MachineView) {})
	w.more(50)
	if have := starts(); !slices.Equal(have, each) {
		r.t.Errorf("after a server with the same times etcd was started: %v", have)
	}
}

// etcdLog is what etcd has said on a machine, over all its starts.
func (r *rack) etcdLog(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.nodes[name].Dir, "etcd.service.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}
