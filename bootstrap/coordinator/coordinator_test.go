package coordinator

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// reports is everything a machine can say that the decisions look at.
func reports() []*Seen {
	out := []*Seen{nil, {Installer: true}, {EtcdEmpty: true}, {EtcdEmpty: true, Joined: true}}
	for bits := range 8 {
		out = append(out, &Seen{
			EtcdHealthy: bits&1 != 0, EtcdMember: bits&1 != 0,
			Joined: bits&2 != 0, APIServerReady: bits&4 != 0,
		})
	}
	out = append(out, &Seen{EtcdHealthy: true, EtcdMembers: []string{"a"}}, &Seen{EtcdHealthy: true, EtcdMembers: []string{"b", "a"}})
	return out
}

// choices is every value that Choices can take for control planes a and b: none,
// one or both of them are voters, and one of them may be joining.
func choices() []Choices {
	out := []Choices{{}}
	for _, first := range []string{"a", "b"} {
		out = append(out, Choices{EtcdFirst: first})
		for _, voters := range [][]string{nil, {first}, {"a", "b"}} {
			for _, joining := range []string{"", "a", "b"} {
				c := Choices{EtcdFirst: first, EtcdFormed: true, KubernetesFirst: first, EtcdVoters: voters, EtcdJoining: joining}
				out = append(out, c)
				c.KubernetesFormed = true
				out = append(out, c)
				c.APIServers = []string{"a", "b"}
				out = append(out, c)
			}
			for _, leaving := range []string{"a", "b"} {
				c := Choices{EtcdFirst: first, EtcdFormed: true, KubernetesFirst: first, KubernetesFormed: true, EtcdVoters: voters, EtcdLeaving: leaving}
				out = append(out, c)
				c.EtcdRemover = map[string]string{"a": "b", "b": "a"}[leaving]
				out = append(out, c)
			}
		}
	}
	return out
}

// check asserts what must hold in every situation.
func check(t *testing.T, nodes []Node, before Choices) {
	t.Helper()
	c := Choose(nodes, before)
	if again := Choose(nodes, c); !again.Equal(c) {
		t.Fatalf("%+v %+v: choosing again changes %+v to %+v", nodes, before, c, again)
	}
	switch {
	case before.EtcdFirst != "" && c.EtcdFirst != before.EtcdFirst && (before.EtcdFormed || !retired(nodes, before.EtcdFirst)),
		before.KubernetesFirst != "" && c.KubernetesFirst != before.KubernetesFirst && (before.KubernetesFormed || !retired(nodes, before.KubernetesFirst)),
		before.EtcdFormed && !c.EtcdFormed,
		before.KubernetesFormed && !c.KubernetesFormed,
		!contains(c.APIServers, before.APIServers),
		!slices.IsSorted(c.EtcdVoters), !slices.IsSorted(c.APIServers):
		t.Fatalf("%+v: a choice changed from %+v to %+v", nodes, before, c)
	}
	checkJoining(t, nodes, before, c)
	checkLeaving(t, nodes, before, c)
	checkRenewing(t, nodes, before, c)
	bootstraps, inits, joins, removals, applies := 0, 0, 0, 0, 0
	for _, n := range nodes {
		d := Direct(nodes, c, n.Name)
		bad := func(what string) { t.Fatalf("%+v %+v: %s gets %+v: %s", nodes, c, n.Name, d, what) }
		if d.Etcd == EtcdBootstrap {
			bootstraps++
			if before.EtcdFormed {
				bad("etcd starts a second time")
			}
		}
		if d.Etcd == EtcdJoin {
			if joins++; c.EtcdJoining != n.Name || n.Seen.EtcdHealthy {
				bad("it joins etcd out of turn")
			}
		}
		if d.EtcdRemove != "" {
			if removals++; d.EtcdRemove == n.Name || n.Name != c.EtcdRemover || d.EtcdRemove != c.EtcdLeaving {
				bad("it removes a member out of turn")
			}
		}
		if d.First {
			if applies++; !n.ControlPlane && n.Name != c.KubernetesFirst || !working(n.State) && slices.ContainsFunc(nodes, func(o Node) bool {
				return o.ControlPlane && working(o.State) && slices.Contains(c.APIServers, o.Name)
			}) {
				bad("it is to apply the add-ons, and another one could")
			}
		}
		if d.Renew && (n.Name != c.Renewing || !n.ControlPlane || d.Kubernetes != KubernetesRun) {
			bad("it renews what kubeadm made out of turn")
		}
		if d.Etcd == EtcdRun && (n.Seen.EtcdEmpty || !slices.Contains(c.EtcdVoters, n.Name)) {
			bad("it runs a member that it has not")
		}
		if d.Kubernetes == KubernetesJoinControlPlane && (!n.ControlPlane || !c.KubernetesFormed || !slices.Contains(c.EtcdVoters, n.Name) || c.EtcdJoining == n.Name) {
			bad("a control plane joins at the wrong time")
		}
		if d.Kubernetes == KubernetesInit {
			inits++
			if before.KubernetesFormed || !c.EtcdFormed {
				bad("kubeadm init at the wrong time")
			}
		}
		if d.Kubernetes == KubernetesJoinWorker && (n.ControlPlane || !c.KubernetesFormed) {
			bad("a join at the wrong time")
		}
		// What was begun is not called back by a hiccup of the others.
		calm := make([]Node, len(nodes))
		for i := range nodes {
			calm[i] = nodes[i]
			if nodes[i].Name != n.Name {
				calm[i].Seen = nil
			}
		}
		alone, told := Direct(calm, c, n.Name), d
		alone.EtcdReason, told.EtcdReason = "", "" // it counts who is healthy
		if alone != told {
			bad("another machine's silence changes it to " + fmt.Sprint(alone))
		}
		if d.Kind == Install && (n.State != machine.Armed && n.State != machine.Installing || !n.Seen.Installer) {
			bad("a disk is wiped unasked")
		}
		if n.Seen != nil && !n.Seen.Installer && n.Seen.Joined && d.Kubernetes != KubernetesRun {
			bad("a member of the cluster is told to stop or start over")
		}
		if d.Kind == Wait && (d.Code == "" || d.Reason == "") || (d.Etcd == EtcdWait || d.Etcd == EtcdJoin) != (d.EtcdReason != "") ||
			(d.Kubernetes == KubernetesWait) != (d.KubernetesReason != "") {
			bad("a wait without reason, or a reason without wait")
		}
		if d.Etcd != "" && d.Etcd != EtcdNone && !n.ControlPlane {
			bad("etcd on a worker")
		}
	}
	if bootstraps > 1 || inits > 1 || joins+removals > 1 || applies > 1 {
		t.Fatalf("%+v %+v: %d machines start etcd, %d run init, %d join etcd, %d remove a member, %d apply the add-ons", nodes, c, bootstraps, inits, joins, removals, applies)
	}
}

