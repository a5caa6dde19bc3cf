package serverapi

import (
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// The times of cluster.yaml reach members, who are told to start anew when they run with others. A
// worker hears of none.
func TestTimesOfEtcdReachItsMembers(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	cp, w := r.member("cp1", "52:54:00:00:00:01"), r.member("w1", "52:54:00:00:00:02")
	cp.sync(serving())
	if e := cp.sync(passing(0, 0)).GetRun().GetEtcd(); e.GetHeartbeatMs() != 0 || e.GetElectionMs() != 0 || e.GetRestart() {
		t.Errorf("where cluster.yaml says nothing: %v", e)
	}
	cfg.Etcd = Etcd{Heartbeat: 500 * time.Millisecond, Election: 5 * time.Second}
	r.restart(cfg)
	cp.sync(passing(0, 0))
	if e := cp.sync(passing(0, 0)).GetRun().GetEtcd(); e.GetHeartbeatMs() != 500 || e.GetElectionMs() != 5000 || e.GetRestart() {
		t.Errorf("cp1 is told %v", e)
	}
	if e := w.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{}, Kubernetes: &api.KubernetesObserved{}}).GetRun().GetEtcd(); e.GetHeartbeatMs() != 0 || e.GetElectionMs() != 0 {
		t.Errorf("w1 is told %v", e)
	}
	stale := passing(0, 0)
	stale.Etcd.TimingStale = true
	if e := cp.sync(stale).GetRun().GetEtcd(); !e.GetRestart() {
		t.Errorf("with other times cp1 is told %v", e)
	}
	if e := cp.sync(passing(0, 0)).GetRun().GetEtcd(); e.GetRestart() {
		t.Error("it is told still")
	}
}
