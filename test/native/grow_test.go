//go:build root

package native

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// A cluster of one control plane grows to three and to five, two at once each time, as
// an operator lets it grow: machines are added to cluster.yaml and the server is started
// anew. Then it shrinks to one. Others write to etcd and ask the API from its first
// member on: every acknowledged write is there in the end, and a quorum was there all
// the time.
func TestHAGrowsToFiveAndBack(t *testing.T) {
	var declared []serverapi.Machine
	r := darkRack(t, func(c *serverapi.Config) {
		declared = c.Machines
		c.Machines = declared[:1]
	}, "cp1", "cp2", "cp3", "cp4", "cp5")
	all := r.nodes
	r.nodes = map[string]*machine{}
	w := &watch{rack: r}
	var writes *writer
	var asked *asker
	on := 0
	host, start := newProbe(t), time.Now()
	for _, n := range []int{1, 3, 5} {
		if n > 1 {
			r.stop()
			r.conf.Machines = declared[:n]
			r.up()
		}
		began, added := time.Now(), declared[on:n]
		for _, m := range added {
			on++
			r.nodes[m.Name] = all[m.Name]
			r.power(m.Name, on)
		}
		for _, m := range added {
			r.admit(m.Name)
		}
		r.ready(40*time.Minute, func(map[string]*api.MachineView) { w.look() })
		r.voters(n)
		r.threeAPIServers()
		t.Logf("%d control planes, all Ready %.0f s after power-on of the new ones", n, time.Since(began).Seconds())
		if writes == nil {
			writes, asked = r.write(), r.ask("cp1")
		}
		writes.more(50)
	}
	_, gap := writes.since(0)
	host.meets(t, "longest time without an acknowledged write while four members joined", gap, joinGap, start)

	for i, name := range []string{"cp5", "cp4"} {
		began := time.Now()
		resp, err := r.op.RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{name}}}))
		if err != nil {
			t.Fatal(err)
		}
		if o := resp.Msg.GetOutcomes()[0]; o.GetReasonCode() != "done" {
			t.Fatalf("retiring %s: %s, %s", name, o.GetReasonCode(), o.GetMessage())
		}
		left := 4 - i
		r.nodeGone(name, began, 1)
		r.voters(left)
		writes.more(20)
		r.wait(5*time.Minute, "the server to hear of it", func() (bool, string) {
			resp, err := r.op.Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
			if err != nil {
				return false, err.Error()
			}
			return strings.HasPrefix(resp.Msg.GetEtcd().GetSummary(), fmt.Sprintf("%d of %d voters", left, left)), resp.Msg.GetEtcd().GetSummary()
		})
	}
	r.shrink(writes, 1)
	asked.stop()
	writes.stop()
	writes.verify()
	t.Logf("longest time without an answer of the API through cp1's balancer: %.1f s", asked.worst.Seconds())
}

// joinGap is for how long etcd may take no write while members join: no quorum is lost by it,
// but a leader that two cores keep from its heartbeats gives way to another.
const joinGap = 15 * time.Second
