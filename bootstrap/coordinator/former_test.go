package coordinator

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// A worker is installed anew, told as a story: it joins when its former node is gone.
func TestAMachineThatIsInstalledAnewJoinsWhenItsFormerNodeIsGone(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2"}}
	cp := func(gone ...Former) *Seen {
		return &Seen{EtcdHealthy: true, EtcdMember: true, Joined: true, APIServerReady: true, RemovesFormer: true, BootID: "cp", FormerGone: gone}
	}
	nodes := []Node{
		{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: cp()},
		{Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: cp()},
		{Name: "w1", State: machine.Ready, Seen: &Seen{Joined: true, BootID: "1"}},
	}
	step := func(when string, do KubernetesAction, why string, removes ...Former) {
		t.Helper()
		d := Direct(nodes, c, "w1")
		if d.Kubernetes != do || d.KubernetesReason != why {
			t.Errorf("%s: w1 is told %s (%s), want %s (%s)", when, d.Kubernetes, d.KubernetesReason, do, why)
		}
		var got []Former
		for _, n := range nodes {
			got = append(got, Removes(nodes, c, n.Name)...)
		}
		if diff := cmp.Diff(removes, got); diff != "" {
			t.Errorf("%s: -want +got\n%s", when, diff)
		}
	}
	w := &nodes[2]
	step("at work", KubernetesRun, "")
	w.State = machine.Armed
	step("armed, it still runs", KubernetesRun, "")
	w.State, w.Former, w.Seen = machine.Installing, true, &Seen{Installer: true, BootID: "2"}
	step("it is wiped", "", "", Former{Name: "w1", BootID: "2"})
	w.State, w.Seen = machine.Installed, &Seen{BootID: "3"}
	step("its new system asks", KubernetesWait, "cp1 removes the Node object of the former w1 first", Former{Name: "w1", BootID: "3"})
	nodes[0].Seen = cp(Former{Name: "w1", BootID: "2"})
	step("that is what was before", KubernetesWait, "cp1 removes the Node object of the former w1 first", Former{Name: "w1", BootID: "3"})
	nodes[0].Seen = cp()
	nodes[0].Seen.APIServerReady = false
	step("another one does it", KubernetesWait, "cp2 removes the Node object of the former w1 first", Former{Name: "w1", BootID: "3"})
	nodes[1].Seen = cp(Former{Name: "w1", BootID: "3"})
	step("it is gone", KubernetesJoinWorker, "", Former{Name: "w1", BootID: "3"})
	nodes[0].Seen, nodes[1].Seen.RemovesFormer = nil, false
	nodes[1].Seen.FormerGone = nil
	step("nobody can", KubernetesJoinWorker, "")
	nodes[1].Seen = cp()
	w.Former = false
	step("it never was a node", KubernetesJoinWorker, "")
	w.Former, w.Seen = true, &Seen{Joined: true, BootID: "3"}
	step("it has joined", KubernetesRun, "")
}

