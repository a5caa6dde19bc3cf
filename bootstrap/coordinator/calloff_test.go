package coordinator

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// callsOff calls a restore with cp1 off, and wants to be refused with a reason; empty for not.
func (m *model) callsOff(want string) {
	m.t.Helper()
	c, why := CallOff(m.nodes, m.c, "cp1")
	if why != want {
		m.t.Errorf("refused with %q, want %q", why, want)
	}
	if why != "" && !c.Equal(m.c) {
		m.t.Errorf("it is refused, and changes %+v to %+v", m.c, c)
	}
	m.c = c
}

// Until the file is where it is needed all go on as they were, and they do so when it is called off.
func TestARestoreIsCalledOff(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	before := m.picture()
	m.callsOff("no restore of etcd is under way")
	m.asks(true)
	m.run()
	if _, why := CallOff(m.nodes, m.c, "cp2"); why != "etcd is restored with cp1, not with cp2" {
		t.Errorf("another machine: %q", why)
	}
	m.callsOff("")
	m.callsOff("no restore of etcd is under way: what was asked for last is done, or was called off")
	m.run()
	m.stands("called off", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
	if got := m.picture(); got != before {
		t.Errorf("it has changed\n%s\nto\n%s", before, got)
	}
	// The file may come after that: nobody begins.
	m.node("cp1").Seen.EtcdSnapshot = file.SHA256
	m.run()
	if d := Direct(m.nodes, m.c, "cp1"); d.Etcd != EtcdRun || d.EtcdBegin {
		t.Errorf("cp1 is told %s", d.Etcd)
	}
	if d := Direct(m.nodes, m.c, "cp2"); d.Etcd != EtcdRun || d.EtcdStop {
		t.Errorf("cp2 is told %s", d.Etcd)
	}
	if why := m.replaceable("cp1"); why != "" {
		t.Errorf("cp1 may not be replaced: %s", why)
	}
}

// From the moment on that a server may tell somebody to stop, it is too late, whatever happens then.
func TestItIsTooLateToCallOff(t *testing.T) {
	t.Parallel()
	const late = "cp1 has the snapshot, and the other members were told to stop"
	for what, then := range map[string]func(*model){
		"the file is there, and no server has stored it yet": func(*model) {},
		"it was stored": func(m *model) { m.c = Choose(m.nodes, m.c) },
		"it was stored, and the machine is gone": func(m *model) {
			m.c = Choose(m.nodes, m.c)
			m.node("cp1").Seen, m.node("cp1").Gone = nil, true
		},
		"it was stored, and another file took its place": func(m *model) {
			m.c = Choose(m.nodes, m.c)
			m.node("cp2").Seen.EtcdStopped = "once"
			second := Snapshot{SHA256: strings.Repeat("b", 64), Size: 1}
			var why string
			if m.c, why = AskSnapshot(m.nodes, m.c, "cp1", []string{"cp2", "cp3"}, second, true, "twice"); why != "" {
				m.t.Fatal(why)
			}
		},
	} {
		m := newModel(t)
		m.asks(true)
		m.node("cp1").Seen.EtcdSnapshot = file.SHA256
		then(m)
		if _, why := CallOff(m.nodes, m.c, "cp1"); why != late {
			t.Errorf("%s: %q", what, why)
		}
	}
	m := newModel(t)
	m.asks(true)
	m.node("cp3").Seen.EtcdStopped = "once" // told so by an older server
	m.callsOff("cp3 has done its part already")

	m = newModel(t)
	m.asks(true)
	m.node("cp1").Seen.EtcdSnapshot = file.SHA256
	m.run()
	m.stands("it has begun anew", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
	m.callsOff("no restore of etcd is under way: what was asked for last is done, or was called off")

	m = newModel(t)
	m.lose("cp2", "cp3")
	var why string
	if m.c, why = AskAlone(m.nodes, m.c, "cp1", []string{"cp2", "cp3"}, "once"); why != "" {
		t.Fatal(why)
	}
	m.callsOff("cp1 was told to go on as etcd's only member, and may have done so")
}

// A voter that was armed because etcd was to begin anew would be wiped by the next netboot.
func TestWhoWasArmedForTheRestoreIsDisarmedFirst(t *testing.T) {
	t.Parallel()
	m := newModel(t)
	m.lose("cp1", "cp2", "cp3")
	m.asks(false)
	m.power("cp3", false) // power is back after all
	cp2 := m.node("cp2")
	cp2.State = machine.Armed
	m.callsOff("cp2 is armed, and it is one of 3 etcd voters, quorum is 2 and 0 of the others are healthy; wiping it now would stop the cluster; imagectl machines disarm cp2 comes first")
	m.power("cp1", false)
	cp2.State = machine.Ready
	m.callsOff("")
	m.power("cp2", false)
	m.run()
	m.stands("power is back", "3 of 3 voters are healthy, quorum is 2; 1 may fail", true, "all 6 nodes are Ready")
}