func retired(nodes []Node, name string) bool {
	n := find(nodes, name)
	return n != nil && n.State == machine.Retired
}

// checkJoining asserts when the right to change etcd's membership is given.
func checkJoining(t *testing.T, nodes []Node, before, c Choices) {
	t.Helper()
	if c.EtcdJoining == "" || c.EtcdJoining == before.EtcdJoining {
		return
	}
	if old := find(nodes, before.EtcdJoining); old != nil && old.ControlPlane && working(old.State) && !old.Gone && old.Seen == nil {
		t.Fatalf("%+v %+v: %s was silent for a moment and lost its turn to %s", nodes, before, before.EtcdJoining, c.EtcdJoining)
	}
	well := 0
	for _, v := range c.EtcdVoters {
		if n := find(nodes, v); n != nil && n.Seen != nil && n.Seen.EtcdHealthy {
			well++
		}
	}
	lost := slices.Contains(c.EtcdVoters, c.EtcdJoining)
	if !lost && well < len(c.EtcdVoters) || lost && (well < quorum(len(c.EtcdVoters)) || !find(nodes, c.EtcdJoining).Seen.EtcdEmpty) {
		t.Fatalf("%+v %+v: %s may join with %d of %v healthy", nodes, c, c.EtcdJoining, well, c.EtcdVoters)
	}
}

// checkLeaving asserts who is taken off etcd's list, and when a voter counts as gone.
func checkLeaving(t *testing.T, nodes []Node, before, c Choices) {
	t.Helper()
	bad := func(what string) { t.Helper(); t.Fatalf("%+v %+v: %s: %+v", nodes, before, what, c) }
	for _, v := range before.EtcdVoters {
		if slices.Contains(c.EtcdVoters, v) {
			continue
		}
		n := find(nodes, v)
		if n == nil || n.State != machine.Retired && before.EtcdLeaving != v {
			bad(v + " is no voter any more, and nobody retired it")
		}
		for _, o := range nodes {
			if o.Name != v && sound(o, before) && slices.Contains(o.Seen.EtcdMembers, v) {
				bad(v + " is no voter any more, says the list, and " + o.Name + " has it")
			}
		}
	}
	if c.EtcdFormed && len(c.EtcdVoters) == 0 {
		bad("no voter is left")
	}
	if n := find(nodes, c.EtcdLeaving); c.EtcdLeaving != "" && (n == nil || n.State != machine.Retired && before.EtcdLeaving != c.EtcdLeaving) {
		bad("a machine leaves that nobody retired")
	}
	if (c.EtcdRemover != "") && !c.leaving() {
		bad("somebody removes nobody")
	}
	if c.EtcdRemover == "" || c.EtcdRemover == before.EtcdRemover {
		return
	}
	total, well, others := len(c.EtcdVoters), 0, 0
	for _, v := range c.EtcdVoters {
		if n := find(nodes, v); n != nil && n.Seen != nil && n.Seen.EtcdHealthy && working(n.State) {
			if well++; v != c.EtcdLeaving {
				others++
			}
		}
	}
	if c.EtcdRemover == c.EtcdLeaving || total < 2 || well < quorum(total) || others < quorum(total-1) {
		bad("a removal would cost the quorum")
	}
}

