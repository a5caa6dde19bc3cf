package serverapi

import (
	"fmt"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// voter reports as a member with a vote does, with the list that it has.
func voter(list ...string) *api.SyncRequest {
	e := &api.EtcdObserved{Running: true, MemberId: "1", Healthy: true}
	for i, name := range list {
		e.Members = append(e.Members, &api.EtcdMember{Id: fmt.Sprint(i), Name: name})
	}
	return &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: e}
}

// controlPlanes is a rack in which all of them are voters.
func controlPlanes(t *testing.T, names ...string) (*rig, []Machine, map[string]*fake) {
	t.Helper()
	var all []Machine
	for i, name := range names {
		m := cp1()
		m.Name, m.MACs = name, []string{fmt.Sprintf("52:54:00:00:01:%02x", i)}
		all = append(all, m)
	}
	r := start(t, config(all...))
	nodes := map[string]*fake{}
	for _, m := range all {
		nodes[m.Name] = r.approvedMachine(m.Name, m.MACs[0])
		nodes[m.Name].sync(running())
	}
	for _, n := range nodes {
		n.sync(voter(names...))
	}
	return r, all, nodes
}

// What retiring a control plane does to etcd is remembered by the server, whenever it
// is killed.
func TestOneOfTwoVotersLeavesBeforeItIsRetired(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2")
	retire := func(name, want string) {
		t.Helper()
		if o := r.retire(name, ""); o.GetReasonCode() != want {
			t.Fatalf("retiring %s: %s, %s; want %s", name, o.GetReasonCode(), o.GetMessage(), want)
		}
	}
	retire("cp2", "leaves-etcd")
	r.restart(config(all...))
	nodes["cp2"].sync(voter("cp1", "cp2"))
	if e := nodes["cp1"].sync(voter("cp1", "cp2")).GetRun().GetEtcd(); e.GetRemove() != "cp2" || e.GetAction() != api.EtcdWanted_ACTION_RUN {
		t.Errorf("cp1 is told %v", e)
	}
	retire("cp1", "would-lose-etcd")
	nodes["cp1"].sync(voter("cp1"))
	if e := nodes["cp2"].sync(running()).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_WAIT || e.GetReason() != "its etcd member is removed; imagectl machines retire cp2" {
		t.Errorf("cp2 is told %v", e)
	}
	retire("cp2", "done")
	if e := nodes["cp1"].sync(voter("cp1")).GetRun().GetEtcd(); e.GetRemove() != "" {
		t.Errorf("cp1 is told %v", e)
	}
	retire("cp1", "would-lose-etcd")
}

// Members leave one at a time, and who is to wait is told for whom.
func TestTwoVotersAreRetiredAtOnce(t *testing.T) {
	t.Parallel()
	r, _, _ := controlPlanes(t, "cp1", "cp2")
	resp, err := r.operator(pki.RoleOperator).RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{"cp1", "cp2"}}}))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{
		"its etcd member is removed first, while it is well: 2 voters become 1; retire it again when imagectl etcd members does not list it any more",
		"its etcd member is removed first, and that of cp1 before it; retire it again when imagectl etcd members does not list cp1 any more",
	} {
		if o := resp.Msg.GetOutcomes()[i]; o.GetReasonCode() != "leaves-etcd" || o.GetMessage() != want {
			t.Errorf("%s: %s, %s; want %s", o.GetMachine(), o.GetReasonCode(), o.GetMessage(), want)
		}
	}
	if r.choices.EtcdLeaving != "cp1" {
		t.Errorf("%q leaves", r.choices.EtcdLeaving)
	}
}

// A machine that is retired and taken out of cluster.yaml is removed from etcd all the
// same.
func TestARetiredVoterIsRemovedThoughNobodyListsIt(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	if o := r.retire("cp3", ""); !o.GetOk() {
		t.Fatal(o.GetMessage())
	}
	r.restart(config(all[:2]...))
	nodes["cp2"].sync(voter("cp1", "cp2", "cp3"))
	if e := nodes["cp1"].sync(voter("cp1", "cp2", "cp3")).GetRun().GetEtcd(); e.GetRemove() != "cp3" {
		t.Errorf("cp1 is told %v", e)
	}
	nodes["cp2"].sync(voter("cp1", "cp2"))
	nodes["cp1"].sync(voter("cp1", "cp2"))
	if e := nodes["cp1"].sync(voter("cp1", "cp2")).GetRun().GetEtcd(); e.GetRemove() != "" || len(r.choices.EtcdVoters) != 2 {
		t.Errorf("cp1 is told %v, voters are %v", e, r.choices.EtcdVoters)
	}
}
