package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// model is a rack of three control planes and three workers with machines that do what they are
// told at once.
type model struct {
	t     *testing.T
	nodes []Node
	c     Choices
	boots int
}

func newModel(t *testing.T) *model {
	m := &model{t: t}
	for i := range 3 {
		m.nodes = append(m.nodes, Node{Name: fmt.Sprintf("cp%d", i+1), ControlPlane: true})
	}
	for i := range 3 {
		m.nodes = append(m.nodes, Node{Name: fmt.Sprintf("w%d", i+1)})
	}
	for _, n := range m.nodes {
		m.power(n.Name, true)
	}
	m.run()
	m.stands("from nothing", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
	return m
}

func (m *model) node(name string) *Node { return find(m.nodes, name) }

// power switches a machine on; empty says that its disk is.
func (m *model) power(name string, empty bool) {
	m.boots++
	n := m.node(name)
	n.Gone, n.Former = false, empty && n.State != ""
	if empty {
		n.State = machine.Installed
		n.Seen = &Seen{EtcdEmpty: n.ControlPlane, RemovesFormer: n.ControlPlane}
	} else {
		n.Seen = &Seen{Joined: true, RemovesFormer: n.ControlPlane, EtcdMember: n.ControlPlane}
	}
	n.Seen.BootID = fmt.Sprint(m.boots)
}

// lose takes machines away without notice, for so long that the server has noticed.
func (m *model) lose(names ...string) {
	for _, name := range names {
		n := m.node(name)
		n.Seen, n.Gone = nil, true
	}
	m.run()
}

// run lets everybody do what the server says until nothing changes. etcd answers while a
// majority of its voters is there, and Kubernetes while etcd does.
func (m *model) run() {
	m.t.Helper()
	for range 100 {
		before := fmt.Sprintf("%+v %s", m.c, m.picture())
		m.c = Choose(m.nodes, m.c)
		for i := range m.nodes {
			if m.nodes[i].Seen != nil {
				m.act(&m.nodes[i])
			}
		}
		if fmt.Sprintf("%+v %s", m.c, m.picture()) == before {
			return
		}
	}
	m.t.Fatalf("they never come to rest: %s", m.picture())
}

func (m *model) picture() string {
	var out []string
	for _, n := range m.nodes {
		if n.Seen == nil {
			out = append(out, n.Name+": away")
			continue
		}
		out = append(out, fmt.Sprintf("%s: %s %+v", n.Name, n.State, *n.Seen))
	}
	return strings.Join(out, "\n")
}

// holds says whether a majority of etcd's voters is there with its data.
func (m *model) holds() bool {
	with := 0
	for _, v := range m.c.EtcdVoters {
		if n := m.node(v); n.Seen != nil && !n.Seen.EtcdEmpty {
			with++
		}
	}
	return with > 0 && with >= quorum(len(m.c.EtcdVoters))
}

func (m *model) act(n *Node) {
	d := Direct(m.nodes, m.c, n.Name)
	s := *n.Seen
	if n.ControlPlane {
		switch d.Etcd {
		case EtcdBootstrap:
			s.EtcdEmpty, s.EtcdMember, s.EtcdHealthy = false, true, true
		case EtcdJoin:
			if !m.holds() {
				m.t.Fatalf("%s is to change etcd's members without a quorum: %s", n.Name, d.EtcdReason)
			}
			s.EtcdEmpty, s.EtcdMember, s.EtcdHealthy = false, true, true
		case EtcdAlone:
			if m.c.beginsAnew() && !d.EtcdBegin {
				break
			}
			s.EtcdEmpty, s.EtcdSnapshot = false, ""
			s.EtcdMember, s.EtcdHealthy, s.Etcd.Fit = true, true, true
			s.EtcdMembers, s.EtcdAlone = []string{n.Name}, m.c.EtcdAloneID
		case EtcdRun:
			s.EtcdMember, s.EtcdHealthy = true, m.holds()
		default:
			s.EtcdHealthy = false
			if d.EtcdStop {
				s.EtcdStopped = m.c.EtcdAloneID
			}
		}
	}
	works := m.holds() || d.Etcd == EtcdBootstrap
	switch d.Kubernetes {
	case KubernetesInit, KubernetesJoinControlPlane, KubernetesJoinWorker:
		s.Joined = s.Joined || works
	}
	s.APIServerReady = n.ControlPlane && s.Joined && works
	s.AddonsApplied = s.AddonsApplied || d.First && s.APIServerReady
	s.FormerGone = nil
	if s.APIServerReady {
		s.FormerGone = Removes(m.nodes, m.c, n.Name)
	}
	s.NodeReady = s.Joined && works
	n.Seen = &s
	if n.State = machine.Enrolled; s.NodeReady {
		n.State = machine.Ready
	}
}

// stands checks what "imagectl etcd members" and "imagectl status" say.
func (m *model) stands(when, etcd string, ready bool, status string) {
	m.t.Helper()
	if got := EtcdSummary(m.nodes, m.c); got != etcd {
		m.t.Errorf("%s: etcd: %s\nwant %s", when, got, etcd)
	}
	if is, got := Summary(m.nodes, m.c); is != ready || got != status {
		m.t.Errorf("%s: status: %v %s\nwant %v %s", when, is, got, ready, status)
	}
}

// replaceable says whether a machine may be wiped or replaced now, and if not, why.
func (m *model) replaceable(name string) string {
	if ok, why := MayLose(m.nodes, m.c, name, "wiping"); !ok {
		return why
	}
	return ""
}

// Any third of the nodes, every choice of two of six: what docs/control-planes.md promises.
func TestAnyThirdOfTheNodes(t *testing.T) {
	t.Parallel()
	names := []string{"cp1", "cp2", "cp3", "w1", "w2", "w3"}
	choices, without := 0, 0
	for i := range names {
		for j := i + 1; j < len(names); j++ {
			lost := []string{names[i], names[j]}
			t.Run(strings.Join(lost, " and "), func(t *testing.T) { thirdIsLost(t, lost) })
			if choices++; strings.HasPrefix(lost[1], "cp") {
				without++
			}
		}
	}
	if choices != 15 || without != 3 {
		t.Errorf("%d choices, %d without a quorum; want 15 and 3", choices, without)
	}
}

func thirdIsLost(t *testing.T, lost []string) {
	t.Helper()
	m := newModel(t)
	told := map[string]Directive{}
	for _, n := range m.nodes {
		told[n.Name] = Direct(m.nodes, m.c, n.Name)
	}
	chosen := m.c
	m.lose(lost...)
	var cps []string
	for _, name := range lost {
		if m.node(name).ControlPlane {
			cps = append(cps, name)
		}
	}
	// Nobody that is left is told anything else, and nothing is decided.
	for _, n := range m.nodes {
		if n.Seen == nil {
			continue
		}
		if diff := cmp.Diff(told[n.Name], Direct(m.nodes, m.c, n.Name)); diff != "" {
			t.Errorf("%s is told something else (-before +after):\n%s", n.Name, diff)
		}
	}
	if !m.c.Equal(chosen) {
		t.Errorf("choices went from %+v to %+v", chosen, m.c)
	}
	if m.holds() != (len(cps) < 2) {
		t.Errorf("without %v etcd goes on: %v", lost, m.holds())
	}
	status := fmt.Sprintf("no word from %s, %s for some time; see imagectl machines ls", lost[0], lost[1])
	switch len(cps) {
	case 0:
		m.stands("two workers are lost", "3 of 3 voters are healthy, quorum is 2; 1 may fail", false, status)
	case 1:
		m.stands("a control plane is lost", fmt.Sprintf("2 of 3 voters are healthy, quorum is 2, not healthy: %s; none may fail", cps[0]), false, status)
		for _, name := range m.c.EtcdVoters {
			want := ""
			if name != cps[0] {
				want = "it is one of 3 etcd voters, quorum is 2 and 1 of the others are healthy; wiping it now would stop the cluster"
			}
			if got := m.replaceable(name); got != want {
				t.Errorf("wiping %s: %q, want %q", name, got, want)
			}
		}
	case 2:
		left := slices.DeleteFunc([]string{"cp1", "cp2", "cp3"}, func(s string) bool { return slices.Contains(cps, s) })[0]
		m.stands("two control planes are lost", "0 of 3 voters are healthy, quorum is 2, not healthy: cp1, cp2, cp3; 2 more must come back before anything can be written", false, status)
		for _, name := range []string{left, cps[0], cps[1]} {
			if got, want := m.replaceable(name), "it is one of 3 etcd voters, quorum is 2 and 0 of the others are healthy; wiping it now would stop the cluster"; got != want {
				t.Errorf("wiping %s: %q, want %q", name, got, want)
			}
		}
		// One of them that has its disk brings all back; the other one can be replaced then.
		m.power(cps[0], false)
		m.run()
		m.stands("one is back", fmt.Sprintf("2 of 3 voters are healthy, quorum is 2, not healthy: %s; none may fail", cps[1]), false,
			fmt.Sprintf("no word from %s for some time; see imagectl machines ls", cps[1]))
		if got := m.replaceable(cps[1]); got != "" {
			t.Errorf("wiping %s: %s", cps[1], got)
		}
	}
	// Those that are away for good come back with empty disks, one command each.
	for _, name := range lost {
		if m.node(name).Seen == nil {
			m.power(name, true)
		}
	}
	m.run()
	m.stands("all are back", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
	for _, n := range m.nodes {
		if n.Seen == nil || !n.Seen.Joined || !n.Seen.NodeReady {
			t.Errorf("%s: %+v", n.Name, n)
		}
	}
}

// Two control planes that come back with nothing on their disks are not let in: etcd would have
// to change its members without a quorum.
func TestTwoOfThreeControlPlanesWithoutTheirDisks(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp1", "cp3")
	m.power("cp1", true)
	m.power("cp3", true)
	m.run()
	m.stands("both are empty", "0 of 3 voters are healthy, quorum is 2, not healthy: cp1, cp2, cp3; 2 more must come back before anything can be written", false,
		"waiting for cp1, cp2, cp3, w1, w2 and 1 more to become Ready")
	for name, want := range map[string]string{
		"cp1": "wait: cp1 was an etcd voter and has lost its data; removing it needs a quorum of 2 of 3, and 0 others are healthy",
		"cp2": "run: ",
		"cp3": "wait: cp3 was an etcd voter and has lost its data; removing it needs a quorum of 2 of 3, and 0 others are healthy",
	} {
		if d := Direct(m.nodes, m.c, name); fmt.Sprintf("%s: %s", d.Etcd, d.EtcdReason) != want {
			t.Errorf("%s is told %s: %s\nwant %s", name, d.Etcd, d.EtcdReason, want)
		}
	}
}