// checkRenewing asserts when a control plane's API server may start anew, and that
// nobody else's does before it is back.
func checkRenewing(t *testing.T, nodes []Node, before, c Choices) {
	t.Helper()
	bad := func(what string) { t.Helper(); t.Fatalf("%+v %+v: %s: %+v", nodes, before, what, c) }
	old := find(nodes, before.Renewing)
	if old != nil && c.Renewing != before.Renewing && old.ControlPlane && working(old.State) && !old.Gone {
		switch {
		case old.Seen == nil:
			bad(before.Renewing + " was silent for a moment and lost its turn")
		case !old.Seen.Installer && old.Seen.Joined && (old.Seen.Certificates != CertificatesGood || !old.Seen.APIServerReady):
			bad(before.Renewing + " is not back, and its turn is over")
		}
	}
	if c.Renewing == "" || c.Renewing == before.Renewing {
		return
	}
	n := find(nodes, c.Renewing)
	if n == nil || !n.ControlPlane || !working(n.State) || n.Seen == nil || !n.Seen.Joined || n.Seen.Certificates == CertificatesGood {
		bad("a machine renews that has nothing to renew")
	}
	others, ready := 0, 0
	for _, o := range nodes {
		if o.Name != n.Name && o.ControlPlane && working(o.State) && slices.Contains(c.APIServers, o.Name) {
			others++
			if o.Seen != nil && o.Seen.Joined && o.Seen.APIServerReady {
				ready++
			}
		}
	}
	if n.Seen.APIServerReady && n.Seen.Certificates == CertificatesDue && others > 0 && ready == 0 {
		bad("the only API server starts anew")
	}
}

func contains(list, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(list, n) })
}

func TestTwoMachinesInEverySituation(t *testing.T) {
	t.Parallel()
	n := 0
	few := []machine.State{machine.Approved, machine.Armed, machine.Ready}
	for i, c := range choices() {
		states := few
		if i%9 == 0 {
			states = machine.States()
		}
		for _, sa := range states {
			for _, sb := range states {
				for _, ra := range reports() {
					for _, rb := range reports() {
						for _, bControls := range []bool{false, true} {
							a, b := Node{Name: "a", ControlPlane: true, State: sa, Seen: ra}, Node{Name: "b", ControlPlane: bControls, State: sb, Seen: rb}
							check(t, []Node{a, b}, c)
							b.Gone = b.Seen == nil
							check(t, []Node{a, b}, c)
							n += 2
						}
					}
				}
			}
		}
	}
	t.Logf("%d situations", n)
}

func TestThreeMachinesInEveryReport(t *testing.T) {
	t.Parallel()
	all := choices()
	said := []*Seen{nil, {Installer: true}, {}, {EtcdEmpty: true}, {EtcdMember: true}, {EtcdHealthy: true}, {EtcdHealthy: true, Joined: true, APIServerReady: true, EtcdMembers: []string{"a", "b", "c"}}, {EtcdHealthy: true, EtcdMembers: []string{"a", "b"}}}
	for _, joining := range []string{"", "a", "b", "c"} {
		three := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b", "c"}, EtcdJoining: joining, KubernetesFirst: "a", KubernetesFormed: true, APIServers: []string{"a"}}
		for _, leaving := range []string{"a", "c"} {
			for _, remover := range []string{"", "b"} {
				leave := three
				leave.EtcdJoining, leave.EtcdLeaving, leave.EtcdRemover = "", leaving, remover
				all = append(all, leave)
			}
		}
		two := three
		two.EtcdVoters = []string{"a", "b"}
		all = append(all, two, three)
	}
	for _, c := range all {
		for _, state := range []machine.State{machine.Approved, machine.Ready} {
			for _, ra := range said {
				for _, rb := range said {
					for _, rc := range said {
						for controls := range 3 {
							check(t, []Node{
								{Name: "a", ControlPlane: true, State: state, Seen: ra}, {Name: "b", ControlPlane: controls > 0, State: state, Seen: rb},
								{Name: "c", ControlPlane: controls > 1, State: state, Seen: rc},
							}, c)
							if state == machine.Ready && controls == 2 {
								check(t, []Node{
									{Name: "a", ControlPlane: true, State: state, Seen: ra}, {Name: "b", ControlPlane: true, State: state, Seen: rb},
									{Name: "c", ControlPlane: true, State: machine.Retired, Seen: rc},
								}, c)
							}
						}
					}
				}
			}
		}
	}
}

