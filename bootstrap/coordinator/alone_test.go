package coordinator

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Whichever of three voters is left, and wherever kubeadm init ran: an operator has etcd go on
// with it, and the others become voters again with empty disks.
func TestEtcdGoesOnWithTheOneThatIsLeft(t *testing.T) {
	t.Parallel()
	all := []string{"cp1", "cp2", "cp3"}
	for _, left := range all {
		m := newModel(t)
		lost := slices.DeleteFunc(slices.Clone(all), func(n string) bool { return n == left })
		m.lose(lost...)
		c, why := AskAlone(m.nodes, m.c, left, []string{lost[1], lost[0]}, "once")
		if why != "" {
			t.Fatalf("%s: %s", left, why)
		}
		m.c = c
		if d := Direct(m.nodes, m.c, left); d.Etcd != EtcdAlone {
			t.Errorf("%s is told %s", left, d.Etcd)
		}
		for _, name := range lost {
			m.power(name, true)
			if d := Direct(m.nodes, m.c, name); d.Etcd != EtcdWait || d.EtcdReason != "etcd begins anew with what "+left+" has first" {
				t.Errorf("%s is told %s: %s", name, d.Etcd, d.EtcdReason)
			}
		}
		m.run()
		m.stands(left+" was left", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
		if m.c.EtcdAlone != "" || m.c.EtcdAloneID != "once" {
			t.Errorf("%s: %+v", left, m.c)
		}
	}
}

// Two that were given up come back with their old disks, find each other and answer: they are no
// voters of the etcd that began anew.
func TestTheOldEtcdIsNotBelieved(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp2", "cp3")
	var why string
	if m.c, why = AskAlone(m.nodes, m.c, "cp1", []string{"cp2", "cp3"}, "once"); why != "" {
		t.Fatal(why)
	}
	m.run()
	if got := list(m.c.EtcdVoters); got != "cp1" {
		t.Fatalf("voters are %s", got)
	}
	// The one that is left does not answer this moment, so nobody joins.
	m.node("cp1").Seen.EtcdHealthy = false
	for _, name := range []string{"cp2", "cp3"} {
		m.power(name, false)
		n := m.node(name)
		n.Seen.EtcdHealthy, n.Seen.EtcdMembers = true, []string{"cp1", "cp2", "cp3"}
	}
	c := Choose(m.nodes, m.c)
	if got := list(c.EtcdVoters); got != "cp1" {
		t.Errorf("voters are %s", got)
	}
	if d := Direct(m.nodes, c, "cp2"); d.Etcd != EtcdWait {
		t.Errorf("cp2 is told %s", d.Etcd)
	}
	// One that its list names is a member: the server has missed that it joined.
	m.node("cp1").Seen.EtcdHealthy, m.node("cp1").Seen.EtcdMembers = true, []string{"cp1", "cp3"}
	if got := list(Choose(m.nodes, m.c).EtcdVoters); got != "cp1, cp3" {
		t.Errorf("voters are %s", got)
	}
}

func TestAskAloneIsRefused(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, voter, want string
		change            func(*model)
	}{
		{"there is no etcd yet", "cp1", "etcd has no members yet", func(m *model) { m.c.EtcdVoters = nil }},
		{"a worker", "w1", "it is no voter of etcd; they are cp1, cp2, cp3", nil},
		{"not all others are named", "cp1", "the other voters are cp2, cp3; name exactly these as lost", nil},
		{"etcd has a quorum", "cp1", "2 of 3 voters are healthy, and etcd has its quorum: replace the others one by one", func(m *model) {
			m.power("cp2", false)
			m.node("cp2").State = machine.Ready
			m.node("cp1").Seen.EtcdHealthy, m.node("cp2").Seen.EtcdHealthy = true, true
		}},
		{"another one calls", "cp1", "cp3 calls, and is not lost: its member may come back", func(m *model) { m.power("cp3", false) }},
		{"the server has just begun, and one has not called yet", "cp1", "the server has just begun, and does not know yet whether cp3 runs; ask again in two minutes", func(m *model) { m.node("cp3").Gone = false }},
		{"it does not call", "cp2", "its installed system does not call", nil},
		{"the installer calls", "cp1", "its installed system does not call", func(m *model) { m.node("cp1").Seen.Installer = true }},
		{"it is retired", "cp1", "its installed system does not call", func(m *model) { m.node("cp1").State = machine.Retired }},
		{"it has lost its data too", "cp1", "it has no data of etcd", func(m *model) { m.node("cp1").Seen.EtcdEmpty = true }},
		{"it is the only voter", "cp1", "it is etcd's only voter: nothing is lost that others had", func(m *model) { m.c.EtcdVoters = []string{"cp1"} }},
		{"another one goes on", "cp1", "cp2 goes on as etcd's only member already", func(m *model) { m.c.EtcdAlone = "cp2" }},
	} {
		m := newModel(t)
		m.lose("cp2", "cp3")
		if tc.change != nil {
			tc.change(m)
		}
		lost := slices.DeleteFunc([]string{"cp1", "cp2", "cp3"}, func(n string) bool { return n == tc.voter })
		if strings.HasPrefix(tc.name, "not all") {
			lost = lost[:1]
		}
		c, why := AskAlone(m.nodes, m.c, tc.voter, lost, "once")
		if why != tc.want || !c.Equal(m.c) {
			t.Errorf("%s: %q, want %q; %+v", tc.name, why, tc.want, c)
		}
	}
}

// What was under way ends with the etcd that it was about; one that calls with an empty disk is lost
// all the same, and it does no harm to name somebody twice.
func TestAskAloneEndsWhatWasUnderWay(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp2", "cp3")
	m.power("cp3", true)
	m.node("cp3").Seen.EtcdEmpty = true
	m.c.EtcdJoining, m.c.EtcdLeaving, m.c.EtcdRemover, m.c.EtcdTending = "cp3", "cp2", "cp1", "cp1"
	m.c.EtcdRestarting, m.c.EtcdSaving, m.c.EtcdAsked = "cp1", "cp1", []string{"cp1"}
	c, why := AskAlone(m.nodes, m.c, "cp1", []string{"cp3", "cp2", "cp3"}, "once")
	if why != "" {
		t.Fatal(why)
	}
	if c.EtcdAlone != "cp1" || c.EtcdAloneID != "once" || !c.EtcdActing {
		t.Errorf("got %+v", c)
	}
	if left := []string{c.EtcdJoining, c.EtcdLeaving, c.EtcdRemover, c.EtcdTending, c.EtcdRestarting, c.EtcdSaving}; strings.Join(left, "") != "" || len(c.EtcdAsked) > 0 {
		t.Errorf("left is %q and %q", left, c.EtcdAsked)
	}
}

// Asked twice, it is done once; and one that is retired before it has begun does not hold up
// the others.
func TestAskAloneAgain(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp2", "cp3")
	lost := []string{"cp2", "cp3"}
	c, _ := AskAlone(m.nodes, m.c, "cp1", lost, "once")
	if again, why := AskAlone(m.nodes, c, "cp1", lost, "twice"); why != "" || !again.Equal(c) {
		t.Errorf("asked twice: %q %+v", why, again)
	}
	m.node("cp1").State = machine.Retired
	if c = Choose(m.nodes, c); c.EtcdAlone != "" || fmt.Sprint(c.EtcdVoters) != "[cp1 cp2 cp3]" {
		t.Errorf("cp1 is retired: %+v", c)
	}
}
