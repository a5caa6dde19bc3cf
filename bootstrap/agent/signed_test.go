package agent

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// signedLab is a control plane that has run kubeadm init, without the CA's key.
func signedLab(t *testing.T) (*controlPlane, outcome) {
	t.Helper()
	c := &controlPlane{lab: newLab(t), pid: 100}
	c.signs = true
	c.cluster = programs(c.lab)
	c.run = initRun(c.lab)
	out := once(c.newNode(), c.run)
	c.run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	for _, comp := range components() {
		c.put(comp.manifest(), "kind: Pod\nmetadata: {name: "+comp.name+"}\n")
		c.start(comp)
	}
	c.cluster.shows = c.serving()
	c.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		t.Errorf("%s was run", strings.Join(cmd.Argv, " "))
		return nil, nil
	})
	return c, out
}

// A control plane comes up with what the server signs, and no key of a CA is on it.
func TestAControlPlaneComesUpWithoutTheCAsKey(t *testing.T) {
	t.Parallel()
	c, out := signedLab(t)
	want := []string{"hostname", "balancer", "container-runtime", "images", "etcd-certificates", "etcd-revocations", "etcd-configuration", "etcd-running",
		"kubernetes-secrets", "etcd-client-certificate", "control-plane-certificates", "kubelet-client-certificate", "kubelet-certificate", "kubeadm-init",
		"join-permissions", "control-plane-marked", "addons"}
	if diff := cmp.Diff(want, out.changed); diff != "" || !out.done {
		t.Fatalf("changed (-want +got):\n%s\n%s\n%s", diff, states(out), c.log)
	}
	for _, name := range []string{"ca.key", "front-proxy-ca.key"} {
		if c.exists(kubeadm.PKIDir + "/" + name) {
			t.Errorf("%s is on the node", name)
		}
	}
	for name, want := range map[string]fs.FileMode{
		kubeadm.PKIDir + "/apiserver.key": 0o600, kubeadm.PKIDir + "/apiserver.crt": 0o644, kubeadm.AdminConf: 0o600, "/etc/kubernetes/scheduler.conf": 0o600,
		kubeadm.KubeletConf: 0o600, kubeadm.KubeletClient: 0o600, signedDir + "/admin.pem": 0o600,
	} {
		if got, err := c.node.Mode(name); err != nil || got != want {
			t.Errorf("%s: got mode %v, %v, want %v", name, got, err, want)
		}
	}
	for conf, want := range map[string]string{kubeadm.AdminConf: "https://127.0.0.1:7443", "/etc/kubernetes/scheduler.conf": "https://127.0.0.1:6443", kubeadm.KubeletConf: "https://127.0.0.1:6443"} {
		if server, _, err := kubeadm.Credentials([]byte(c.read(conf)), c.node.ReadFile); err != nil || server != want {
			t.Errorf("%s: got %s, %v, want %s", conf, server, err, want)
		}
	}
	if c.exists(kubeadm.SuperAdmin) {
		t.Error("the super-admin's credentials are left")
	}
	again := once(c.newNode(), c.run)
	if !slices.Equal(again.changed, []string{"balancer"}) || !again.done {
		t.Errorf("a second run changed %v: %s\n%s", again.changed, states(again), c.log)
	}
}

// The server signs anew when it is the node's turn, and the control plane is started
// anew with that; kubelet's is renewed with etcd's and stops nothing.
func TestWhatTheServerSignedIsRenewed(t *testing.T) {
	t.Parallel()
	c, _ := signedLab(t)
	n := c.newNode()
	first, kubelet := n.kubeadmEnds(), c.read(kubeadm.KubeletClient)
	c.set(func() { c.now = 31 * 24 * time.Hour })
	if err := n.enrol(t.Context(), api.Mode_MODE_NODE); err != nil {
		t.Fatal(err)
	}
	if out := once(n, c.run); !out.done || c.read(kubeadm.KubeletClient) == kubelet || !n.kubeadmEnds().Equal(first) {
		t.Errorf("out of turn: %s", states(out))
	}
	c.run.Kubernetes.RenewBefore = timestamppb.New(first.Add(24 * time.Hour))
	before := c.manifests()
	out := once(n, c.run)
	if !slices.Equal(out.changed, []string{"kubeadm-certificates"}) || out.done || !n.kubeadmEnds().After(first) {
		t.Fatalf("changed %v: %s", out.changed, states(out))
	}
	c.kubelet(before)
	if out = once(n, c.run); !slices.Equal(out.changed, []string{"control-plane-restarted"}) || !out.done {
		t.Errorf("changed %v: %s", out.changed, states(out))
	}
	if again := once(n, c.run); len(again.changed) > 0 || !again.done {
		t.Errorf("the second run changed %v", again.changed)
	}
}

