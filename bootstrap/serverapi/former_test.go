package serverapi

import (
	"slices"
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

// The node of a machine that was retired is removed by a control plane, once, with an entry of
// the log; also when nobody lists the machine any more and the server was restarted.
func TestTheNodeOfARetiredMachineIsRemoved(t *testing.T) {
	t.Parallel()
	r, cp, w := former(t)
	w.sync(joinedAs("1"))
	if o := r.retire("w1", "sold"); !o.GetOk() || !strings.Contains(o.GetMessage(), "; nothing in Kubernetes: a control plane removes its node by itself (imagectl audit ls)") {
		t.Fatalf("retiring: %v", o)
	}
	want := func(when string, boots ...string) []*api.FormerNode {
		t.Helper()
		got := cp.sync(ready(nil)).GetRun().GetKubernetes().GetFormer()
		var was []string
		for _, f := range got {
			if f.GetName() != "w1" || f.GetBootId() != "" {
				t.Errorf("%s: %v", when, f)
			}
			was = append(was, f.GetWasBootId())
		}
		if !slices.Equal(was, boots) {
			t.Errorf("%s: cp1 is to remove the nodes of %v, want %v", when, was, boots)
		}
		return got
	}
	want("retired", "1")
	r.restart(config(cp1()))
	got := want("out of cluster.yaml, and after a restart", "1")
	if n := len(r.audited("node-removed")); n != 0 {
		t.Errorf("%d entries before it is gone", n)
	}
	// Of another system than that which was retired: no word about it.
	cp.sync(ready([]*api.FormerNode{{Name: "w1", WasBootId: "0", Outcome: api.FormerNode_OUTCOME_REMOVED}}))
	want("of another one", "1")
	got[0].Outcome = api.FormerNode_OUTCOME_REMOVED
	for range 3 {
		cp.sync(ready(got))
	}
	want("gone")
	r.restart(config(cp1()))
	want("after another restart")
	entries := r.audited("node-removed")
	if len(entries) != 1 || entries[0].Machine != "w1" || entries[0].Actor.Subject != "imagectl://demo/node/cp1" || entries[0].Detail != "cp1 removed its node from Kubernetes" {
		t.Errorf("the log has %+v", entries)
	}
}

// A machine that is replaced: its node goes at once, before the new hardware has been seen, and
// what Kubernetes knows of another start than the server stays and is told of.
func TestTheNodeOfAReplacedMachineIsRemoved(t *testing.T) {
	t.Parallel()
	r, cp, w := former(t)
	w.sync(joinedAs("1"))
	w.sync(joinedAs("2")) // a reboot
	if o := r.replace("w1", ""); !o.GetOk() {
		t.Fatal(o)
	}
	got := cp.sync(ready(nil)).GetRun().GetKubernetes().GetFormer()
	if len(got) != 1 || got[0].GetName() != "w1" || got[0].GetWasBootId() != "2" {
		t.Fatalf("cp1 is to remove %v", got)
	}
	// A worker's word counts for nothing.
	got[0].Outcome = api.FormerNode_OUTCOME_KEPT
	next := r.approvedMachine("w1", "52:54:00:00:00:02")
	req := joinedAs("3")
	req.Kubernetes.Joined, req.Kubernetes.FormerGone = false, got
	if k := next.sync(req).GetRun().GetKubernetes(); k.GetAction() != api.KubernetesWanted_ACTION_WAIT || k.GetReason() != "cp1 removes the Node object of the former w1 first" {
		t.Errorf("the new hardware is told %v", k)
	}
	if n := len(r.audited("node-kept")); n != 0 {
		t.Errorf("a worker's word is %d entries of the log", n)
	}
	cp.sync(ready(got))
	if e := r.audited("node-kept"); len(e) != 1 || e[0].Detail != "the node in Kubernetes is of another start of a machine than the one that this server knew, and stays; if it is lost too: kubectl delete node w1" {
		t.Errorf("the log has %+v", e)
	}
	if f := cp.sync(ready(nil)).GetRun().GetKubernetes().GetFormer(); len(f) != 1 || f[0].GetBootId() != "3" || f[0].GetWasBootId() != "" {
		t.Errorf("cp1 is to remove %v; what is left is all but the node of the new hardware", f)
	}
}

// former is a rack with a control plane that is ready and a worker.
func former(t *testing.T) (r *rig, cp, w *fake) {
	t.Helper()
	r = start(t, config(cp1(), w1()))
	cp, w = r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	for range 2 {
		cp.sync(ready(nil))
	}
	return r, cp, w
}

// ready is the report of a control plane that is.
func ready(gone []*api.FormerNode) *api.SyncRequest {
	req := running()
	req.BootId = "c"
	req.Etcd = &api.EtcdObserved{Running: true, MemberId: "1", Healthy: true}
	req.Kubernetes = &api.KubernetesObserved{ApiserverReady: true, Joined: true, NodeReady: true, RemovesFormer: true, FormerGone: gone}
	return req
}

// joinedAs is the report of a node.
func joinedAs(boot string) *api.SyncRequest {
	req := running()
	req.BootId, req.Kubernetes = boot, &api.KubernetesObserved{Joined: true, NodeReady: true}
	return req
}
