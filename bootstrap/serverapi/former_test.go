package serverapi

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// A worker that was a node, and is none any more, waits until a control plane has removed the
// former one; that it was one is remembered over a restart.
func TestAFormerNodeIsRemovedBeforeTheMachineJoins(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	cp, w := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	reports := func(boot string, k *api.KubernetesObserved) *api.SyncRequest {
		req := running()
		req.BootId, req.Kubernetes = boot, k
		return req
	}
	control := func(gone ...*api.FormerNode) *api.Run {
		req := reports("c", &api.KubernetesObserved{ApiserverReady: true, Joined: true, NodeReady: true, RemovesFormer: true, FormerGone: gone})
		req.Etcd = &api.EtcdObserved{Running: true, MemberId: "1", Healthy: true}
		return cp.sync(req).GetRun()
	}
	control()
	control()
	if got := w.sync(reports("1", nil)).GetRun().GetKubernetes(); got.GetAction() != api.KubernetesWanted_ACTION_JOIN_WORKER {
		t.Fatalf("the first time: %v", got)
	}
	w.sync(reports("1", &api.KubernetesObserved{Joined: true, NodeReady: true}))
	r.restart(cfg)
	control()
	got := w.sync(reports("2", nil)).GetRun().GetKubernetes()
	if got.GetAction() != api.KubernetesWanted_ACTION_WAIT || !strings.Contains(got.GetReason(), "cp1 removes the Node object of the former w1 first") {
		t.Errorf("installed anew: %v", got)
	}
	former := control().GetKubernetes().GetFormer()
	if len(former) != 1 || former[0].GetName() != "w1" || former[0].GetBootId() != "2" {
		t.Fatalf("cp1 is told to remove %v", former)
	}
	control(former...)
	if got := w.sync(reports("2", nil)).GetRun().GetKubernetes(); got.GetAction() != api.KubernetesWanted_ACTION_JOIN_WORKER {
		t.Errorf("when it is gone: %v", got)
	}
}
