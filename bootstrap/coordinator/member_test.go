package coordinator

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Three control planes, told as a story: what each is told about etcd, and why.
func TestThreeControlPlanes(t *testing.T) {
	t.Parallel()
	var c Choices
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Enrolled, Seen: &Seen{}}, {Name: "cp2", ControlPlane: true, State: machine.Enrolled, Seen: &Seen{}},
		{Name: "cp3", ControlPlane: true, State: machine.Enrolled, Seen: &Seen{}},
	}
	step := func(when string, want ...string) {
		t.Helper()
		c = Choose(nodes, c)
		for i, w := range want {
			d := Direct(nodes, c, nodes[i].Name)
			got := string(d.Etcd)
			if d.EtcdReason != "" {
				got += ": " + d.EtcdReason
			}
			if got != w {
				t.Errorf("%s: %s\ngot  %s\nwant %s", when, nodes[i].Name, got, w)
			}
		}
	}
	voter, empty := &Seen{EtcdHealthy: true, EtcdMember: true}, &Seen{EtcdEmpty: true}
	step("at first", "bootstrap", "wait: cp1 starts etcd first", "wait: cp1 starts etcd first")
	nodes[0].Seen = voter
	step("cp1 is healthy", "run",
		"join: cp2 is added to etcd as a learner and gets a vote when it is in sync: quorum goes from 1 of 1 voters to 2 of 2",
		"wait: cp2 joins etcd first, one at a time")
	nodes[1].Seen = &Seen{EtcdMember: true}
	step("cp2 is a learner", "run",
		"join: cp2 is added to etcd as a learner and gets a vote when it is in sync: quorum goes from 1 of 1 voters to 2 of 2",
		"wait: cp2 joins etcd first, one at a time")
	nodes[0].Seen, nodes[1].Seen = &Seen{}, voter
	step("cp2 has its vote while cp1 is not well", "run", "run", "wait: 1 of 2 etcd voters are healthy, not cp1; cp3 is added when all are")
	nodes[0].Seen = voter
	step("cp1 is back", "run", "run",
		"join: cp3 is added to etcd as a learner and gets a vote when it is in sync: quorum goes from 2 of 2 voters to 2 of 3")
	nodes[2].Seen = voter
	step("all are voters", "run", "run", "run")
	nodes[1].Seen, nodes[2].Seen = empty, &Seen{}
	step("cp2 was wiped while cp3 is down", "run",
		"wait: cp2 was an etcd voter and has lost its data; removing it needs a quorum of 2 of 3, and 1 others are healthy", "run")
	nodes[2].Seen = voter
	step("cp3 is back", "run", "join: the lost etcd member cp2 is replaced: quorum is 2 of 3 voters, then 2 of 2, then 2 of 3 again", "run")
	nodes[1].Seen, nodes[1].Gone = nil, true
	nodes[2].Seen = empty
	step("cp2 is gone and cp3 was wiped", "run", "",
		"wait: cp3 was an etcd voter and has lost its data; removing it needs a quorum of 2 of 3, and 1 others are healthy")
	if c.EtcdJoining != "" {
		t.Errorf("%s still holds the right to join", c.EtcdJoining)
	}
}