// A file that was lost or half-written is made again from what the server signed, without
// it, and what runs counts as older than its certificates.
func TestFilesOfKubeadmFollowFromWhatTheServerSigned(t *testing.T) {
	t.Parallel()
	c, _ := signedLab(t)
	c.set(func() { c.refuse = connect.NewError(connect.CodeUnavailable, errors.New("the server is away")) })
	n := c.newNode()
	for _, name := range []string{kubeadm.PKIDir + "/apiserver.key", "/etc/kubernetes/scheduler.conf", kubeadm.KubeletConf} {
		was := c.read(name)
		c.put(name, "half of")
		if out := once(n, c.run); !out.done || c.read(name) != was {
			t.Errorf("%s: %s", name, states(out))
		}
		if noted := c.exists(renewingPath); noted != (name != kubeadm.KubeletConf) {
			t.Errorf("%s: noted is %v", name, noted)
		}
		if err := c.node.Remove(renewingPath); err != nil {
			t.Fatal(err)
		}
	}
	// Of the same certificates too, everything is started anew once it is noted.
	c.put("/etc/kubernetes/scheduler.conf", "half of")
	once(n, c.run)
	c.run.Kubernetes.RenewBefore = timestamppb.New(time.Now())
	before := c.manifests()
	once(n, c.run)
	c.kubelet(before)
	if out := once(n, c.run); !out.done || c.exists(renewingPath) {
		t.Errorf("got %s", states(out))
	}
	c.run.Address = "127.0.0.9"
	done, missing, err := n.signedCertificates(c.run).Observe(t.Context())
	if want := signedDir + "/apiserver.pem is not for the address 127.0.0.9"; done || missing != want || err != nil {
		t.Errorf("got %v, %q, %v, want %s", done, missing, err, want)
	}
}

// Killed between any two writes, the renewal of what the server signed goes on.
func TestARenewalOfWhatTheServerSignedThatIsKilledGoesOn(t *testing.T) {
	t.Parallel()
	for at := 0; at < len(signedAll()); at++ {
		c, _ := signedLab(t)
		n := c.newNode()
		first := n.kubeadmEnds()
		c.set(func() { c.now = 40 * 24 * time.Hour })
		if err := n.enrol(t.Context(), api.Mode_MODE_NODE); err != nil {
			t.Fatal(err)
		}
		c.run.Kubernetes.RenewBefore = timestamppb.New(first.Add(24 * time.Hour))
		old := c.controlPlaneNow()
		// What the server signed is written as far as that.
		if err := n.issueAll(t.Context(), bundlesOf(signedAll()[:at])); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			before := c.manifests()
			once(c.newNode(), c.run)
			c.kubelet(before)
		}
		if out := once(c.newNode(), c.run); !out.done || c.exists(renewingPath) {
			t.Fatalf("killed at %d: %s\n%s", at, states(out), c.log)
		}
		if end := n.kubeadmEnds(); end.Before(c.run.Kubernetes.RenewBefore.AsTime()) {
			t.Errorf("killed at %d, a certificate ends at %s", at, end)
		}
		for _, p := range c.controlPlaneNow() {
			if slices.Contains(old, p) {
				t.Errorf("killed at %d, %v is left from before", at, p)
			}
		}
		leaf, err := pki.ParseCertificatePEM([]byte(c.read(apiServerCert)))
		if err != nil || leaf.CheckSignatureFrom(c.kube.Certificate()) != nil {
			t.Errorf("killed at %d: %v", at, err)
		}
	}
}

// A join that was killed when all of kubeadm's files were there has joined; with one of
// them empty it begins anew.
func TestAJoinThatWasKilledBeforeKubeletStartedHasJoined(t *testing.T) {
	t.Parallel()
	for _, flags := range []string{"KUBELET_KUBEADM_ARGS=", ""} {
		l := newLab(t)
		l.signs = true
		c := programs(l)
		c.ready = true
		run := initRun(l)
		run.ControlPlane, run.Etcd = false, &api.EtcdWanted{Action: api.EtcdWanted_ACTION_NONE}
		run.Kubernetes.Action, run.Kubernetes.Addons = api.KubernetesWanted_ACTION_JOIN_WORKER, nil
		joins := 0
		l.node.Program("kubeadm", func(host.Command) ([]byte, error) {
			joins++
			l.put("/var/lib/kubelet/config.yaml", "all of it")
			l.put(kubeletFlags, flags)
			if joins == 1 {
				panic(killed{})
			}
			return nil, nil
		})
		if !dies(func() { once(l.newNode(), run) }) {
			t.Fatal("kubeadm was never run")
		}
		want := 1
		if flags == "" {
			want = 2
		}
		if out := once(l.newNode(), run); !out.done || joins != want {
			t.Errorf("flags %q: %d joins, want %d: %s\n%s", flags, joins, want, states(out), l.log)
		}
	}
}
