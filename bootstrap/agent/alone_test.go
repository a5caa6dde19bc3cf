package agent

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
)

func aloneRun(l *lab, id string) *api.Run {
	run := initRun(l)
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_ALONE, ClusterToken: "t", Alone: id}
	return run
}

// left is a voter of three whose peers are gone, and which leads itself once its file says so.
func left(l *lab) *members {
	lost := func(id uint64, name, address string) etcd.Peer {
		p := peer(id, name, address)
		p.Answers, p.Healthy = false, false
		return p
	}
	m := newMembers(l, peer(9, "cp1", "127.0.0.1"), lost(2, "cp2", "10.0.0.2"), lost(3, "cp3", "10.0.0.3"))
	l.put(wal, "9")
	l.put(etcd.ConfigPath, "initial-cluster: cp1=https://127.0.0.1:2380\n")
	l.node.SetUnit(etcd.Unit, "active")
	return m
}

func TestTheMemberThatIsLeftGoesOnAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	m := left(l)
	n, run := l.newNode(), aloneRun(l, "fire")
	out := once(n, run)
	if !slices.Contains(out.changed, "etcd-alone") || slices.Contains(out.changed, "etcd-configuration") || !out.done {
		t.Fatalf("changed %v\n%s\n%s", out.changed, states(out), l.log)
	}
	if len(m.list) != 1 || l.read(wal) != "9" {
		t.Errorf("members %+v, data of %q", m.list, l.read(wal))
	}
	if conf := l.read(etcd.ConfigPath); strings.Contains(conf, "force") || !strings.Contains(conf, "initial-cluster: cp1=https://127.0.0.1:2380\n") {
		t.Errorf("etcd would do it at each start:\n%s", conf)
	}
	if got := n.observe(t.Context(), run, out).etcd.GetAlone(); got != "fire" {
		t.Errorf("it reports %q", got)
	}
	if again := once(n, run); len(again.changed) != 0 || !again.done {
		t.Errorf("the second run changed %v: %s", again.changed, states(again))
	}
	// From now on it is a member like any, and nothing of its file changes.
	run.Etcd.Action = api.EtcdWanted_ACTION_RUN
	if out := once(n, run); slices.Contains(out.changed, "etcd-configuration") || !out.done {
		t.Errorf("as a member it changed %v: %s", out.changed, states(out))
	}
}

// A machine that has lost its data does not become an empty cluster.
func TestAMemberWithoutDataDoesNotGoOnAlone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	left(l)
	if err := l.node.Remove(etcd.DataDir); err != nil {
		t.Fatal(err)
	}
	out := once(l.newNode(), aloneRun(l, "fire"))
	if out.done || !strings.Contains(states(out), "etcd-data=pending") || l.exists(alonePath) {
		t.Errorf("it did %v: %s", out.changed, states(out))
	}
}

// Whatever the server says: nobody is given up who answers.
func TestNobodyGoesOnAloneWhileThereIsAQuorum(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	m := left(l)
	m.list[1].Answers, m.list[1].Healthy = true, true
	out := once(l.newNode(), aloneRun(l, "fire"))
	i := slices.IndexFunc(out.steps, func(s *api.StepStatus) bool { return s.GetName() == "etcd-alone" })
	if out.done || out.steps[i].GetDetail() != "etcd has a leader and 3 members, and nobody is lost" || len(m.list) != 3 || l.exists(alonePath) {
		t.Errorf("it did %v: %s", out.changed, out.steps)
	}
}

// TestGoingOnAloneKilledAnywhere kills the agent before and after each start and stop of etcd
// and each program.
func TestGoingOnAloneKilledAnywhere(t *testing.T) {
	t.Parallel()
	for at := 1; ; at++ {
		l := newLab(t)
		programs(l).ready = true
		m := left(l)
		run := aloneRun(l, "fire")
		count, killing := 0, true
		kill := func() {
			if count++; killing && count == at {
				panic(killed{})
			}
		}
		real := l.node.Exec
		l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
			kill()
			defer kill()
			return real(ctx, cmd)
		}
		if !dies(func() { once(l.newNode(), run) }) {
			if at < 10 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
		killing = false
		out := once(l.newNode(), run)
		if !out.done || len(m.list) != 1 || l.read(wal) != "9" || strings.Contains(l.read(etcd.ConfigPath), "force") {
			t.Errorf("killed at %d: %s\nmembers %+v\n%s\n%s", at, states(out), m.list, l.read(etcd.ConfigPath), l.log)
		}
	}
}
