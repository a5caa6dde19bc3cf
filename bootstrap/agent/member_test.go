package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
)

// members is an etcd cluster as data. Only one goroutine uses it.
type members struct {
	l    *lab
	list []etcd.Peer
	// calls counts what was asked; kill is called before and after each change.
	changes []string
	kill    func()
	// early is how often the learner is not in sync yet.
	early int
	next  uint64
}

const wal = etcd.DataDir + "/member/wal/0.wal"

func newMembers(l *lab, list ...etcd.Peer) *members {
	l.members = &members{l: l, list: list, kill: func() {}, next: 100}
	return l.members
}

func peer(id uint64, name, address string) etcd.Peer {
	return etcd.Peer{ID: id, Name: name, PeerURLs: []string{"https://" + address + ":2380"}, ClientURLs: []string{"https://" + address + ":2379"}, Answers: true, Healthy: true}
}

func (m *members) own() *etcd.Peer {
	for i := range m.list {
		if slices.Contains(m.list[i].PeerURLs, "https://127.0.0.1:2380") {
			return &m.list[i]
		}
	}
	return nil
}

// status is the member of this node: etcd starts with what its file says, and then
// it has data.
func (m *members) status() (etcd.Status, error) {
	own := m.own()
	if own == nil || !m.l.exists(wal) && !strings.Contains(m.l.read(etcd.ConfigPath), "cp1=https://127.0.0.1:2380") {
		return etcd.Status{}, errors.New("etcd ends at once")
	}
	if !m.l.exists(wal) {
		if own.Name != "" {
			m.l.t.Errorf("a member was started whose data is lost: %+v", own)
		}
		m.l.put(wal, fmt.Sprint(own.ID))
	}
	if m.l.read(wal) != fmt.Sprint(own.ID) {
		return etcd.Status{}, errors.New("the member has been permanently removed from the cluster")
	}
	own.Name, own.Answers, own.Healthy = "cp1", true, true
	if strings.Contains(m.l.read(etcd.ConfigPath), "force-new-cluster: true") {
		m.list = []etcd.Peer{*own}
	}
	return etcd.Status{MemberID: strconv.FormatUint(m.own().ID, 16), Learner: m.own().Learner, Healthy: true, Follows: m.quorum(), Members: m.list}, nil
}

func (m *members) quorum() bool {
	well := slices.DeleteFunc(slices.Clone(m.list), func(p etcd.Peer) bool { return !p.Healthy })
	return len(well) > len(m.list)/2
}

func (m *members) Members(context.Context) ([]etcd.Peer, error) { return slices.Clone(m.list), nil }
func (m *members) Close() error                                 { return nil }

// Upkeep is told in upkeep_test.go.
func (m *members) Compact(context.Context) error            { return errors.ErrUnsupported }
func (m *members) Defragment(context.Context, string) error { return errors.ErrUnsupported }
func (m *members) Disarm(context.Context) error             { return errors.ErrUnsupported }
func (m *members) Revision(context.Context) (int64, uint64, error) {
	return 0, 0, errors.ErrUnsupported
}
func (m *members) MoveLeader(context.Context, uint64) error { return errors.ErrUnsupported }
func (m *members) Snapshot(context.Context) (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

func (m *members) changed(what string) {
	m.changes = append(m.changes, what)
	m.kill()
}

func (m *members) AddLearner(_ context.Context, peerURL string) (uint64, error) {
	m.kill()
	for _, p := range m.list {
		if p.Learner || slices.Contains(p.PeerURLs, peerURL) {
			return 0, fmt.Errorf("too many learners, or %s exists", peerURL)
		}
	}
	m.next++
	m.list = append(m.list, etcd.Peer{ID: m.next, PeerURLs: []string{peerURL}, Learner: true})
	m.changed("add")
	return m.next, nil
}

func (m *members) Remove(_ context.Context, id uint64) error {
	m.kill()
	m.list = slices.DeleteFunc(m.list, func(p etcd.Peer) bool { return p.ID == id })
	m.changed("remove " + strconv.FormatUint(id, 10))
	return nil
}

func (m *members) Promote(_ context.Context, id uint64) error {
	m.kill()
	if m.early > 0 {
		m.early--
		return fmt.Errorf("promoting: %w", etcd.ErrNotInSync)
	}
	for i := range m.list {
		if m.list[i].ID == id {
			m.list[i].Learner = false
			m.changed("promote")
			return nil
		}
	}
	return errors.New("member not found")
}

func joinRun(l *lab) *api.Run {
	run := initRun(l)
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_JOIN, ClusterToken: "t", Endpoints: []string{"https://10.0.0.2:2379"}}
	run.Kubernetes.Action, run.Kubernetes.Addons = api.KubernetesWanted_ACTION_JOIN_CONTROL_PLANE, nil
	return run
}

