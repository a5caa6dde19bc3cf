package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// controlPlane is one that has run for months: what kubeadm made, and its processes.
type controlPlane struct {
	*lab
	cluster *cluster
	run     *api.Run
	// pid numbers its processes.
	pid int
}

// year is less than one: the lab's CA lives for one.
const year = 350 * 24 * time.Hour

func newControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	c := &controlPlane{lab: newLab(t), pid: 100}
	c.cluster = programs(c.lab)
	c.run = initRun(c.lab)
	once(c.newNode(), c.run)
	c.run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	c.run.Kubernetes.RenewBefore = timestamppb.New(c.clock().Add(240 * 24 * time.Hour))
	for i := range c.paths() {
		c.renew(i, 100*24*time.Hour)
	}
	c.put("/proc/1/stat", "1 (systemd) S 0 1 1")
	c.put("/proc/77/stat", "77 (a ) b) S 1")
	for _, comp := range components() {
		c.put(comp.manifest(), "kind: Pod\nmetadata: {name: "+comp.name+"}\n")
		c.start(comp)
	}
	c.cluster.shows = c.serving()
	c.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		if got := strings.Join(cmd.Argv, " "); got != "kubeadm certs renew all" {
			return nil, fmt.Errorf("%s was not expected", got)
		}
		for i := range c.paths() {
			c.renew(i, year)
		}
		return nil, nil
	})
	return c
}

