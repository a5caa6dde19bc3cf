package coordinator

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

func retimed(change func(*Choices, []Node)) ([]Node, Choices) {
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2", "cp3"}}
	var nodes []Node
	for _, name := range c.EtcdVoters {
		nodes = append(nodes, Node{Name: name, ControlPlane: true, State: machine.Ready, Seen: &Seen{Joined: true, APIServerReady: true, EtcdMember: true, EtcdHealthy: true, TimingStale: true, Etcd: Keeping{Fit: true, Leader: name == "cp1"}}})
	}
	change(&c, nodes)
	return nodes, c
}

// lost: they see no leader.
func lost(nodes ...Node) {
	for _, n := range nodes {
		n.Seen.EtcdHealthy, n.Seen.APIServerReady, n.Seen.Etcd = false, false, Keeping{Leaderless: true}
	}
}

// Other times reach one member after the other, the leader last, and status says so. While nobody
// follows a leader, none is held up by the others.
func TestOtherTimesReachOneMemberAtATime(t *testing.T) {
	t.Parallel()
	const to = "to be started anew with etcd.heartbeatInterval and etcd.electionTimeout of cluster.yaml: "
	for _, x := range []struct {
		name   string
		change func(*Choices, []Node)
		want   string
		// said is what status says before and after.
		before, after string
	}{
		{"the first that does not lead", func(*Choices, []Node) {}, "cp2", to + "cp1, cp2, cp3", "cp2 starts its member anew with other times, one at a time"},
		{"the leader, when it is the only one left", func(_ *Choices, n []Node) { n[1].Seen.TimingStale, n[2].Seen.TimingStale = false, false }, "cp1", to + "cp1", "cp1 starts its member anew with other times, one at a time"},
		{"nobody, when all have them", func(_ *Choices, n []Node) {
			for i := range n {
				n[i].Seen.TimingStale = false
			}
		}, "", "", ""},
		{"nobody, while one is not well", func(_ *Choices, n []Node) { n[2].Seen.Etcd.Fit = false }, "", to + "cp1, cp2, cp3; not while it is not well: cp3", to + "cp1, cp2, cp3; not while it is not well: cp3"},
		{"nobody, while one is silent", func(_ *Choices, n []Node) { n[2].Seen = nil }, "", to + "cp1, cp2; not while it is not well: cp3", to + "cp1, cp2; not while it is not well: cp3"},
		{"nobody, while one joins", func(c *Choices, _ []Node) { c.EtcdJoining = "cp4" }, "", to + "cp1, cp2, cp3; cp4 joins etcd first", to + "cp1, cp2, cp3; cp4 joins etcd first"},
		{"nobody, while an API server starts anew", func(c *Choices, _ []Node) { c.Renewing = "cp3" }, "", to + "cp1, cp2, cp3; cp3 starts its API server anew first", to + "cp1, cp2, cp3; cp3 starts its API server anew first"},
		{"the one that has it, until it is well", func(c *Choices, n []Node) {
			c.EtcdRestarting = "cp3"
			n[2].Seen.Etcd.Fit, n[2].Seen.TimingStale = false, false
		}, "cp3", "cp3 starts its member anew, one at a time", "cp3 starts its member anew, one at a time"},
		{"the next one then", func(c *Choices, n []Node) { c.EtcdRestarting = "cp3"; n[2].Seen.TimingStale = false }, "cp2", "cp3 starts its member anew, one at a time", "cp2 starts its member anew with other times, one at a time"},
		{"for two reasons at once", func(_ *Choices, n []Node) { n[1].Seen.CAStale = true }, "cp2", to + "cp1, cp2, cp3", "cp2 starts its member anew with other CAs, one at a time"},
		{"nobody, while one sees no leader and others do", func(_ *Choices, n []Node) { lost(n[1]) }, "", to + "cp1, cp2, cp3; not while it is not well: cp2", to + "cp1, cp2, cp3; not while it is not well: cp2"},
		{"nobody waits where nobody leads", func(_ *Choices, n []Node) { lost(n...) }, "cp1", to + "cp1, cp2, cp3", "cp1 starts its member anew with other times, one at a time"},
		{"nor where one is dead", func(_ *Choices, n []Node) { lost(n[1:]...); n[0].Seen = nil }, "cp2", to + "cp2, cp3", "cp2 starts its member anew with other times, one at a time"},
		{"the one that has it, where nobody leads", func(c *Choices, n []Node) { lost(n...); c.EtcdRestarting = "cp1" }, "cp1", "cp1 starts its member anew with other times, one at a time", "cp1 starts its member anew with other times, one at a time"},
		{"the next one where nobody leads", func(c *Choices, n []Node) {
			lost(n...)
			c.EtcdRestarting, n[0].Seen.TimingStale = "cp1", false
		}, "cp2", "cp1 starts its member anew, one at a time", "cp2 starts its member anew with other times, one at a time"},
		{"other CAs wait for a leader", func(_ *Choices, n []Node) {
			lost(n...)
			for i := range n {
				n[i].Seen.TimingStale, n[i].Seen.CAStale = false, true
			}
		}, "", "", ""},
		{"it began again as a worker", func(c *Choices, n []Node) { c.EtcdRestarting, n[2].ControlPlane = "cp3", false }, "", "cp3 starts its member anew with other times, one at a time", to + "cp1, cp2, cp3; not while it is not well: cp3"},
	} {
		nodes, c := retimed(x.change)
		if got := restartSummary(nodes, c); got != x.before {
			t.Errorf("%s: status says before:\ngot  %s\nwant %s", x.name, got, x.before)
		}
		next := chooseRestarting(nodes, c)
		if next.EtcdRestarting != x.want {
			t.Errorf("%s: %q, want %q", x.name, next.EtcdRestarting, x.want)
		}
		if got := restartSummary(nodes, next); got != x.after {
			t.Errorf("%s: status says after:\ngot  %s\nwant %s", x.name, got, x.after)
		}
		if x.want == "" {
			continue
		}
		if !Direct(nodes, next, x.want).EtcdRestart {
			t.Errorf("%s: %s is not told", x.name, x.want)
		}
		nodes[2].Seen.Outdated, nodes[2].Seen.Etcd.Worth = true, true
		if got := Choose(nodes, next); got.EtcdRestarting == x.want && (got.Renewing != "" || got.EtcdTending != "" || got.EtcdJoining != "") {
			t.Errorf("%s: another right is given meanwhile: %+v", x.name, got)
		}
	}
}
