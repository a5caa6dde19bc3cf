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
