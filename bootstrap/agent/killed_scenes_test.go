package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
)

// scenes are the situations that a machine comes to, by name: each role with all that cluster.yaml
// can want of it, with Kubernetes' CA keys on the control planes and on the server only; and then
// what happens to it later.
func scenes() map[string]func(*testing.T) *scene {
	out := map[string]func(*testing.T) *scene{
		"a voter removes a retired machine's member": removing, "a voter goes on alone": goingOn,
		"a voter begins anew out of a snapshot": beginningAnew, "a voter stops for a snapshot elsewhere": stopping,
		"a restore was called off": calledOff, "a member is tended": tended, "certificates are due": due,
		"the control plane is renewed": renewed, "the control plane is renewed, caKey: server": renewedSigned,
		"etcd takes another CA": anotherCA, "etcd takes other times": otherTimes, "others are looked after": lookingAfter, "a worker was reset": workerReset, "a control plane was rebooted": rebooted,
	}
	for _, signs := range []bool{false, true} {
		suffix := ""
		if signs {
			suffix = ", caKey: server"
		}
		out["first control plane"+suffix] = func(t *testing.T) *scene { return newRole(t, signs, initRun) }
		out["joining control plane"+suffix] = func(t *testing.T) *scene {
			s := newRole(t, signs, joinRun)
			m := newMembers(s.lab, peer(2, "cp2", "10.0.0.2"))
			m.next = 41
			return s.with(m)
		}
		out["worker"+suffix] = func(t *testing.T) *scene { return newRole(t, signs, workerRun) }
	}
	return out
}

func workerRun(l *lab) *api.Run {
	run := initRun(l)
	run.ControlPlane, run.Etcd = false, &api.EtcdWanted{Action: api.EtcdWanted_ACTION_NONE}
	run.Kubernetes.Action, run.Kubernetes.Addons = api.KubernetesWanted_ACTION_JOIN_WORKER, nil
	return run
}

// newRole is a machine that was just installed, with all that its server can want.
func newRole(t *testing.T, signs bool, wants func(*lab) *api.Run) *scene {
	t.Helper()
	l := newLab(t)
	l.signs = signs
	c := programs(l)
	l.node.SetUnit("systemd-resolved.service", "active")
	run := wants(l)
	c.ready = run.GetKubernetes().GetAction() != api.KubernetesWanted_ACTION_INIT
	table := nft(l)
	run.Firewall = firewalled(l).Firewall
	run.Network = connected(dnsFile, "DNS=10.0.0.1\n", proxyFile, "proxy\n").Network
	if run.GetControlPlane() {
		run.Etcd.CaTurn, run.Etcd.CaPem = 1, string(l.etcd.CertificatePEM())
		run.Kubernetes.Policy = &api.APIServerPolicy{Enforce: "baseline", Audit: "restricted", Warn: "restricted"}
		l.want(run, "k-1")
	}
	s := &scene{lab: l, run: run, process: l.newNode}
	s.world = func() string {
		slices.Sort(c.applied)
		return fmt.Sprint(slices.Compact(c.images), slices.Compact(c.applied), c.ready, c.marked, c.tainted, *table)
	}
	return s
}

// with adds an etcd cluster to the world.
func (s *scene) with(m *members) *scene {
	world := s.world
	s.world = func() string {
		out := ""
		if world != nil {
			out = world()
		}
		for _, p := range m.list {
			out += fmt.Sprintf("; %s %v learner=%v", p.Name, p.PeerURLs, p.Learner)
		}
		return out
	}
	return s
}

// voter is one of three that has joined.
func voter(t *testing.T) (*lab, *members, *api.Run) {
	t.Helper()
	l := newLab(t)
	programs(l).ready = true
	m := newMembers(l, peer(9, "cp1", "127.0.0.1"), peer(2, "cp2", "10.0.0.2"), peer(3, "cp3", "10.0.0.3"))
	l.put(wal, "9")
	for i := range m.list {
		m.list[i].Follows = true
	}
	run := initRun(l)
	run.Etcd.Action, run.Etcd.Endpoints = api.EtcdWanted_ACTION_RUN, []string{"https://10.0.0.2:2379"}
	if out := once(l.newNode(), run); !out.done {
		t.Fatalf("%s\n%s", states(out), l.log)
	}
	run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	return l, m, run
}

