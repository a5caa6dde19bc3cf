package serverapi

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Etcd goes on with one voter when an operator says that the others are lost, whenever the
// server is killed.
func TestEtcdIsRestoredFromTheVoterThatIsLeft(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	restore := func(role pki.Role, lost ...string) (*api.Outcome, error) {
		resp, err := r.operator(role).RestoreEtcd(t.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: "cp1", Lost: lost, Reason: "fire"}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetOutcome(), nil
	}
	if _, err := restore(pki.RoleOperator, "cp2", "cp3"); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("who is no admin: %v", err)
	}
	o, err := restore(pki.RoleAdmin, "cp2", "cp3")
	if err != nil || o.GetReasonCode() != codeNotLost || !strings.HasPrefix(o.GetMessage(), "3 of 3 voters are healthy, and etcd has its quorum") {
		t.Fatalf("while all are well: %v %v", o, err)
	}
	var ahead atomic.Int64
	cfg := config(all...)
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r.restart(cfg)
	ill := voter("cp1", "cp2", "cp3")
	ill.Etcd.Healthy = false
	nodes["cp1"].sync(ill)
	if o, err = restore(pki.RoleAdmin, "cp2"); err != nil || o.GetMessage() != "the other voters are cp2, cp3; name exactly these as lost" {
		t.Fatalf("one is not named: %v %v", o, err)
	}
	if o, err = restore(pki.RoleAdmin, "cp3", "cp2"); err != nil || o.GetMessage() != "the server has just begun, and does not know yet whether cp2 runs; ask again in two minutes" {
		t.Fatalf("a server that was just started: %v %v", o, err)
	}
	ahead.Store(int64(silence + time.Second))
	nodes["cp1"].sync(ill)
	if o, err = restore(pki.RoleAdmin, "cp3", "cp2"); err != nil || !o.GetOk() {
		t.Fatalf("%v %v", o, err)
	}
	r.restart(cfg)
	e := nodes["cp1"].sync(ill).GetRun().GetEtcd()
	if e.GetAction() != api.EtcdWanted_ACTION_ALONE || e.GetAlone() == "" {
		t.Fatalf("cp1 is told %v", e)
	}
	done := voter("cp1")
	done.Etcd.Alone, done.Etcd.Follows = "another", true
	if e := nodes["cp1"].sync(done).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_ALONE {
		t.Errorf("what it did another time counts: %v", e)
	}
	half := voter("cp1", "cp2", "cp3")
	half.Etcd.Alone, half.Etcd.Follows = e.GetAlone(), true
	if e := nodes["cp1"].sync(half).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_ALONE {
		t.Errorf("with the others on its list it is taken for alone: %v", e)
	}
	done.Etcd.Alone = e.GetAlone()
	nodes["cp1"].sync(done)
	if e := nodes["cp1"].sync(done).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_RUN || len(e.GetEndpoints()) != 1 {
		t.Errorf("cp1 is told %v", e)
	}
	empty := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Empty: true}}
	if e := nodes["cp2"].sync(empty).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_JOIN {
		t.Errorf("cp2 is told %v", e)
	}
}