func (c *controlPlane) paths() []string {
	out := []string{kubeadm.AdminConf}
	for _, comp := range components() {
		out = append(append(out, comp.certificates...), comp.conf)
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

// renew writes one file as kubeadm does.
func (c *controlPlane) renew(i int, life time.Duration) {
	c.t.Helper()
	cert := c.operatorFor(life)
	if p := c.paths()[i]; strings.HasSuffix(p, ".conf") {
		c.put(p, c.kubeconfig(cert))
	} else {
		c.put(p, string(pki.EncodeCertificate(cert.Leaf.Raw)))
	}
}

// serving is the certificate that the API server is to show.
func (c *controlPlane) serving() *x509.Certificate {
	c.t.Helper()
	leaf, err := pki.ParseCertificatePEM([]byte(c.read(apiServerCert)))
	if err != nil {
		c.t.Fatal(err)
	}
	return leaf
}

// start gives a component a new process in the place of its old one.
func (c *controlPlane) start(comp component) {
	c.t.Helper()
	found, err := c.node.Glob("/proc/[0-9]*/stat")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range found {
		if strings.Contains(c.read(f), "("+comp.process+")") {
			if err := c.node.Remove(strings.TrimSuffix(f, "/stat")); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	c.pid++
	c.put(fmt.Sprintf("/proc/%d/stat", c.pid), fmt.Sprintf("%d (%s) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 %d 20", c.pid, comp.process, 1000+c.pid))
}

// kubelet starts the pods anew whose manifests have changed.
func (c *controlPlane) kubelet(before map[string]string) {
	c.t.Helper()
	for _, comp := range components() {
		if c.read(comp.manifest()) != before[comp.name] {
			c.start(comp)
		}
	}
	c.cluster.shows = c.serving()
}

func (c *controlPlane) manifests() map[string]string {
	out := map[string]string{}
	for _, comp := range components() {
		out[comp.name] = c.read(comp.manifest())
	}
	return out
}

func detailOf(o outcome, name string) string {
	for _, s := range o.steps {
		if s.GetName() == name {
			return s.GetDetail()
		}
	}
	return "there is no step " + name
}

// What kubeadm made is renewed when it is the node's turn, and the control plane is
// started anew; the node says so until all of it runs with the new ones.
func TestAControlPlaneRenewsWhatKubeadmMade(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	n := c.newNode()
	turn := c.run.Kubernetes.RenewBefore
	c.run.Kubernetes.RenewBefore = nil
	if out := once(n, c.run); !out.done || slices.Contains(c.node.Ran(), "kubeadm certs renew all") {
		t.Fatalf("out of turn: %s", states(out))
	}
	c.run.Kubernetes.RenewBefore = turn
	before, old := c.manifests(), c.cluster.shows
	out := once(n, c.run)
	if !slices.Equal(out.changed, []string{"kubeadm-certificates"}) || out.done {
		t.Fatalf("changed %v: %s", out.changed, states(out))
	}
	if got, want := detailOf(out, "control-plane-restarted"), "kube-scheduler still runs as process 101; kubelet starts it anew"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, was := range before {
		if now := c.read("/etc/kubernetes/manifests/" + name + ".yaml"); now == was || !strings.Contains(now, "imagectl/certificates: ") {
			t.Errorf("%s is not started anew: %s", name, now)
		}
	}
	seen := n.observe(context.Background(), c.run, out).kubernetes
	if !seen.GetCertificatesStale() || !seen.GetApiserverReady() || time.Until(seen.GetCertificatesEnd().AsTime()) < 340*24*time.Hour {
		t.Errorf("it reports %v", seen)
	}
	after := c.manifests()
	for _, comp := range components() {
		c.start(comp)
	}
	c.cluster.shows = nil
	if got, want := detailOf(once(n, c.run), "control-plane-restarted"), "the API server is not ready again: connection refused"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.cluster.shows = old
	if got, want := detailOf(once(n, c.run), "control-plane-restarted"), "the API server shows the certificate before"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.cluster.shows = c.serving()
	out = once(n, c.run)
	if !slices.Equal(out.changed, []string{"control-plane-restarted"}) || !out.done || fmt.Sprint(after) != fmt.Sprint(c.manifests()) {
		t.Fatalf("changed %v: %s", out.changed, states(out))
	}
	if seen := n.observe(context.Background(), c.run, out).kubernetes; seen.GetCertificatesStale() {
		t.Errorf("it reports %v", seen)
	}
	if again := once(n, c.run); len(again.changed) > 0 || !again.done {
		t.Errorf("the second run changed %v", again.changed)
	}
}

// Killed anywhere, also between two files that kubeadm writes, the renewal goes on, and
// ends with a control plane of which every process is younger than the certificates.
func TestARenewalThatIsKilledAnywhereGoesOn(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		c := newControlPlane(t)
		old := c.controlPlaneNow()
		count := 0
		die := func() {
			if count++; count == at+1 {
				panic(killed{})
			}
		}
		c.node.Program("kubeadm", func(host.Command) ([]byte, error) {
			for i := range c.paths() {
				die()
				c.renew(i, year)
			}
			die()
			return nil, nil
		})
		c.cluster.asked = die
		died := false
		for range 6 {
			before := c.manifests()
			died = dies(func() { once(c.newNode(), c.run) }) || died
			c.kubelet(before) // it starts what it sees changed, whoever was killed
		}
		out := once(c.newNode(), c.run)
		if !out.done || c.exists(renewingPath) {
			t.Fatalf("killed at %d: %s\n%s", at, states(out), c.log)
		}
		n := c.newNode()
		if end := n.kubeadmEnds(); end.Before(c.run.Kubernetes.RenewBefore.AsTime()) {
			t.Errorf("killed at %d, a certificate ends at %s", at, end)
		}
		for _, p := range c.controlPlaneNow() {
			if slices.Contains(old, p) {
				t.Errorf("killed at %d, %v is left from before", at, p)
			}
		}
		if !died {
			if at < 8 {
				t.Errorf("only %d places to be killed at", at)
			}
			return
		}
	}
}

func (c *controlPlane) controlPlaneNow() []process { return c.newNode().controlPlaneProcesses() }

// After a reboot nothing of before runs, whatever numbers processes have.
func TestAfterARebootNothingRunsWithTheCertificatesBefore(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	if out := once(c.newNode(), c.run); out.done {
		t.Fatal("nobody started anything anew")
	}
	c.put("/proc/sys/kernel/random/boot_id", "boot-2\n")
	c.cluster.shows = c.serving()
	if out := once(c.newNode(), c.run); !out.done {
		t.Errorf("got %s", states(out))
	}
}

func TestARenewalThatFailsSaysWhy(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	c.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		return nil, &host.RunError{Argv: cmd.Argv, Output: []byte("couldn't load CA certificate ca"), Cause: errors.New("exit status 1")}
	})
	out := once(c.newNode(), c.run)
	if got, want := detailOf(out, "kubeadm-certificates"), "running kubeadm certs renew all: exit status 1: couldn't load CA certificate ca"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	c.node.Program("kubeadm", func(host.Command) ([]byte, error) { return nil, nil })
	out = once(c.newNode(), c.run)
	end := c.newNode().kubeadmEnds().UTC().Format(time.DateOnly)
	if got, want := detailOf(out, "kubeadm-certificates"), "it acted, and still: a certificate of the control plane ends at "+end; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, p := range c.paths() {
		c.put(p, "half of")
	}
	if got, want := detailOf(once(c.newNode(), c.run), "kubeadm-certificates"), "no certificate that kubeadm made can be read"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What kubelet shows is renewed with the others, and made anew at once for another
// address.
func TestAKubeletServesWithACertificateForItsAddress(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	c.run.Kubernetes.RenewBefore = nil
	n := c.newNode()
	leaf, err := n.readBundle(kubeadm.Serving)
	if err != nil || leaf.VerifyHostname("127.0.0.1") != nil || leaf.CheckSignatureFrom(c.kube.Certificate()) != nil {
		t.Fatalf("got %v, %v", leaf, err)
	}
	before := c.read(kubeadm.Serving)
	c.set(func() { c.now = 31 * 24 * time.Hour })
	if err := n.enrol(context.Background(), api.Mode_MODE_NODE); err != nil {
		t.Fatal(err)
	}
	if out := once(n, c.run); !out.done || c.read(kubeadm.Serving) == before {
		t.Errorf("it was not renewed: %s", states(out))
	}
	c.run.Address = "127.0.0.9"
	done, missing, err := n.kubeletServing(c.run).Observe(context.Background())
	if want := kubeadm.Serving + " is not for the address 127.0.0.9"; done || missing != want || err != nil {
		t.Errorf("got %v, %q, %v, want %s", done, missing, err, want)
	}
}

// A worker has nothing that kubeadm made for a year, whatever it is told.
func TestAWorkerRenewsNothingOfKubeadms(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	c.run.ControlPlane, c.run.Etcd = false, &api.EtcdWanted{Action: api.EtcdWanted_ACTION_NONE}
	if got := detailOf(once(c.newNode(), c.run), "kubeadm-certificates"); got != "there is no step kubeadm-certificates" {
		t.Error(got)
	}
}
