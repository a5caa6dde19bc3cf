package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/bootstrap/kubeadm"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/vip"
)

const movingAddress = "10.0.0.100"

// named is an API server's certificate for some addresses.
func (c *controlPlane) named(life time.Duration, addresses ...string) string {
	c.t.Helper()
	var extra []netip.Addr
	for _, a := range addresses {
		extra = append(extra, netip.MustParseAddr(a))
	}
	p, err := pki.APIServer(pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}, nil, extra, pki.Lifetimes{Leaf: life})
	cert := c.certificateOf(c.kube, p, err)
	return string(pki.EncodeCertificate(cert.Leaf.Raw))
}

// An address that moves, on a control plane that lives already: it says that its API
// server's certificate lacks it, has kubeadm make another one beside it when it is its turn,
// and takes part from then on. kubeadm renews nothing that is good.
func TestAnAPIServersCertificateGetsTheMovingAddress(t *testing.T) {
	t.Parallel()
	c := newControlPlane(t)
	for i := range c.paths() {
		c.renew(i, year)
	}
	c.put(kubeadm.PKIDir+"/ca.key", "the CA's key")
	c.cluster.shows = c.serving()
	c.run.Kubernetes.ApiServerSans = []string{movingAddress}
	n := c.newNode()
	if out := once(n, c.run); !out.done {
		t.Fatal(states(out))
	}
	turn := c.run.Kubernetes.RenewBefore
	c.run.Kubernetes.RenewBefore, c.run.Kubernetes.ApiVip = nil, []string{movingAddress}
	if out := once(n, c.run); !out.done || !n.observe(t.Context(), c.run, out).kubernetes.GetApiServerOutdated() {
		t.Fatalf("out of turn: %s", states(out))
	}
	n.use(c.run)
	if task := n.vipTask(); task.Addresses != nil {
		t.Errorf("it would answer with a certificate that clients refuse: %+v", task)
	}
	var configured string
	c.node.Program("kubeadm", func(cmd host.Command) ([]byte, error) {
		if got := strings.Join(cmd.Argv, " "); got != "kubeadm init phase certs apiserver --config "+kubeadmConf {
			return nil, fmt.Errorf("%s was not expected", got)
		}
		configured = c.read(kubeadmConf)
		if c.read(namedDir+"/ca.key") != "the CA's key" || c.exists(namedDir+"/apiserver.crt") {
			return nil, fmt.Errorf("its directory is not as it should be")
		}
		c.put(namedDir+"/apiserver.crt", c.named(year, movingAddress))
		c.put(namedDir+"/apiserver.key", "its key")
		return nil, nil
	})
	c.put(namedDir+"/apiserver.crt", "of an attempt that was killed")
	c.run.Kubernetes.RenewBefore = turn
	before := c.manifests()
	out := once(n, c.run)
	if !slices.Equal(out.changed, []string{"kubeadm-certificates"}) || out.done {
		t.Fatalf("changed %v: %s", out.changed, states(out))
	}
	if !strings.Contains(configured, "certificatesDir: "+namedDir+"\n") || !strings.Contains(configured, "certSANs:\n  - "+movingAddress+"\n") {
		t.Errorf("kubeadm was told\n%s", configured)
	}
	if c.exists(namedDir+"/ca.key") || c.exists(namedDir+"/apiserver.key") || c.read(kubeadm.PKIDir+"/apiserver.key") != "its key" {
		t.Error("keys are not where they belong")
	}
	c.kubelet(before)
	if out := once(n, c.run); !out.done || n.observe(t.Context(), c.run, out).kubernetes.GetApiServerOutdated() {
		t.Fatal(states(out))
	}
	n.balancer.SetBackends([]string{apiServerAddress(c.run)})
	c.run.Kubernetes.Action = api.KubernetesWanted_ACTION_RUN
	n.use(c.run)
	want := vip.Task{Machine: c.run.GetMachine(), Node: netip.MustParseAddr(c.run.GetAddress()), Addresses: []netip.Addr{netip.MustParseAddr(movingAddress)}, Ready: true}
	if got := n.vipTask(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("its task is %+v, want %+v", got, want)
	}
	c.run.ControlPlane = false
	if task := n.vipTask(); task.Addresses != nil {
		t.Errorf("a worker would keep it: %+v", task)
	}
}
