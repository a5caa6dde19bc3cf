package coordinator

import (
	"fmt"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// savers are three voters that are well; cp2 leads.
func savers() ([]Node, Choices) {
	var nodes []Node
	for i := range 3 {
		nodes = append(nodes, Node{Name: name(i), ControlPlane: true, State: machine.Ready, Seen: &Seen{
			EtcdMember: true, EtcdHealthy: true, Joined: true, EtcdMembers: []string{"cp1", "cp2", "cp3"}, Etcd: Keeping{Fit: true, Leader: i == 1, Room: true},
		}})
	}
	return nodes, Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}}
}

func TestWhoseSnapshotIsTaken(t *testing.T) {
	t.Parallel()
	type world struct {
		nodes []Node
		c     Choices
		away  []string
		avoid string
	}
	for what, c := range map[string]struct {
		set       func(*world)
		want, why string
	}{
		"a follower":                       {func(w *world) {}, "cp1", ""},
		"a follower that is well":          {func(w *world) { w.nodes[0].Seen.Etcd.Fit = false }, "cp3", ""},
		"a follower that calls":            {func(w *world) { w.nodes[0].Seen = nil }, "cp3", ""},
		"another than the one that failed": {func(w *world) { w.avoid = "cp1" }, "cp3", ""},
		"the leader before the one that failed": {func(w *world) {
			w.avoid, w.nodes[2].Seen = "cp1", nil
		}, "cp2", ""},
		"the leader, for nobody else is well": {func(w *world) {
			w.nodes[0].Seen.Etcd.Fit, w.nodes[2].Seen.Etcd.Fit = false, false
		}, "cp2", ""},
		"the only voter, which failed before": {func(w *world) { w.c.EtcdVoters, w.avoid = []string{"cp2"}, "cp2" }, "cp2", ""},
		"a full etcd is saved too":            {func(w *world) { w.nodes[0].Seen.Etcd.Full = true }, "cp1", ""},
		"no cluster yet":                      {func(w *world) { w.c = Choices{} }, "", "etcd has no members yet"},
		"no quorum": {func(w *world) {
			w.nodes[0].Seen, w.nodes[2].Seen = nil, nil
		}, "", "etcd has no quorum: 1 of 3 voters are healthy, not cp1, cp3"},
		"nobody is fit": {func(w *world) {
			for i := range w.nodes {
				w.nodes[i].Seen.Etcd.Fit = false
			}
		}, "", "no voter has lately said that its member is well"},
		"one is taken":               {func(w *world) { w.c.EtcdSaving = "cp3" }, "", "one is taken of cp3"},
		"a member joins":             {func(w *world) { w.c.EtcdJoining = "cp4" }, "", "cp4 joins etcd first"},
		"a member leaves":            {func(w *world) { w.c.EtcdLeaving = "cp3" }, "", "the member of cp3 is removed first"},
		"one is defragmented":        {func(w *world) { w.c.EtcdTending = "cp3" }, "", "the database of cp3 is defragmented first"},
		"one is at it still":         {func(w *world) { w.nodes[2].Seen.Etcd.Busy = true }, "", "the database of cp3 is defragmented first"},
		"one is started anew":        {func(w *world) { w.c.EtcdRestarting = "cp3" }, "", "cp3 starts its etcd anew first"},
		"etcd begins anew":           {func(w *world) { w.c.EtcdAlone = "cp1" }, "", "etcd begins anew with cp1"},
		"one reboots by order":       {func(w *world) { w.away = []string{"w1", "cp2"} }, "", "cp2 is on its way down by order, or not back yet"},
		"a worker reboots by order":  {func(w *world) { w.away = []string{"w1"} }, "cp1", ""},
		"one is installed anew soon": {func(w *world) { w.nodes[0].State = machine.Armed }, "cp3", ""},
	} {
		w := &world{}
		w.nodes, w.c = savers()
		c.set(w)
		next, why := BeginSaving(w.nodes, w.c, w.away, w.avoid)
		if why != c.why || why == "" && next.EtcdSaving != c.want || why != "" && !next.Equal(w.c) {
			t.Errorf("%s: %q, %q; want %q, %q", what, next.EtcdSaving, why, c.want, c.why)
		}
	}
}

// While a snapshot is taken nobody joins, leaves or is defragmented, in any state of three members;
// and what waits goes on after that.
func TestOneThingIsDoneToEtcdAtATime(t *testing.T) {
	t.Parallel()
	states := []func(*Node, *Choices){
		func(*Node, *Choices) {},
		func(n *Node, _ *Choices) { n.Seen.Etcd.Worth = true },
		func(n *Node, c *Choices) { n.State = machine.Retired },
		func(n *Node, c *Choices) { n.Seen.EtcdHealthy, n.Seen.EtcdEmpty, n.Seen.Etcd.Fit = false, true, false },
		func(n *Node, c *Choices) { c.EtcdAsked = with(c.EtcdAsked, n.Name) },
		func(n *Node, c *Choices) {
			c.EtcdVoters = slices.DeleteFunc(slices.Clone(c.EtcdVoters), func(v string) bool { return v == n.Name })
			n.Seen.EtcdHealthy, n.Seen.EtcdMember, n.Seen.Etcd.Fit, n.Seen.EtcdMembers = false, false, false, nil
		},
	}
	busyWithout := 0
	for i := range len(states) * len(states) * len(states) {
		nodes, c := savers()
		for j, k := range []int{i % len(states), i / len(states) % len(states), i / len(states) / len(states)} {
			states[k](&nodes[j], &c)
		}
		free := Choose(nodes, c)
		works := free.EtcdJoining != "" || free.EtcdTending != "" || free.EtcdRemover != ""
		if works {
			busyWithout++
			if next, why := BeginSaving(nodes, free, nil, ""); why == "" {
				t.Errorf("%d: %s is saved while %+v", i, next.EtcdSaving, free)
			}
		}
		c.EtcdSaving = "cp1"
		held := Choose(nodes, c)
		if held.EtcdJoining != "" || held.EtcdTending != "" || held.EtcdRemover != "" || held.EtcdSaving != "cp1" {
			t.Errorf("%d: while cp1 is saved: %+v", i, held)
		}
		for _, n := range nodes {
			if d := Direct(nodes, held, n.Name); d.Tend || d.EtcdRemove != "" || d.Etcd == EtcdJoin {
				t.Errorf("%d: while cp1 is saved %s is told %+v", i, n.Name, d)
			}
		}
		after := Choose(nodes, EndSaving(held))
		if got := after.EtcdJoining != "" || after.EtcdTending != "" || after.EtcdRemover != ""; got != works {
			t.Errorf("%d: after it: %+v, without it: %+v", i, after, free)
		}
	}
	if busyWithout < 20 {
		t.Errorf("only %d states have something to do: the test shows nothing", busyWithout)
	}
	nodes, c := savers()
	c.EtcdSaving = "cp1"
	if s, want := EtcdSummary(nodes, c), "3 of 3 voters are healthy, quorum is 2; a snapshot of cp1 is taken; 1 may fail"; s != want {
		t.Errorf("the summary is %q", s)
	}
	if fmt.Sprint(EndSaving(c).EtcdSaving) != "" {
		t.Error("the turn does not end")
	}
}