// The main job, told as a story: one control plane, one worker.
func TestOneControlPlaneAndOneWorker(t *testing.T) {
	t.Parallel()
	var c Choices
	cp, w := Node{Name: "cp1", ControlPlane: true}, Node{Name: "w1"}
	step := func(wantCP, wantW Directive) {
		t.Helper()
		nodes := []Node{cp, w}
		c = Choose(nodes, c)
		if diff := cmp.Diff(wantCP, Direct(nodes, c, "cp1")); diff != "" {
			t.Errorf("cp1 (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(wantW, Direct(nodes, c, "w1")); diff != "" {
			t.Errorf("w1 (-want +got):\n%s", diff)
		}
	}
	cp.State, w.State = machine.Approved, machine.Armed
	cp.Seen, w.Seen = &Seen{Installer: true}, &Seen{Installer: true}
	step(Directive{Kind: Wait, Code: "not-armed", Reason: "cp1 is approved; to install it: imagectl machines arm cp1"},
		Directive{Kind: Install})

	cp.State, w.State = machine.Enrolled, machine.Enrolled
	cp.Seen, w.Seen = &Seen{}, &Seen{}
	step(Directive{Kind: Run, Etcd: EtcdBootstrap, Kubernetes: KubernetesWait, KubernetesReason: "etcd is not healthy yet"},
		Directive{Kind: Run, Etcd: EtcdNone, Kubernetes: KubernetesWait, KubernetesReason: "no control plane has started yet"})

	cp.Seen = &Seen{EtcdHealthy: true}
	step(Directive{Kind: Run, Etcd: EtcdRun, Kubernetes: KubernetesInit, First: true},
		Directive{Kind: Run, Etcd: EtcdNone, Kubernetes: KubernetesWait, KubernetesReason: "cp1 has not finished kubeadm init"})

	cp.Seen = &Seen{EtcdHealthy: true, Joined: true, APIServerReady: true}
	step(Directive{Kind: Run, Etcd: EtcdRun, Kubernetes: KubernetesRun, First: true},
		Directive{Kind: Run, Etcd: EtcdNone, Kubernetes: KubernetesJoinWorker})

	// The API server hiccups: the join goes on.
	cp.Seen, w.Seen = &Seen{EtcdHealthy: true, Joined: true}, &Seen{}
	step(Directive{Kind: Run, Etcd: EtcdRun, Kubernetes: KubernetesRun, First: true},
		Directive{Kind: Run, Etcd: EtcdNone, Kubernetes: KubernetesJoinWorker})

	cp.Seen, w.Seen = &Seen{}, &Seen{Joined: true}
	step(Directive{Kind: Run, Etcd: EtcdRun, First: true, Kubernetes: KubernetesWait,
		KubernetesReason: "cp1 ran kubeadm init before and has lost what it made; init never runs twice"},
		Directive{Kind: Run, Etcd: EtcdNone, Kubernetes: KubernetesRun})
}

func TestSummary(t *testing.T) {
	t.Parallel()
	formed := Choices{EtcdFirst: "a", EtcdFormed: true, KubernetesFirst: "a", KubernetesFormed: true}
	joining := formed
	joining.EtcdVoters, joining.EtcdJoining = []string{"a"}, "b"
	for _, c := range []struct {
		nodes   []Node
		choices Choices
		ready   bool
		want    string
	}{
		{nil, Choices{}, false, "cluster.yaml lists no machines"},
		{[]Node{{Name: "a", State: machine.Approved}, {Name: "b", State: machine.Ready}}, Choices{}, false, "to be armed: a; imagectl machines arm"},
		{[]Node{{Name: "a", State: machine.Enrolled}}, Choices{EtcdFirst: "a"}, false, "waiting for etcd to form on a"},
		{[]Node{{Name: "a", State: machine.Ready}, {Name: "b", State: machine.Enrolled}}, joining, false, "b joins etcd, which has 1 voters: a"},
		{[]Node{{Name: "a", State: machine.Ready}, {Name: "b", State: machine.Enrolled}}, formed, false, "waiting for b to become Ready"},
		{[]Node{{Name: "a", State: machine.Ready}}, formed, false, "every node is Ready; the add-ons are not applied yet"},
		{[]Node{{Name: "a", State: machine.Ready, Seen: &Seen{AddonsApplied: true}}}, formed, true, "all 1 nodes are Ready"},
	} {
		ready, got := Summary(c.nodes, c.choices)
		if ready != c.ready || got != c.want {
			t.Errorf("got %v, %q; want %v, %q", ready, got, c.ready, c.want)
		}
	}
}