func removing(t *testing.T) *scene {
	l, m, run := voter(t)
	run.Etcd.Remove = "cp3"
	m.list[2].Answers, m.list[2].Healthy, m.list[2].Follows = false, false, false
	return (&scene{lab: l, run: run, process: l.newNode, about: []string{"etcd-data", "etcd-removal", "kubeadm-done"}}).with(m)
}

func goingOn(t *testing.T) *scene {
	l := newLab(t)
	programs(l).ready = true
	m := left(l)
	return (&scene{lab: l, run: aloneRun(l, "fire"), process: l.newNode, about: []string{"etcd-alone"}}).with(m)
}

func beginningAnew(t *testing.T) *scene {
	l := newLab(t)
	programs(l).ready = true
	m := left(l)
	newUtility(l, m)
	run := restoreRun(l, "flood")
	if err := send(l.newNode(), run, snapshotSum(), snapshotContent); err != nil {
		t.Fatal(err)
	}
	return (&scene{lab: l, run: run, process: l.newNode, about: []string{"etcd-restored"}}).with(m)
}

func stopping(t *testing.T) *scene {
	l, m, run := voter(t)
	run.Etcd = &api.EtcdWanted{Action: api.EtcdWanted_ACTION_WAIT, Reason: "etcd begins anew with what cp2 has first", Stop: "flood"}
	return (&scene{lab: l, run: run, process: l.newNode, about: []string{"etcd-stopped"}, ends: "etcd"}).with(m)
}

func calledOff(t *testing.T) *scene {
	l, m, run := voter(t)
	l.put(snapshotPath(snapshotSum()), snapshotContent)
	return (&scene{lab: l, run: run, process: l.newNode, about: []string{"etcd-snapshot-forgotten"}}).with(m)
}

func tended(t *testing.T) *scene {
	l, _, run := voter(t)
	run.Etcd.Tend = true
	var d *database
	s := &scene{lab: l, run: run, about: []string{"etcd-upkeep"}}
	s.process = func() *node {
		n, now := l.keeper(400, 60)
		if d == nil {
			d = now
		}
		n.openEtcd = func(context.Context, []string, *tls.Config) (etcdCluster, error) { return d, nil }
		return n
	}
	s.world = func() string { return fmt.Sprint(d.peers[0].Storage.Size / mib) }
	return s
}

// due is a control plane whose certificates are to be renewed: of etcd, of its clients, of kubelet.
func due(t *testing.T) *scene {
	l, m, run := voter(t)
	l.set(func() { l.now = 31 * 24 * time.Hour })
	return (&scene{lab: l, run: run, process: l.enrolled, about: []string{"renewals"}}).with(m)
}

// enrolled is another process, which has a certificate that is good by now.
func (l *lab) enrolled() *node {
	l.t.Helper()
	n := l.newNode()
	if err := n.enrol(l.t.Context(), api.Mode_MODE_NODE); err != nil {
		l.t.Fatal(err)
	}
	return n
}

// renewed is a control plane whose turn it is, to take another policy too.
func renewed(t *testing.T) *scene {
	c, _ := policedLab(t)
	for i := range c.paths() {
		c.renew(i, 100*24*time.Hour)
	}
	c.cluster.shows = c.serving()
	c.node.Program("kubeadm", func(host.Command) ([]byte, error) {
		for i := range c.paths() {
			c.renew(i, year)
		}
		return nil, nil
	})
	c.run.Kubernetes.Policy.Enforce = "restricted"
	c.run.Kubernetes.RenewBefore = timestamppb.New(c.clock().Add(240 * 24 * time.Hour))
	return c.scene("api-server-policy", "kubeadm-certificates", "api-server-policy-in-use", "control-plane-restarted")
}

