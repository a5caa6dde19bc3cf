//go:build root

package native

import (
	"context"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/etcd"
)

// Two of three control planes are lost. An operator has etcd go on with the third; then one of
// the others comes back with its old disk after all, and one with an empty disk. Everything that
// the third had heard of is there in the end.
func TestDrillsTwoOfThreeLost(t *testing.T) {
	r := newRack(t, "cp1", "cp2", "cp3")
	r.approve()
	r.ready(30*time.Minute, func(map[string]*api.MachineView) {})
	r.voters(3)
	r.threeAPIServers()

	w := r.write()
	w.more(300)
	w.stop()
	r.level(w)
	restore := func() *api.Outcome {
		resp, err := r.op.RestoreEtcd(t.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: "cp1", Lost: []string{"cp2", "cp3"}, Reason: "fire"}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetOutcome()
	}
	if o := restore(); o.GetReasonCode() != "etcd-not-lost" {
		t.Fatalf("while all are well: %v", o)
	}
	r.nodes["cp2"].off(t)
	r.nodes["cp3"].off(t)
	off := time.Now()
	// The server believes for two minutes what they said last.
	r.wait(10*time.Minute, "the server to let etcd go on", func() (bool, string) {
		o := restore()
		return o.GetOk(), o.GetMessage()
	})
	asked := time.Now()
	alone := func() (bool, string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		s, err := etcd.Ask(ctx, "https://"+r.nodes["cp1"].address+":2379", r.nodes["cp1"].certificate(t))
		if err != nil {
			return false, err.Error()
		}
		return s.Healthy && len(s.Members) == 1, s.Reason
	}
	r.wait(5*time.Minute, "cp1 alone", alone)
	r.wait(5*time.Minute, "Kubernetes", func() (bool, string) {
		out, err := r.nodes["cp1"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "create", "configmap", "after-the-fire")
		return err == nil, out
	})
	t.Logf("Kubernetes takes writes %.1f s after the command, which was taken %.0f s after the others lost power", time.Since(asked).Seconds(), asked.Sub(off).Seconds())
	if conf, err := r.nodes["cp1"].on("cat", etcd.ConfigPath); err != nil || strings.Contains(conf, "force") {
		t.Errorf("etcd would begin anew at each start: %v\n%s", err, conf)
	}
	w.verify()

	// The old disk's etcd finds nobody of its own who still counts.
	r.nodes["cp2"].Installed = true
	r.power("cp2", 7)
	back := time.Now()
	r.voters(2)
	t.Logf("cp2, with its old disk, is a voter again %.1f s after power-on", time.Since(back).Seconds())
	r.wait(5*time.Minute, "cp3 to be armed", func() (bool, string) {
		o := r.armAgain("cp3")
		return o.GetOk(), o.GetMessage()
	})
	r.anew("cp3", 8)
	r.voters(3)
	r.ready(20*time.Minute, func(map[string]*api.MachineView) {})
	r.threeAPIServers()
	w.verify()
	if out, err := r.nodes["cp2"].on("kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf", "get", "configmap", "after-the-fire"); err != nil {
		t.Errorf("what was written meanwhile is lost: %v %s", err, out)
	}
}

// level waits until cp1's member has all that was acknowledged.
func (r *rack) level(w *writer) {
	r.t.Helper()
	revision := func(name string) int64 {
		ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
		defer cancel()
		s, err := w.client.Status(ctx, "https://"+r.nodes[name].address+":2379")
		if err != nil {
			r.t.Fatal(err)
		}
		return s.Header.Revision
	}
	want := max(revision("cp2"), revision("cp3"))
	r.wait(time.Minute, "cp1's member", func() (bool, string) { return revision("cp1") >= want, "" })
}