func TestAControlPlaneJoins(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	programs(l).ready = true
	m := newMembers(l, peer(2, "cp2", "10.0.0.2"))
	m.early = 2
	n, run := l.newNode(), joinRun(l)
	out := once(n, run)
	want := []string{"hostname", "balancer", "container-runtime", "images", "etcd-certificates", "etcd-revocations", "etcd-member", "etcd-configuration", "etcd-running", "etcd-vote",
		"kubernetes-secrets", "etcd-client-certificate", "kubelet-certificate", "kubeadm-join", "control-plane-marked"}
	if !slices.Equal(out.changed, want) || !out.done {
		t.Fatalf("got  %v\nwant %v\n%s\n%s", out.changed, want, states(out), l.log)
	}
	if want := []string{"add", "promote"}; !slices.Equal(m.changes, want) {
		t.Errorf("got changes %v, want %v", m.changes, want)
	}
	conf := l.read(etcd.ConfigPath)
	for _, want := range []string{"initial-cluster: cp1=https://127.0.0.1:2380,cp2=https://10.0.0.2:2380\n", "initial-cluster-state: existing\n"} {
		if !strings.Contains(conf, want) {
			t.Errorf("etcd's configuration lacks %q:\n%s", want, conf)
		}
	}
	if again := once(n, run); len(again.changed) != 0 || !again.done {
		t.Errorf("the second run changed %v: %s", again.changed, states(again))
	}
	// From now on it is a member like any: its file names no other.
	run.Etcd.Action, run.Kubernetes.Action = api.EtcdWanted_ACTION_RUN, api.KubernetesWanted_ACTION_RUN
	if out := once(n, run); !slices.Equal(out.changed, []string{"etcd-configuration"}) || !out.done {
		t.Errorf("as a member it changed %v: %s", out.changed, states(out))
	}
	if !strings.Contains(l.read(etcd.ConfigPath), "initial-cluster: cp1=https://127.0.0.1:2380\n") {
		t.Errorf("a member's configuration names others:\n%s", l.read(etcd.ConfigPath))
	}
	if again := once(n, run); len(again.changed) != 0 || !again.done {
		t.Errorf("the second run as a member changed %v: %s", again.changed, states(again))
	}
	// Its data is gone: it does not start as the member that it was.
	if err := l.node.Remove(etcd.DataDir); err != nil {
		t.Fatal(err)
	}
	l.node.SetUnit(etcd.Unit, "inactive")
	m.own().Answers, m.own().Healthy = false, false
	out = once(n, run)
	if !strings.Contains(states(out), "etcd-data=pending") || l.node.Units()[etcd.Unit] != "inactive" || !n.observe(t.Context(), run, out).etcd.GetEmpty() {
		t.Errorf("without its data: %s", states(out))
	}
}

// TestJoiningKilledAnywhere kills the agent before and after each change of the
// members and each program, in each situation that a machine may come from.
func TestJoiningKilledAnywhere(t *testing.T) {
	t.Parallel()
	lost := peer(9, "cp1", "127.0.0.1")
	lost.Answers, lost.Healthy = false, false
	stray := etcd.Peer{ID: 7, PeerURLs: []string{"https://10.0.0.7:2380"}, Learner: true}
	for name, before := range map[string][]etcd.Peer{
		"new":                      {peer(2, "cp2", "10.0.0.2")},
		"its data is lost":         {peer(2, "cp2", "10.0.0.2"), peer(3, "cp3", "10.0.0.3"), lost},
		"a learner is left behind": {peer(2, "cp2", "10.0.0.2"), stray},
	} {
		for at := 1; ; at++ {
			l := newLab(t)
			programs(l).ready = true
			m := newMembers(l, slices.Clone(before)...)
			run := joinRun(l)
			count, killing := 0, true
			m.kill = func() {
				if count++; killing && count == at {
					panic(killed{})
				}
			}
			real := l.node.Exec
			l.node.Exec = func(ctx context.Context, cmd host.Command) ([]byte, error) {
				m.kill()
				defer m.kill()
				return real(ctx, cmd)
			}
			if !dies(func() { once(l.newNode(), run) }) {
				if at < 20 {
					t.Errorf("%s: only %d places to be killed at", name, at)
				}
				break
			}
			killing = false
			out := once(l.newNode(), run)
			if own := m.own(); !out.done || own == nil || own.Learner || len(m.list) != len(slices.DeleteFunc(slices.Clone(before), func(p etcd.Peer) bool { return p.ID == 7 || p.ID == 9 }))+1 {
				t.Errorf("%s: killed at %d: %s\nmembers %+v, changes %v\n%s", name, at, states(out), m.list, m.changes, l.log)
			}
			for _, c := range []string{"add", "promote"} {
				if n := len(slices.DeleteFunc(slices.Clone(m.changes), func(s string) bool { return s != c })); n != 1 {
					t.Errorf("%s: killed at %d: %d times %s", name, at, n, c)
				}
			}
		}
	}
}
