package serverapi

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// The address that moves is in API servers' certificates, in kubeconfigs, in status and in
// metrics; a control plane whose certificate lacks it gets its turn to start anew.
func TestTheAddressThatMoves(t *testing.T) {
	t.Parallel()
	const address = "10.0.0.100"
	cfg := config(cp1(), w1())
	cfg.Kubernetes.Endpoint = ""
	cfg.Kubernetes.APIVIP = []netip.Addr{netip.MustParseAddr(address)}
	r := start(t, cfg)
	cp := r.member("cp1", "52:54:00:00:00:01")
	report := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"},
		Kubernetes: &api.KubernetesObserved{Joined: true, ApiserverReady: true, NodeReady: true}}
	k := cp.sync(report).GetRun().GetKubernetes()
	if !slices.Equal(k.GetApiVip(), []string{address}) || !slices.Contains(k.GetApiServerSans(), address) {
		t.Errorf("a control plane is told %v and %v", k.GetApiVip(), k.GetApiServerSans())
	}
	if notes := r.allNotes(); !strings.Contains(notes, "warning: no control plane says that it has the API's address "+address) {
		t.Errorf("status: %s", notes)
	}
	report.HoldsVip = []string{address}
	cp.sync(report)
	if notes := r.allNotes(); !strings.Contains(notes, "the API's address "+address+" is on cp1") {
		t.Errorf("status: %s", notes)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(r.Collectors()...)
	const want = "# HELP imagectl_kubernetes_api_vip 1 on the control plane that has an address of kubernetes.apiVIP, 0 with an empty name while none is known to.\n" +
		"# TYPE imagectl_kubernetes_api_vip gauge\nimagectl_kubernetes_api_vip{address=\"10.0.0.100\",machine=\"cp1\"} 1\n"
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "imagectl_kubernetes_api_vip"); err != nil {
		t.Error(err)
	}
	report.Kubernetes.ApiServerOutdated = true
	if cp.sync(report).GetRun().GetKubernetes().GetRenewBefore() == nil {
		t.Error("a control plane whose certificate lacks the address gets no turn")
	}
	kc, err := r.operator(pki.RoleAdmin).IssueKubeconfig(t.Context(), connect.NewRequest(&api.IssueKubeconfigRequest{CsrDer: csr(t, cp.key)}))
	if err != nil || kc.Msg.GetServer() != "https://"+address+":6443" {
		t.Errorf("kubeconfigs name %s, %v", kc.Msg.GetServer(), err)
	}
}

// Of two that say so the newer word counts, and old words none.
func TestWhoHasTheAddressIsTheNewestWord(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := &Server{cfg: Config{Now: func() time.Time { return now }, Machines: []Machine{{Name: "cp1", ControlPlane: true}, {Name: "cp2", ControlPlane: true}, {Name: "w1"}}}, board: newBoard()}
	say := func(name string, at time.Time) {
		s.board.mu.Lock()
		defer s.board.mu.Unlock()
		s.board.reports[name] = report{at: at, last: &api.SyncRequest{HoldsVip: []string{"10.0.0.100"}}}
	}
	for _, step := range []struct {
		name string
		at   time.Time
		want string
	}{
		{"w1", now, ""}, {"cp1", now.Add(-3 * time.Minute), ""}, {"cp1", now.Add(-time.Minute), "cp1"}, {"cp2", now.Add(-time.Second), "cp2"}, {"cp1", now, "cp1"},
	} {
		say(step.name, step.at)
		if got, _ := s.vipHolder("10.0.0.100"); got != step.want {
			t.Errorf("after %s's word of %v ago: got %q, want %q", step.name, now.Sub(step.at), got, step.want)
		}
	}
}