// Three control planes become one, told as a story.
func TestThreeControlPlanesBecomeOne(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2", "cp3"}, KubernetesFirst: "cp1", KubernetesFormed: true}
	lists := func(names ...string) *Seen {
		return &Seen{EtcdHealthy: true, EtcdMember: true, EtcdMembers: names, Joined: true}
	}
	all := []string{"cp1", "cp2", "cp3"}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: lists(all...)}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: lists(all...)},
		{Name: "cp3", ControlPlane: true, State: machine.Ready, Seen: lists(all...)},
	}
	step := func(when, leaving, remover, voters, summary string) {
		t.Helper()
		c = Choose(nodes, c)
		_, said := Summary(nodes, c)
		if got := list(c.EtcdVoters); c.EtcdLeaving != leaving || c.EtcdRemover != remover || got != voters || said != summary {
			t.Errorf("%s: %q leaves, %q removes it, voters %s\n%s\nwant %q, %q, %s\n%s", when, c.EtcdLeaving, c.EtcdRemover, got, said, leaving, remover, voters, summary)
		}
	}
	const addons = "every node is Ready; the add-ons are not applied yet"
	step("at first", "", "", "cp1, cp2, cp3", addons)
	nodes[0].State, nodes[0].Seen = machine.Retired, lists(all...) // what it said a moment ago
	step("cp1 is retired", "cp1", "cp2", "cp1, cp2, cp3", "cp1 is removed from etcd: quorum goes from 2 of 3 voters to 2 of 2")
	if d := Direct(nodes, c, "cp2"); d.EtcdRemove != "cp1" || d.Etcd != EtcdRun {
		t.Errorf("cp2 is told %+v", d)
	}
	nodes[1].Seen = nil
	step("cp2 falls silent", "cp1", "", "cp1, cp2, cp3", "removing cp1 from etcd needs a quorum of 2 of 3 voters, and 1 are healthy, not cp2")
	if ok, _ := MayLose(nodes, c, "cp3", "retiring"); ok || MayLeave(nodes, c, "cp3") {
		t.Error("cp3 may be retired too")
	}
	nodes[1].Seen = lists(all...)
	step("cp2 is back", "cp1", "cp2", "cp1, cp2, cp3", "cp1 is removed from etcd: quorum goes from 2 of 3 voters to 2 of 2")
	nodes[1].Seen = lists("cp2", "cp3")
	step("cp2 has removed it, cp3 has not heard", "cp1", "cp3", "cp1, cp2, cp3", "cp1 is removed from etcd: quorum goes from 2 of 3 voters to 2 of 2")
	nodes[2].Seen = lists("cp2", "cp3")
	step("both know", "", "", "cp2, cp3", addons)

	// Of two, one cannot be lost; it leaves while it is well.
	ok, why := MayLose(nodes, c, "cp3", "retiring")
	if want := "it is one of 2 etcd voters, quorum is 2 and 1 of the others are healthy; retiring it now would stop the cluster"; ok || why != want {
		t.Errorf("got %v, %s", ok, why)
	}
	if !MayLeave(nodes, c, "cp3") {
		t.Error("cp3 may not leave")
	}
	c.EtcdLeaving = "cp3"
	step("cp3 is asked to leave", "cp3", "cp2", "cp2, cp3", "cp3 is removed from etcd: quorum goes from 2 of 2 voters to 1 of 1")
	nodes[1].Seen = lists("cp2")
	step("it has left", "cp3", "", "cp2", addons)
	nodes[2].Seen = &Seen{EtcdEmpty: true}
	step("it does not come back by itself", "cp3", "", "cp2", addons)
	if d := Direct(nodes, c, "cp3"); d.Etcd != EtcdWait || d.EtcdReason != "its etcd member is removed; imagectl machines retire cp3" {
		t.Errorf("cp3 is told %+v", d)
	}
	nodes[2].State = machine.Retired
	step("it is retired", "", "", "cp2", addons)
	if ok, _ := MayLose(nodes, c, "cp2", "retiring"); ok || MayLeave(nodes, c, "cp2") {
		t.Error("the last one may go")
	}
}

func TestMayLose(t *testing.T) {
	t.Parallel()
	one := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a"}}
	three := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b", "c"}}
	well := &Seen{EtcdHealthy: true}
	for _, tc := range []struct {
		name    string
		choices Choices
		b       Node
		of      string
		want    string
	}{
		{"no voter", one, Node{Name: "b", State: machine.Ready}, "b", ""},
		{"the only voter", one, Node{Name: "b", State: machine.Ready}, "a", "it holds the only copy of the cluster's etcd; wiping it would destroy the cluster"},
		{"one of three", three, Node{Name: "b", State: machine.Ready, Seen: well}, "a", ""},
		{"another is down", three, Node{Name: "b", State: machine.Ready, Seen: &Seen{}}, "a",
			"it is one of 3 etcd voters, quorum is 2 and 1 of the others are healthy; wiping it now would stop the cluster"},
		{"another is armed", three, Node{Name: "b", State: machine.Armed, Seen: well}, "a",
			"it is one of 3 etcd voters, quorum is 2 and 1 of the others are healthy; wiping it now would stop the cluster"},
		{"the one that is down", three, Node{Name: "b", State: machine.Ready, Seen: &Seen{}}, "b", ""},
	} {
		nodes := []Node{{Name: "a", State: machine.Ready, Seen: well}, tc.b, {Name: "c", State: machine.Ready, Seen: well}}
		ok, why := MayLose(nodes, tc.choices, tc.of, "wiping")
		if ok != (tc.want == "") || why != tc.want {
			t.Errorf("%s: got %v, %q, want %q", tc.name, ok, why, tc.want)
		}
	}
}

func TestEtcdSummary(t *testing.T) {
	t.Parallel()
	three := Choices{EtcdVoters: []string{"a", "b", "c"}}
	node := func(name string, healthy bool) Node {
		return Node{Name: name, State: machine.Ready, Seen: &Seen{EtcdHealthy: healthy}}
	}
	for _, tc := range []struct {
		nodes []Node
		c     Choices
		want  string
	}{
		{nil, Choices{}, "etcd has no members yet"},
		{[]Node{node("a", true)}, Choices{EtcdVoters: []string{"a"}}, "1 of 1 voters are healthy, quorum is 1; none may fail"},
		{[]Node{node("a", true), node("b", true), node("c", true)}, three, "3 of 3 voters are healthy, quorum is 2; 1 may fail"},
		{[]Node{node("a", true), node("b", true)}, three, "2 of 3 voters are healthy, quorum is 2, not healthy: c; none may fail"},
		{[]Node{node("a", true), node("b", false)}, three, "1 of 3 voters are healthy, quorum is 2, not healthy: b, c; 1 more must come back before anything can be written"},
	} {
		if got := EtcdSummary(tc.nodes, tc.c); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}
