package coordinator

import (
	"fmt"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// halfway is a rack whose first control plane is in the middle of something: its machines do
// everything else that they are told.
func halfway(t *testing.T, stuck func(*Seen)) *model {
	m := &model{t: t}
	for i := range 3 {
		m.nodes = append(m.nodes, Node{Name: fmt.Sprintf("cp%d", i+1), ControlPlane: true})
	}
	m.nodes = append(m.nodes, Node{Name: "w1"})
	for _, n := range m.nodes {
		m.power(n.Name, true)
	}
	for range 20 {
		m.c = Choose(m.nodes, m.c)
		for i := range m.nodes {
			m.act(&m.nodes[i])
		}
		stuck(m.node("cp1").Seen)
	}
	return m
}

// The first control plane dies in the middle of kubeadm init, is retired, and another one that has
// etcd's data runs it again; nothing else of the cluster waits for the dead one.
func TestAnotherOneRunsKubeadmInit(t *testing.T) {
	t.Parallel()
	m := halfway(t, func(s *Seen) { s.Joined, s.APIServerReady, s.NodeReady = false, false, false })
	if m.c.KubernetesFirst != "cp1" || m.c.KubernetesFormed || len(m.c.EtcdVoters) != 3 {
		t.Fatalf("%+v", m.c)
	}
	for name, want := range map[string]KubernetesAction{"cp1": KubernetesInit, "cp2": KubernetesWait, "w1": KubernetesWait} {
		if d := Direct(m.nodes, m.c, name); d.Kubernetes != want {
			t.Errorf("%s is told %s", name, d.Kubernetes)
		}
	}
	m.lose("cp1")
	if m.c.KubernetesFirst != "cp1" {
		t.Errorf("another one begins while the first may come back: %+v", m.c)
	}
	if ok, why := MayLose(m.nodes, m.c, "cp1", "retiring"); !ok {
		t.Fatal(why)
	}
	m.node("cp1").State = machine.Retired
	// Nobody that is well is there this moment: the choice stays until one is.
	calm := make([]Node, len(m.nodes))
	for i, n := range m.nodes {
		n.Seen = nil
		calm[i] = n
	}
	if c := Choose(calm, m.c); c.KubernetesFirst != "cp1" {
		t.Errorf("nobody is well, and %s is chosen", c.KubernetesFirst)
	}
	c := Choose(m.nodes, m.c)
	if d := Direct(m.nodes, c, "cp2"); c.KubernetesFirst != "cp2" || d.Kubernetes != KubernetesInit {
		t.Errorf("cp2 is told %s; %+v", d.Kubernetes, c)
	}
	if d := Direct(m.nodes, c, "cp3"); d.Kubernetes != KubernetesWait || d.KubernetesReason != "cp2 has not finished kubeadm init" {
		t.Errorf("cp3 is told %s: %s", d.Kubernetes, d.KubernetesReason)
	}
	m.run()
	if !m.c.KubernetesFormed || fmt.Sprint(m.c.APIServers) != "[cp2 cp3]" {
		t.Errorf("%+v", m.c)
	}
	for _, name := range []string{"cp2", "cp3", "w1"} {
		if n := m.node(name); n.State != machine.Ready {
			t.Errorf("%s is %s", name, n.State)
		}
	}
}

// Whoever takes over kubeadm init is a voter whose etcd is well, whose installed system calls, and that
// stays.
func TestWhoTakesOverKubeadmInit(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*model){
		"its etcd is ill":        func(m *model) { m.node("cp2").Seen.EtcdHealthy = false },
		"its installer calls":    func(m *model) { m.node("cp2").Seen.Installer = true },
		"it leaves etcd":         func(m *model) { m.c.EtcdLeaving = "cp2" },
		"it is no voter":         func(m *model) { m.c.EtcdVoters = []string{"cp1", "cp3"} },
		"it is to be wiped":      func(m *model) { m.node("cp2").State = machine.Armed },
		"it is no control plane": func(m *model) { m.node("cp2").ControlPlane = false },
	} {
		m := halfway(t, func(s *Seen) { s.Joined, s.APIServerReady, s.NodeReady = false, false, false })
		m.lose("cp1")
		m.node("cp1").State = machine.Retired
		if c := chooseKubernetesFirst(m.nodes, m.c); c.KubernetesFirst != "cp2" {
			t.Fatalf("%s is chosen of two that are well", c.KubernetesFirst)
		}
		change(m)
		if c := chooseKubernetesFirst(m.nodes, m.c); c.KubernetesFirst != "cp3" {
			t.Errorf("%s, and %s is chosen", what, c.KubernetesFirst)
		}
	}
}

// A cluster that was formed never forms again, whoever is retired.
func TestKubeadmInitNeverRunsTwice(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp1")
	m.node("cp1").State = machine.Retired
	if c := Choose(m.nodes, m.c); c.KubernetesFirst != "cp1" || c.EtcdFirst != "cp1" || !c.KubernetesFormed {
		t.Errorf("%+v", c)
	}
}

// The first control plane dies before etcd has formed, and is retired: another one starts etcd.
func TestAnotherOneStartsEtcd(t *testing.T) {
	t.Parallel()
	m := halfway(t, func(s *Seen) { *s = Seen{BootID: s.BootID, EtcdEmpty: true} })
	if m.c.EtcdFirst != "cp1" || m.c.EtcdFormed {
		t.Fatalf("%+v", m.c)
	}
	m.node("cp1").Seen, m.node("cp1").Gone = nil, true
	if c := Choose(m.nodes, m.c); c.EtcdFirst != "cp1" {
		t.Errorf("another one begins while the first may come back: %+v", c)
	}
	m.node("cp1").State = machine.Retired
	c := Choose(m.nodes, m.c)
	for name, want := range map[string]EtcdAction{"cp2": EtcdBootstrap, "cp3": EtcdWait} {
		if d := Direct(m.nodes, c, name); d.Etcd != want {
			t.Errorf("%s is told %s: %s", name, d.Etcd, d.EtcdReason)
		}
	}
	m.run()
	if !m.c.KubernetesFormed || fmt.Sprint(m.c.EtcdVoters) != "[cp2 cp3]" || m.c.KubernetesFirst != "cp2" {
		t.Errorf("%+v", m.c)
	}
}
