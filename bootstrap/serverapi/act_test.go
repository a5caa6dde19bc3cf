package serverapi

import (
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func (r *rig) act(action api.ActMachineRequest_Action, force bool, names ...string) []*api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).ActMachine(r.t.Context(), connect.NewRequest(&api.ActMachineRequest{
		Selection: &api.Selection{Names: names}, Action: action, Force: force, Reason: "new kernel", Uncordon: true}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()
}

// obeying is a report of a voter whose agent obeys orders.
func obeying(boot string, list ...string) *api.SyncRequest {
	req := voter(list...)
	req.Obeys, req.BootId = true, boot
	req.Kubernetes = &api.KubernetesObserved{Joined: true, NodeReady: true, ApiserverReady: true, DrainsNodes: true}
	return req
}

// Whoever is told to reboot counts as away until it is back: of three only one goes at a time,
// also when one request names two.
func TestMachinesRebootWhileEtcdKeepsItsQuorum(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	names := []string{"cp1", "cp2", "cp3"}
	const reboot, shutdown = api.ActMachineRequest_ACTION_REBOOT, api.ActMachineRequest_ACTION_SHUTDOWN
	if o := r.act(reboot, true, "cp1")[0]; o.GetReasonCode() != "agent-too-old" {
		t.Errorf("an agent that does not obey: %s %s", o.GetReasonCode(), o.GetMessage())
	}
	for name, n := range nodes {
		n.sync(obeying("boot of "+name, names...))
	}
	out := r.act(reboot, false, "cp1", "cp2")
	if !out[0].GetOk() || out[1].GetReasonCode() != "would-stop-etcd" ||
		out[1].GetMessage() != "it is one of 3 etcd voters, quorum is 2 and 1 of the others are healthy, not cp1; while it is away for rebooting nothing can be written; --force does it all the same" {
		t.Fatalf("two at once: %v", out)
	}
	if o := r.act(shutdown, true, "cp1")[0]; o.GetReasonCode() != "order-under-way" {
		t.Errorf("a second order: %v", o)
	}
	r.restart(config(all...)) // it is stored
	for name, n := range nodes {
		o := n.sync(obeying("boot of "+name, names...)).GetOrder()
		if (o != nil) != (name == "cp1") || o != nil && (o.GetKind() != api.Order_KIND_REBOOT || o.GetBy() != "imagectl://demo/operator/ada" || o.GetSerial() == "" || o.GetReason() != "new kernel") {
			t.Errorf("%s is told %v", name, o)
		}
		if o == nil {
			continue
		}
		done := obeying("boot of cp1", names...)
		done.Order = &api.OrderReport{Id: "another", Obeyed: true}
		if n.sync(done).GetOrder() == nil {
			t.Error("an answer to another order ends this one")
		}
		done.Order.Id = o.GetId()
		if n.sync(done).GetOrder() != nil {
			t.Error("it is told again what it has obeyed")
		}
	}
	if e := r.audited("uncordon-asked"); len(e) > 0 {
		t.Errorf("it takes pods again before it is back: %v", e)
	}
	if o := r.act(reboot, false, "cp2")[0]; o.GetReasonCode() != "would-stop-etcd" {
		t.Errorf("while cp1 is on its way down: %v", o)
	}
	nodes["cp1"].sync(obeying("next boot of cp1", names...))
	if d := nodes["cp2"].sync(obeying("boot of cp2", names...)).GetRun().GetKubernetes().GetDrains(); len(d) != 1 || d[0].GetName() != "cp1" || !d[0].GetUndo() {
		t.Errorf("cp1 was drained for its reboot and is back; cp2 is told %v", d)
	}
	if o := r.act(shutdown, false, "cp2")[0]; !o.GetOk() {
		t.Errorf("cp1 is back: %v", o)
	}
	refused := obeying("boot of cp2", names...)
	refused.Order = &api.OrderReport{Id: nodes["cp2"].sync(obeying("boot of cp2", names...)).GetOrder().GetId(), Detail: "cp3 does not answer"}
	nodes["cp2"].sync(refused)
	m, _ := r.store.Machine("cp2")
	if v := r.orderView(m.Order); v.GetState() != "refused" || v.GetDetail() != "cp3 does not answer" || v.GetWhat() != "shutdown" {
		t.Errorf("it shows %v", v)
	}
	for action, want := range map[string]string{"reboot-asked": "new kernel", "reboot-obeyed": "asked by imagectl://demo/operator/ada", "shutdown-asked": "new kernel", "shutdown-refused": "cp3 does not answer"} {
		if e := r.audited(action); len(e) != 1 || e[0].Detail != want {
			t.Errorf("%s: %v", action, e)
		}
	}
}

// An order that nobody fetched is not obeyed days later.
func TestAnOrderGetsOld(t *testing.T) {
	t.Parallel()
	cfg := config(cp1())
	var later time.Duration
	cfg.Now = func() time.Time { return time.Now().Add(later) }
	r := start(t, cfg)
	cp := r.approvedMachine("cp1", "52:54:00:00:00:01")
	cp.sync(obeying("b1", "cp1"))
	if o := r.act(api.ActMachineRequest_ACTION_REBOOT, false, "cp1")[0]; o.GetMessage() != "it is the only etcd voter; while it is away for rebooting nothing can be written; --force does it all the same" {
		t.Errorf("the only one: %v", o)
	}
	if o := r.act(api.ActMachineRequest_ACTION_REBOOT, true, "cp1")[0]; !o.GetOk() {
		t.Fatal(o)
	}
	if o := r.audited("reboot-asked"); len(o) != 1 || o[0].Detail != "forced; new kernel" {
		t.Errorf("the log says %v", o)
	}
	later = orderLife
	if o := cp.sync(obeying("b1", "cp1")).GetOrder(); o != nil {
		t.Errorf("ten minutes later it is told %v", o)
	}
	m, _ := r.store.Machine("cp1")
	if v := r.orderView(m.Order); v.GetState() != "missed" {
		t.Errorf("it shows %v", v)
	}
	later = orderLife + silence
	if o := r.act(api.ActMachineRequest_ACTION_REBOOT, true, "cp1")[0]; o.GetReasonCode() != "has-not-called" {
		t.Errorf("one that is silent: %v", o)
	}
}

// A reset is what arming with --reinstall is: refused in the same cases, and a second person has to
// agree where wiping takes one.
func TestAResetWipes(t *testing.T) {
	t.Parallel()
	r, _, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	names := []string{"cp1", "cp2", "cp3"}
	for name, n := range nodes {
		n.sync(obeying("boot of "+name, names...))
	}
	const reset = api.ActMachineRequest_ACTION_RESET
	out := r.act(reset, true, "cp1", "cp2")
	if !out[0].GetOk() || out[0].GetState() != "armed" || out[1].GetReasonCode() != "would-lose-etcd" {
		t.Errorf("two of three: %v", out)
	}
	if o := nodes["cp1"].sync(obeying("boot of cp1", names...)).GetOrder(); o.GetKind() != api.Order_KIND_REBOOT || o.GetForce() {
		t.Errorf("it is told %v", o)
	}
	if kind, what := danger(&api.ActMachineRequest{Action: reset, Selection: &api.Selection{Names: []string{"cp1"}}}); !slices.Equal(kind, []Danger{Wipe}) || what != "reset, which wipes, cp1" {
		t.Errorf("%s: %s", kind, what)
	}
	if kind, _ := danger(&api.ActMachineRequest{Action: api.ActMachineRequest_ACTION_REBOOT}); kind != nil {
		t.Errorf("a reboot is a %s", kind)
	}
	_, err := r.operator(pki.RoleOperator).ActMachine(t.Context(), connect.NewRequest(&api.ActMachineRequest{Selection: &api.Selection{All: true}, Action: reset}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("all of them: %v", err)
	}
}

// One control plane drains, another one than the machine where there is one, and what it says at
// the end is an entry of the log.
func TestAMachineIsDrained(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2")
	drain := func(req *api.DrainMachineRequest) *api.DrainMachineResponse {
		t.Helper()
		resp, err := r.operator(pki.RoleOperator).DrainMachine(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg
	}
	if got := drain(&api.DrainMachineRequest{Machine: "cp1"}); !got.GetDone() || got.GetDetail() != "it is no node of Kubernetes" {
		t.Errorf("one that never joined: %v", got)
	}
	for name, n := range nodes {
		n.sync(obeying("boot of "+name, "cp1", "cp2"))
	}
	r.board.forget("cp1")
	_, err := r.operator(pki.RoleOperator).DrainMachine(t.Context(), connect.NewRequest(&api.DrainMachineRequest{Machine: "cp1"}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "cp1 cannot be drained (has-not-called): it has not called lately") {
		t.Errorf("one that is dead: %v", err)
	}
	nodes["cp1"].sync(obeying("boot of cp1", "cp1", "cp2"))
	first := drain(&api.DrainMachineRequest{Machine: "cp1", TimeoutSeconds: 60})
	if first.GetDone() || first.GetId() == "" || first.GetDetail() != "waits for a control plane to begin" {
		t.Fatalf("%v", first)
	}
	if again := drain(&api.DrainMachineRequest{Machine: "cp1", TimeoutSeconds: 60}); again.GetId() != first.GetId() {
		t.Errorf("asked twice: %v", again)
	}
	r.restart(config(all...))
	for name, n := range nodes {
		n.sync(obeying("boot of "+name, "cp1", "cp2"))
	}
	if d := nodes["cp1"].sync(obeying("boot of cp1", "cp1", "cp2")).GetRun().GetKubernetes().GetDrains(); len(d) > 0 {
		t.Errorf("cp1 drains itself: %v", d)
	}
	d := nodes["cp2"].sync(obeying("boot of cp2", "cp1", "cp2")).GetRun().GetKubernetes().GetDrains()
	if len(d) != 1 || d[0].GetName() != "cp1" || d[0].GetId() != first.GetId() || d[0].GetUndo() {
		t.Fatalf("cp2 is told %v", d)
	}
	says := func(detail string, done bool) *api.DrainMachineResponse {
		t.Helper()
		req := obeying("boot of cp2", "cp1", "cp2")
		req.Kubernetes.Drains = []*api.Drain{{Name: "cp1", Id: first.GetId(), Detail: detail, Done: done}}
		nodes["cp2"].sync(req)
		return drain(&api.DrainMachineRequest{Machine: "cp1", Id: first.GetId()})
	}
	if got := says("3 pods are left", false); got.GetDone() || got.GetDetail() != "3 pods are left" {
		t.Errorf("%v", got)
	}
	if got := says("time is up: 1 pods are left", true); !got.GetDone() || got.GetProblem() != "time is up: 1 pods are left" {
		t.Errorf("%v", got)
	}
	if e := r.audited("node-not-drained"); len(e) != 1 || e[0].Machine != "cp1" || !strings.HasSuffix(e[0].Actor.Subject, "/node/cp2") {
		t.Errorf("the log says %v", e)
	}
	if second := drain(&api.DrainMachineRequest{Machine: "cp1", Undo: true}); second.GetId() == first.GetId() || second.GetDone() {
		t.Errorf("undone: %v", second)
	}
	_, err = r.operator(pki.RoleOperator).DrainMachine(t.Context(), connect.NewRequest(&api.DrainMachineRequest{Machine: "cp1", Id: first.GetId()}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the one before: %v", err)
	}
}

// What an operator asks for is stored; one machine is told at a time.
func TestAnOperatorHasEtcdDefragmented(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	names := []string{"cp1", "cp2", "cp3"}
	report := func(name string, change func(*api.EtcdObserved)) *api.EtcdWanted {
		t.Helper()
		req := voter(names...)
		req.Etcd.Follows, req.Etcd.Leader, req.Etcd.Room = true, name == "cp1", true
		req.Etcd.Size, req.Etcd.Used, req.Etcd.Quota = 400<<20, 100<<20, 8<<30
		if change != nil {
			change(req.Etcd)
		}
		return nodes[name].sync(req).GetRun().GetEtcd()
	}
	for _, name := range names {
		report(name, nil)
	}
	resp, err := r.operator(pki.RoleOperator).DefragmentEtcd(t.Context(), connect.NewRequest(&api.DefragmentEtcdRequest{Selection: &api.Selection{All: true}}))
	if err != nil || len(resp.Msg.GetOutcomes()) != 3 {
		t.Fatal(resp, err)
	}
	for _, o := range resp.Msg.GetOutcomes() {
		if !o.GetOk() {
			t.Error(o)
		}
	}
	r.restart(config(all...))
	for _, name := range names {
		report(name, nil)
	}
	for _, turn := range []string{"cp2", "cp3", "cp1"} {
		for _, name := range names {
			if e := report(name, nil); e.GetTend() != (name == turn) || e.GetTendAsked() != (name == turn) {
				t.Errorf("in the turn of %s, %s is told %v", turn, name, e)
			}
		}
		report(turn, func(e *api.EtcdObserved) { e.Tended, e.Upkeep = true, "defragmented" })
		report(turn, nil)
	}
	for _, name := range names {
		if e := report(name, nil); e.GetTend() {
			t.Errorf("at the end %s is told %v", name, e)
		}
	}
	if e := r.audited("etcd-defragmentation-asked"); len(e) != 3 {
		t.Errorf("the log says %v", e)
	}
	// Alarms and slow disks are shown.
	report("cp2", func(e *api.EtcdObserved) {
		e.Healthy, e.Alarms, e.FsyncP99Ms, e.LeaderChanges = false, []string{"NOSPACE"}, 64, 12
	})
	status, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	notes := strings.Join(status.Msg.GetNotes(), "\n")
	for _, want := range []string{"alarm: etcd has raised NOSPACE and refuses what makes it grow, say cp2", "warning: the disk of cp2 is slow for etcd: one of a hundred syncs of its log takes 64 ms and more, 10 ms are good; where it stays so, leaders need longer times: etcd.heartbeatInterval and etcd.electionTimeout in cluster.yaml",
		"warning: etcd's leader changed 12 times within an hour, says cp2: disks, processors or the network between the members are too slow for its times; longer ones: etcd.heartbeatInterval and etcd.electionTimeout in cluster.yaml"} {
		if !strings.Contains(notes, want) {
			t.Errorf("status has no %q:\n%s", want, notes)
		}
	}
	if v := status.Msg.GetEtcd(); len(v.GetMembers()) != 3 || v.GetMembers()[0].GetSize() != 400<<20 || !v.GetMembers()[0].GetLeader() || len(v.GetAlarms()) != 1 || len(v.GetWarnings()) != 2 {
		t.Errorf("the view is %v", v)
	}
	report("cp2", func(e *api.EtcdObserved) { e.Alarms = []string{"CORRUPT"} })
	nodesNow, _, err := r.decide(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if nodesNow[1].Seen.Etcd.Fit {
		t.Error("a member of a corrupt cluster is fit")
	}
}
