package serverapi

import (
	"net/netip"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Nothing may hang on a control plane calling soon after the server's restart:
// without its address workers would lose their API servers, and operators get a
// kubeconfig that leads nowhere.
func TestAddressesOutliveTheServer(t *testing.T) {
	t.Parallel()
	cp := cp1()
	cp.Address = netip.Addr{} // by DHCP, from the dynamic range
	cfg := config(cp, w1())
	cfg.Kubernetes.Endpoint = ""
	r := start(t, cfg)
	first, worker := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	ready := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "127.0.0.1",
		Etcd:       &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"},
		Kubernetes: &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true}}
	for _, m := range []*fake{first, worker} {
		r.arm(map[*fake]string{first: "cp1", worker: "w1"}[m], false)
		m.install()
	}
	node := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "127.0.0.1"}
	first.sync(node)
	first.sync(ready)
	want := []string{"127.0.0.1:6443"}
	check := func(when string) {
		t.Helper()
		if got := worker.sync(node).GetRun().GetKubernetes().GetApiServers(); !slices.Equal(got, want) {
			t.Errorf("%s a worker is told the API servers %v, want %v", when, got, want)
		}
		resp, err := r.operator(pki.RoleAdmin).IssueKubeconfig(t.Context(), connect.NewRequest(&api.IssueKubeconfigRequest{CsrDer: csr(t, worker.key)}))
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Msg.GetServer(); got != "https://127.0.0.1:6443" {
			t.Errorf("%s a kubeconfig says %s", when, got)
		}
	}
	check("before a restart")
	r.restart(cfg)
	check("after a restart, before the control plane has called,")
}

// Firewalls know a machine before it joins, by cluster.yaml or by its first call.
func TestFirewallsKnowTheMachinesOfTheCluster(t *testing.T) {
	t.Parallel()
	cp, byDHCP, opened := cp1(), w1(), w1()
	cp.Address = netip.MustParseAddr("10.0.0.11")
	byDHCP.Address = netip.Addr{}
	opened.Name, opened.MACs, opened.UUID, opened.Serial, opened.Address = "w2", []string{"52:54:00:00:00:03"}, "", "", netip.MustParseAddr("10.0.0.22")
	opened.Allow = []*api.Firewall_Allow{{From: []string{"0.0.0.0/0"}, Ports: []uint32{9100}}}
	r := start(t, config(cp, byDHCP, opened))
	first := r.approvedMachine("cp1", "52:54:00:00:00:01")
	r.arm("cp1", false)
	first.install()
	node := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "10.0.0.11"}
	check := func(when string, f *api.Firewall, workers ...string) {
		t.Helper()
		if !slices.Equal(f.GetControlPlanes(), []string{"10.0.0.11"}) || !slices.Equal(f.GetWorkers(), workers) {
			t.Errorf("%s: %v, want the workers %v", when, f, workers)
		}
	}
	check("before w1 has called", first.sync(node).GetRun().GetFirewall(), "10.0.0.22")
	worker := r.approvedMachine("w1", "52:54:00:00:00:02")
	r.arm("w1", false)
	worker.install()
	own := worker.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "10.0.0.77"}).GetRun().GetFirewall()
	check("to w1", own, "10.0.0.77", "10.0.0.22")
	check("after w1 has called", first.sync(node).GetRun().GetFirewall(), "10.0.0.77", "10.0.0.22")
	if got := own.GetAllow(); got != nil {
		t.Errorf("w1 opens %v, which is for w2", got)
	}
}
