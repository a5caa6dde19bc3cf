package serverapi

import (
	"bytes"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/nodeapi"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Etcd begins anew out of a snapshot when an operator says that all else is given up, whenever the
// server is killed: the file first, then the others stop, then it begins, then the others join.
func TestEtcdIsRestoredOutOfASnapshot(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	file := &api.EtcdSnapshot{Sha256: strings.Repeat("a", 64), Size: 1 << 20}
	restore := func(role pki.Role, from *api.EtcdSnapshot, giveUp bool) (*api.Outcome, error) {
		resp, err := r.operator(role).RestoreEtcd(t.Context(), connect.NewRequest(&api.RestoreEtcdRequest{Machine: "cp1", Lost: []string{"cp2", "cp3"}, Reason: "flood", Snapshot: from, GiveUpData: giveUp}))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetOutcome(), nil
	}
	if _, err := restore(pki.RoleOperator, file, true); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("who is no admin: %v", err)
	}
	for what, from := range map[string]*api.EtcdSnapshot{
		"no digest":      {Size: 1},
		"half a digest":  {Sha256: "aa", Size: 1},
		"no bytes":       {Sha256: file.Sha256},
		"too many bytes": {Sha256: file.Sha256, Size: nodeapi.SnapshotMax + 1},
		"no file":        nil,
	} {
		if _, err := restore(pki.RoleAdmin, from, true); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	o, err := restore(pki.RoleAdmin, file, false)
	if err != nil || o.GetReasonCode() != codeNotLost || !strings.HasPrefix(o.GetMessage(), "3 of 3 voters are healthy, and etcd has its quorum: all that was written since the snapshot would be lost") {
		t.Fatalf("while all are well: %v %v", o, err)
	}
	view := func() *api.EtcdView_Restoring {
		t.Helper()
		resp, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return resp.Msg.GetEtcd().GetRestoring()
	}
	if v := view(); v != nil {
		t.Errorf("nothing is restored, and it says %v", v)
	}
	if o, err = restore(pki.RoleAdmin, file, true); err != nil || !o.GetOk() {
		t.Fatalf("%v %v", o, err)
	}
	if o, err = restore(pki.RoleAdmin, file, true); err != nil || !o.GetOk() {
		t.Fatalf("again: %v %v", o, err)
	}
	asked := r.audited("etcd-restore-asked")
	if want := "have etcd begin anew on cp1 out of the snapshot with SHA-256 " + file.Sha256 + ", without cp2, cp3, giving up the data that etcd has now: flood"; len(asked) != 1 || asked[0].Detail != want {
		t.Errorf("the log has %+v", asked)
	}

	r.restart(config(all...))
	wanted := func(name string, said *api.SyncRequest) *api.EtcdWanted {
		t.Helper()
		nodes[name].sync(said) // what it says here counts for what it is told next
		return nodes[name].sync(said).GetRun().GetEtcd()
	}
	well := voter("cp1", "cp2", "cp3")
	wanted("cp2", well)
	wanted("cp3", well)
	e := wanted("cp1", well)
	if e.GetAction() != api.EtcdWanted_ACTION_ALONE || e.GetAlone() == "" || e.GetSnapshot().GetSha256() != file.Sha256 || e.GetSnapshot().GetSize() != file.Size || e.GetBegin() || e.GetRestores() != 1 {
		t.Fatalf("cp1 is told %v", e)
	}
	if o := wanted("cp2", well); o.GetAction() != api.EtcdWanted_ACTION_WAIT || o.GetStop() != "" {
		t.Errorf("cp2 is told %v", o)
	}
	if v := view(); v.GetMachine() != "cp1" || v.GetSnapshot().GetSha256() != file.Sha256 || v.GetWaits() != "the snapshot is not on cp1; say imagectl etcd restore again" {
		t.Errorf("it says %v", v)
	}
	held := voter("cp1", "cp2", "cp3")
	held.Etcd.Snapshot = file.Sha256
	if e := wanted("cp1", held); e.GetBegin() {
		t.Errorf("cp1 begins while the others run: %v", e)
	}
	r.restart(config(all...))
	nodes["cp1"].sync(held)
	for i, name := range []string{"cp2", "cp3"} {
		o := wanted(name, well)
		if o.GetStop() != e.GetAlone() {
			t.Errorf("%s is told %v", name, o)
		}
		stopped := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Stopped: o.GetStop()}}
		wanted(name, stopped)
		if e := wanted("cp1", held); e.GetBegin() != (i == 1) {
			t.Errorf("%s has stopped, and cp1 is told %v", name, e)
		}
	}
	done := voter("cp1")
	done.Etcd.Alone, done.Etcd.Follows, done.Kubernetes = e.GetAlone(), true, &api.KubernetesObserved{Joined: true}
	if e := wanted("cp1", done); e.GetAction() != api.EtcdWanted_ACTION_RUN || len(e.GetEndpoints()) != 1 || e.GetSnapshot() != nil {
		t.Errorf("cp1 is told %v", e)
	}
	if v := view(); v != nil {
		t.Errorf("it is done, and it says %v", v)
	}
	if e := wanted("cp2", &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{}}); e.GetAction() != api.EtcdWanted_ACTION_JOIN || e.GetStop() != "" {
		t.Errorf("cp2 is told %v", e)
	}
}

// taker is a node that takes a snapshot.
type taker struct {
	*looked
	got  bytes.Buffer
	kept bool
}

func (t *taker) TakeEtcdSnapshot(string) (nodeapi.Incoming, error) { return t, nil }
func (t *taker) Record(audit.Entry) error                          { return nil }
func (t *taker) Write(b []byte) (int, error)                       { return t.got.Write(b) }
func (t *taker) Keep() error                                       { t.kept = true; return nil }
func (t *taker) Close() error                                      { return nil }

// A snapshot goes to a node by way of the server, which takes little for any other call.
func TestASnapshotIsPassedOnToANode(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	machine := r.approvedMachine("cp1", "52:54:00:00:00:01")
	node := &taker{looked: &looked{}}
	r.nodePort = r.serveNode(machine.cert, node)
	s := r.through(pki.RoleAdmin, to("cp1")).PutEtcdSnapshot(t.Context())
	err := s.Send(&api.PutEtcdSnapshotRequest{Sha256: strings.Repeat("a", 64)})
	part := bytes.Repeat([]byte("x"), 48<<10)
	for range 40 {
		if err == nil {
			err = s.Send(&api.PutEtcdSnapshotRequest{Chunk: part})
		}
	}
	if _, cerr := s.CloseAndReceive(); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil || !node.kept || node.got.Len() != 40*len(part) || node.got.Len() <= maxRequest {
		t.Errorf("%v, kept %v, %d bytes", err, node.kept, node.got.Len())
	}
	if _, err := r.through(pki.RoleReader, to("cp1")).Units(t.Context(), connect.NewRequest(&api.UnitsRequest{Unit: strings.Repeat("x", maxRequest)})); err == nil {
		t.Error("a call of any size is passed on")
	}
	if entries := r.audited("node-called"); len(entries) == 0 || entries[0].Detail != "PutEtcdSnapshot SHA-256 "+strings.Repeat("a", 64) {
		t.Errorf("the log has %+v", entries)
	}
}