// Whoever was retired or replaced has its node removed by the first that can, whatever is in
// its place now, and nobody else's.
func TestTheNodeOfALostMachineIsRemoved(t *testing.T) {
	t.Parallel()
	c := Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1", "cp2"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1", "cp2"}}
	able := func() *Seen {
		return &Seen{EtcdHealthy: true, EtcdMember: true, Joined: true, APIServerReady: true, RemovesFormer: true, BootID: "cp"}
	}
	for _, row := range []struct {
		what    string
		w       Node
		by      []string
		removes []Former
	}{
		{"retired", Node{State: machine.Retired, Lost: "1"}, []string{"cp1"}, []Former{{Name: "w1", Was: "1"}}},
		{"retired, and its node is gone", Node{State: machine.Retired}, nil, nil},
		{"replaced", Node{State: machine.Approved, Lost: "1"}, []string{"cp1"}, []Former{{Name: "w1", Was: "1"}}},
		{"replaced, the new hardware asks", Node{State: machine.Installed, Lost: "1", Former: true, Seen: &Seen{BootID: "2"}}, []string{"cp1"}, []Former{{Name: "w1", Was: "1"}, {Name: "w1", BootID: "2"}}},
		{"replaced, the new hardware has joined", Node{State: machine.Ready, Lost: "1", Seen: &Seen{BootID: "2", Joined: true}}, []string{"cp1"}, []Former{{Name: "w1", Was: "1"}}},
	} {
		row.w.Name = "w1"
		nodes := []Node{{Name: "cp1", ControlPlane: true, State: machine.Ready, Seen: able()}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: able()}, row.w}
		var by []string
		var got []Former
		for _, n := range nodes {
			if r := Removes(nodes, c, n.Name); len(r) > 0 {
				by, got = append(by, n.Name), append(got, r...)
			}
		}
		if diff := cmp.Diff(row.removes, got); diff != "" || !slices.Equal(by, row.by) {
			t.Errorf("%s: by %v, want %v; -want +got\n%s", row.what, by, row.by, diff)
		}
	}
	// Whoever is retired removes nothing, not even its own.
	nodes := []Node{{Name: "cp1", ControlPlane: true, State: machine.Retired, Lost: "cp", Seen: able()}, {Name: "cp2", ControlPlane: true, State: machine.Ready, Seen: able()}}
	if got := Removes(nodes, c, "cp1"); got != nil {
		t.Errorf("a retired control plane removes %v", got)
	}
	if diff := cmp.Diff([]Former{{Name: "cp1", Was: "cp"}}, Removes(nodes, c, "cp2")); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// In no situation is a node removed that may be at work, or by a machine that cannot; and
// nobody waits for somebody who cannot.
func TestRemovingFormerNodesInEverySituation(t *testing.T) {
	t.Parallel()
	states := []machine.State{machine.Approved, machine.Armed, machine.Installing, machine.Installed, machine.Ready, machine.Quarantined, machine.Retired}
	n := 0
	for _, servers := range [][]string{nil, {"a"}, {"a", "b"}} {
		for bits := range 1 << 9 {
			bit := func(i int) bool { return bits&(1<<i) != 0 }
			for _, sa := range states {
				for _, sb := range states {
					c := Choices{EtcdFirst: "a", EtcdFormed: true, EtcdVoters: []string{"a", "b"}, KubernetesFirst: "a", KubernetesFormed: true, APIServers: servers}
					a := Node{Name: "a", ControlPlane: true, State: sa, Seen: &Seen{Joined: bit(0), APIServerReady: bit(1), RemovesFormer: bit(2), Installer: bit(3), BootID: "1"}}
					b := Node{Name: "b", ControlPlane: bit(4), State: sb, Former: bit(5), Seen: &Seen{Joined: bit(6), Installer: bit(7), BootID: "2"}}
					if bit(8) {
						a.Seen.FormerGone = []Former{{Name: "b", BootID: "2"}}
					}
					nodes := []Node{a, b}
					ra, rb, db := Removes(nodes, c, "a"), Removes(nodes, c, "b"), Direct(nodes, c, "b")
					able := bit(0) && bit(1) && bit(2) && !bit(3) && slices.Contains(servers, "a") && working(sa)
					dead := bit(5) && !bit(6) && (working(sb) || bit(7) && sb == machine.Installing)
					if want := able && dead; want != (len(ra) == 1) || len(rb) != 0 {
						t.Fatalf("%+v: a removes %v, b %v", nodes, ra, rb)
					}
					joins := db.Kubernetes == KubernetesJoinWorker || db.Kubernetes == KubernetesJoinControlPlane
					if joins && able && bit(5) && !bit(8) {
						t.Fatalf("%+v: b joins while Kubernetes may know it", nodes)
					}
					if waits := db.KubernetesReason == "a removes the Node object of the former b first"; waits && (!able || bit(8)) {
						t.Fatalf("%+v: b waits for nobody", nodes)
					}
					n++
				}
			}
		}
	}
	t.Logf("%d situations", n)
}