func renewedSigned(t *testing.T) *scene {
	c, _ := signedLab(t)
	c.set(func() { c.now = 40 * 24 * time.Hour })
	c.run.Kubernetes.RenewBefore = timestamppb.New(c.clock().Add(60 * 24 * time.Hour))
	s := c.scene("kubeadm-certificates", "control-plane-restarted", "renewals")
	s.process = c.enrolled
	return s
}

// scene has kubelet start what has changed between two runs.
func (c *controlPlane) scene(about ...string) *scene {
	manifests := c.manifests()
	return &scene{lab: c.lab, run: c.run, process: c.newNode, about: about, between: func() {
		c.kubelet(manifests)
		manifests = c.manifests()
	}}
}

// anotherCA is a member that is told of a CA beside its own, and to start anew.
func anotherCA(t *testing.T) *scene {
	c := newCALab(t)
	c.tell(1, c.old, c.new)
	c.run.Etcd.Restart, c.run.Kubernetes.RenewBefore = true, timestamppb.New(c.clock().Add(time.Hour))
	s := c.scene("etcd-authority", "api-server-policy", "api-server-policy-in-use", "control-plane-restarted", "etcd-restarted")
	s.process = c.node1
	s.world = func() string { return fmt.Sprint(len(c.trusts)) }
	return s
}

// otherTimes is a member that is to run with other times, when it is its turn.
func otherTimes(t *testing.T) *scene {
	c := newCALab(t)
	c.run.Etcd.HeartbeatMs, c.run.Etcd.ElectionMs, c.run.Etcd.Restart = 500, 5000, true
	s := c.scene("etcd-restarted")
	s.process = c.node1
	s.world = func() string { return c.timing.String() }
	return s
}

// lookingAfter is a control plane that does for others what the server cannot: Node objects, drains,
// Secrets.
func lookingAfter(t *testing.T) *scene {
	c, _ := policedLab(t)
	pods := &kubePods{t: t, pods: []string{"a/web"}, kind: map[string]string{}}
	c.kubeconfigAt(kubeadm.AdminConf, c.demanding(func(w http.ResponseWriter, r *http.Request) {
		pods.ServeHTTP(w, r)
		if strings.HasSuffix(r.URL.Path, "/eviction") {
			pods.pods = nil
		}
	}))
	c.run.Kubernetes.EncryptionRewrite = true
	c.run.Kubernetes.Former = []*api.FormerNode{{Name: "w3", WasBootId: "boot-1"}}
	c.run.Kubernetes.Drains = []*api.Drain{{Name: "w1", Id: "d1", Until: timestamppb.New(c.clock().Add(time.Hour))}}
	former, rewritten := true, false
	s := c.scene("former-nodes", "drained-nodes", "secrets-rewritten")
	s.process = func() *node {
		n := c.newNode()
		n.removeFormer = func(context.Context, *api.FormerNode) (api.FormerNode_Outcome, error) {
			if !former {
				return api.FormerNode_OUTCOME_ABSENT, nil
			}
			former = false
			return api.FormerNode_OUTCOME_REMOVED, nil
		}
		n.rewriteSecrets = func(context.Context) (int, error) {
			rewritten = true
			return 3, nil
		}
		return n
	}
	s.world = func() string { return fmt.Sprint(pods.pods, former, rewritten) }
	return s
}

// rebooted is a control plane that was off: what it runs is on its disk.
func rebooted(t *testing.T) *scene {
	l, m, run := voter(t)
	for unit := range l.node.Units() {
		l.node.SetUnit(unit, "inactive")
	}
	return (&scene{lab: l, run: run, process: l.newNode}).with(m)
}

// workerReset is a worker that a reset has made forget etcd and Kubernetes: its images are there.
func workerReset(t *testing.T) *scene {
	s := newRole(t, false, workerRun)
	if out := once(s.process(), s.run); !out.done {
		t.Fatalf("%s\n%s", states(out), s.log)
	}
	s.put(resetPath, "boot 0\n")
	s.node.SetUnit(etcd.Unit, "inactive")
	s.node.SetUnit(kubeadm.Unit, "inactive")
	if rebooting, err := s.process().finishReset(t.Context()); rebooting || err != nil {
		t.Fatal(rebooting, err)
	}
	return s
}
