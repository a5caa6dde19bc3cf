package coordinator

import (
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

var file = Snapshot{SHA256: strings.Repeat("a", 64), Size: 1 << 20}

// asks has etcd begin anew on cp1.
func (m *model) asks(giveUp bool) {
	m.t.Helper()
	c, why := AskSnapshot(m.nodes, m.c, "cp1", []string{"cp3", "cp2"}, file, giveUp, "once")
	if why != "" {
		m.t.Fatal(why)
	}
	m.c = c
}

func (m *model) waits(want string) {
	m.t.Helper()
	m.c = Choose(m.nodes, m.c) // as the server does before it tells anybody anything
	if got := SnapshotWaits(m.nodes, m.c); got != want {
		m.t.Errorf("it waits for %q, want %q", got, want)
	}
	if begins := Direct(m.nodes, m.c, "cp1").EtcdBegin; begins != (want == "") {
		m.t.Errorf("cp1 begins: %v, while it waits for %q", begins, want)
	}
}

// All three are well, and what they have is bad. They go on until the file is where it is needed;
// then the others stop, one begins anew, and the others join it, as voters and as nodes of Kubernetes
// that they are.
func TestEtcdBeginsAnewAlthoughAllAreWell(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.asks(true)
	m.run()
	m.waits("the snapshot is not on cp1; say imagectl etcd restore again")
	for _, name := range []string{"cp2", "cp3"} {
		if d := Direct(m.nodes, m.c, name); d.Etcd != EtcdWait || d.EtcdStop {
			t.Errorf("%s is told %s, stop %v", name, d.Etcd, d.EtcdStop)
		}
	}
	if s := EtcdSummary(m.nodes, m.c); !strings.HasSuffix(s, "; cp1 begins anew out of a snapshot: the snapshot is not on cp1; say imagectl etcd restore again") {
		t.Error(s)
	}
	m.node("cp1").Seen.EtcdSnapshot = file.SHA256
	m.waits("cp2 stops its etcd first")
	m.node("cp2").Seen.EtcdStopped = "once"
	m.waits("cp3 stops its etcd first")
	m.node("cp3").Seen.EtcdStopped = "another time"
	m.waits("cp3 stops its etcd first")
	// A server that has just begun has heard of nobody: that is no sign that they are off.
	seen := m.node("cp3").Seen
	m.node("cp3").Seen = nil
	m.waits("the server has just begun, and does not know yet whether cp3 runs")
	m.node("cp3").Seen = seen
	if d := Direct(m.nodes, m.c, "cp3"); d.Etcd != EtcdWait || !d.EtcdStop {
		t.Errorf("cp3 is told %s, stop %v", d.Etcd, d.EtcdStop)
	}
	m.run()
	m.stands("it has begun anew", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
	if m.c.EtcdAlone != "" || m.c.EtcdSnapshot != (Snapshot{}) || m.c.EtcdAloneID != "once" || !m.c.KubernetesFormed || len(m.c.APIServers) != 3 {
		t.Errorf("%+v", m.c)
	}
}

// Every control plane's disk is gone. One is armed, which otherwise is refused, gets the file, and
// runs kubeadm init again; then the others join.
func TestEtcdBeginsAnewOnAnEmptyMachine(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp1", "cp2", "cp3")
	if why := m.replaceable("cp1"); why == "" {
		t.Error("cp1 may be wiped before")
	}
	m.asks(false)
	m.waits("cp1 does not call; without its disk: imagectl machines arm cp1 --reinstall")
	for _, name := range []string{"cp1", "cp2", "cp3"} {
		if why := m.replaceable(name); why != "" {
			t.Errorf("wiping %s: %s", name, why)
		}
	}
	// Armed and at its installer it is still the one.
	n := m.node("cp1")
	n.State, n.Seen = machine.Armed, &Seen{Installer: true}
	if m.c = Choose(m.nodes, m.c); m.c.EtcdAlone != "cp1" {
		t.Fatalf("%+v", m.c)
	}
	m.waits("the installed system of cp1 does not call; it is armed")
	m.power("cp1", true)
	m.run()
	m.waits("the snapshot is not on cp1; say imagectl etcd restore again")
	if d := Direct(m.nodes, m.c, "cp1"); d.Etcd != EtcdAlone || d.Kubernetes != KubernetesWait {
		t.Errorf("cp1 is told %s and %s", d.Etcd, d.Kubernetes)
	}
	m.node("cp1").Seen.EtcdSnapshot = file.SHA256
	m.waits("")
	m.c = Choose(m.nodes, m.c)
	m.act(m.node("cp1"))
	m.c = Choose(m.nodes, m.c)
	// There is no API server that it could join.
	if d := Direct(m.nodes, m.c, "cp1"); d.Etcd != EtcdRun || d.Kubernetes != KubernetesInit {
		t.Errorf("cp1 is told %s and %s", d.Etcd, d.Kubernetes)
	}
	m.act(m.node("cp1"))
	if d := Direct(m.nodes, m.c, "cp1"); m.c.KubernetesFirst != "cp1" || d.Etcd != EtcdRun || !m.node("cp1").Seen.Joined {
		t.Errorf("cp1 is told %s and %s: %+v", d.Etcd, d.Kubernetes, m.c)
	}
	m.run()
	m.power("cp2", true)
	m.power("cp3", true)
	m.run()
	m.stands("it has begun anew", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
}

// One with an old disk that comes back later is no voter, and starts no API server before it is one.
func TestAnOldDiskComesBackAfterASnapshot(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp1", "cp2", "cp3")
	m.asks(false)
	m.power("cp1", true)
	m.node("cp1").Seen.EtcdSnapshot = file.SHA256
	// It calls while etcd has not begun: it stops first, although it was given up.
	m.power("cp2", false)
	m.waits("cp2 stops its etcd first")
	m.run()
	if got := list(m.c.EtcdVoters); got != "cp1, cp2" {
		t.Errorf("voters are %s", got)
	}
	m.power("cp3", false)
	m.node("cp3").Seen.EtcdHealthy, m.node("cp3").Seen.EtcdMembers = true, []string{"cp1", "cp2", "cp3"}
	if c := Choose(m.nodes, m.c); slices.Contains(c.EtcdVoters, "cp3") {
		t.Errorf("the old etcd is believed: %+v", c)
	}
}

func TestAskSnapshotIsRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, voter, want string
		giveUp            bool
		change            func(*model)
	}{
		{"there is no etcd yet", "cp1", "etcd has no members yet: there is no cluster that the snapshot could be of", true, func(m *model) { m.c.EtcdVoters = nil }},
		{"a worker", "w1", "it is no control plane", true, nil},
		{"retired", "cp1", "it is no control plane", true, func(m *model) { m.node("cp1").State = machine.Retired }},
		{"not all others are named", "cp1", "the other voters are cp2, cp3; name exactly these as lost", true, nil},
		{"etcd has a quorum", "cp1", "3 of 3 voters are healthy, and etcd has its quorum: all that was written since the snapshot would be lost; --give-up-data does it all the same", false, nil},
		{"one has data", "cp1", "cp3 calls and has data of etcd, which may be newer than the snapshot; --give-up-data gives it up", false, func(m *model) {
			m.lose("cp1", "cp2")
			m.node("cp3").Seen.EtcdHealthy = false
		}},
		{"one is not heard of yet", "cp1", "the server has just begun, and does not know yet whether cp3 runs; ask again in two minutes", false, func(m *model) {
			m.lose("cp1", "cp2", "cp3")
			m.node("cp3").Gone = false
		}},
		{"another one is a node", "cp1", "cp2 is a node of Kubernetes and cp1 is none: have etcd begin anew there, so that kubeadm init need not run again", true, func(m *model) { m.power("cp1", true) }},
		{"another one goes on", "cp1", "cp2 goes on as etcd's only member already", true, func(m *model) { m.c.EtcdAlone = "cp2" }},
		{"it goes on with what it has", "cp1", "cp1 goes on as etcd's only member already", true, func(m *model) { m.c.EtcdAlone = "cp1" }},
	} {
		m := newModel(t)
		if tc.change != nil {
			tc.change(m)
		}
		lost := slices.DeleteFunc([]string{"cp1", "cp2", "cp3"}, func(n string) bool { return n == tc.voter })
		if strings.HasPrefix(tc.name, "not all") {
			lost = lost[:1]
		}
		c, why := AskSnapshot(m.nodes, m.c, tc.voter, lost, file, tc.giveUp, "once")
		if why != tc.want || !c.Equal(m.c) {
			t.Errorf("%s: %q, want %q; %+v", tc.name, why, tc.want, c)
		}
	}
}

// Asked twice it is done once; another file takes the place of the first while that has not begun;
// and one that is retired holds up nobody.
func TestAskSnapshotAgain(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.asks(true)
	others := []string{"cp2", "cp3"}
	if again, why := AskSnapshot(m.nodes, m.c, "cp1", nil, file, false, "twice"); why != "" || !again.Equal(m.c) {
		t.Errorf("asked twice: %q %+v", why, again)
	}
	if _, why := AskAlone(m.nodes, m.c, "cp1", others, "twice"); why != "cp1 begins anew out of a snapshot already" {
		t.Errorf("with its data: %q", why)
	}
	second := Snapshot{SHA256: strings.Repeat("b", 64), Size: 7}
	c, why := AskSnapshot(m.nodes, m.c, "cp1", others, second, true, "twice")
	if why != "" || c.EtcdSnapshot != second || c.EtcdAloneID != "twice" || c.EtcdRestores != 2 || c.Equal(m.c) {
		t.Errorf("another file: %q %+v", why, c)
	}
	if _, why := AskSnapshot(m.nodes, m.c, "cp2", []string{"cp1", "cp3"}, file, true, "twice"); why != "cp1 goes on as etcd's only member already" {
		t.Errorf("on another machine: %q", why)
	}
	m.node("cp1").State = machine.Retired
	if c = Choose(m.nodes, m.c); c.EtcdAlone != "" || c.EtcdSnapshot != (Snapshot{}) || list(c.EtcdVoters) != "cp1, cp2, cp3" {
		t.Errorf("cp1 is retired: %+v", c)
	}
}
