package serverapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// giver is a node that gives a snapshot.
type giver struct {
	*looked
	content []byte
	behind  error
}

func (g *giver) Record(audit.Entry) error { return nil }
func (g *giver) EtcdRevision(context.Context) (int64, string, error) {
	return 4711, "abc", g.behind
}
func (g *giver) EtcdSnapshot(context.Context) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(g.content)), nil
}

// saving is a server that takes snapshots; nothing in them is read but the digest.
func saving(t *testing.T, dir string, all ...Machine) Config {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	c := config(all...)
	c.EtcdSnapshots = &etcdsnap.Config{
		Plan: etcdsnap.Plan{Every: time.Hour, Keep: 5}, Dir: dir, Scratch: t.TempDir(), Recipients: []age.Recipient{id.Recipient()},
		Inspect: func(context.Context, string) (etcdsnap.Contents, error) {
			return etcdsnap.Contents{Revision: 4711}, nil
		},
	}
	return c
}

func fitVoter(leader bool, names ...string) *api.SyncRequest {
	v := voter(names...)
	v.Etcd.Follows, v.Etcd.Leader = true, leader
	return v
}

// The server takes a snapshot of a follower by itself; each step is an entry of the log, and the node
// is asked by the server and by nobody else who is no admin.
func TestTheServerTakesSnapshotsOfEtcd(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2")
	dir, at := t.TempDir(), time.Now()
	cfg := saving(t, dir, all...)
	cfg.Now = func() time.Time { return at } // the snapshot does not grow old while it is looked at
	r.restart(cfg)
	db := bytes.Repeat([]byte("page"), 1024)
	sum := sha256.Sum256(db)
	node := &giver{looked: &looked{}, content: append(db, sum[:]...)}
	r.nodePort = r.serveNode(nodes["cp2"].cert, node)
	nodes["cp1"].sync(fitVoter(true, "cp1", "cp2"))
	nodes["cp2"].sync(fitVoter(false, "cp1", "cp2"))

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.EtcdSnapshots(ctx) }()
	for r.snapshots.State().Checked == "" {
		if err := r.snapshots.State().Failed; err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatal("it has ended", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	good := r.snapshots.State().Good
	if good.Machine != "cp2" || good.Member != "abc" || good.Revision != 4711 || good.Size != int64(len(node.content)) {
		t.Errorf("it has %+v", good)
	}
	if err := good.Check(r.trust.Load().trusted, "demo", good.Name); err != nil {
		t.Error(err)
	}
	for _, action := range []string{"etcd-snapshot-begun", "etcd-snapshot-saved", "etcd-snapshot-checked"} {
		if e := r.audited(action); len(e) != 1 || e[0].Machine != "cp2" {
			t.Errorf("%s: the log has %+v", action, e)
		}
	}
	if e := r.audited("etcd-snapshot-saved"); !strings.Contains(e[0].Detail, good.Name+", revision 4711, ") || !strings.Contains(e[0].Detail, good.SHA256) {
		t.Errorf("the log has %+v", e)
	}
	if c := r.choicesNow(); c.EtcdSaving != "" {
		t.Errorf("the turn is still that of %s", c.EtcdSaving)
	}
	own, err := r.own.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	if heard := node.calls(); len(heard) != 1 || heard[0].Subject != "imagectl://demo/server/imagectl" || heard[0].Serial != pki.Serial(own.Leaf) {
		t.Errorf("the node has heard of %+v", heard)
	}
	list, err := r.operator(pki.RoleBackup).ListEtcdSnapshots(t.Context(), connect.NewRequest(&api.ListEtcdSnapshotsRequest{}))
	if err != nil || len(list.Msg.GetSnapshots()) != 1 || list.Msg.GetDirectory() != dir || len(list.Msg.GetProblems()) > 0 {
		t.Fatalf("listed: %v %v", list, err)
	}
	if v := list.Msg.GetSnapshots()[0]; v.GetName() != good.Name || v.GetRevision() != 4711 || v.GetMachine() != "cp2" || v.GetSnapshot().GetSha256() != good.SHA256 || !v.GetInDirectory() || v.GetInBucket() || v.GetCheckedAt() == nil {
		t.Errorf("listed: %v", v)
	}
	if n := testutil.CollectAndCount(newSnapshotMetrics(r.Server)); n != 9 {
		t.Errorf("%d metrics", n)
	}
	status, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if notes := strings.Join(status.Msg.GetNotes(), "\n"); !strings.Contains(notes, "the newest good snapshot of etcd is 0s old ("+good.Name+", of cp2, revision 4711)") {
		t.Errorf("it says\n%s", notes)
	}
}

func (r *rig) choicesNow() coordinator.Choices {
	r.t.Helper()
	var c coordinator.Choices
	if err := r.store.Change(r.t.Context(), func(tx *store.Tx) error {
		c = coordinator.Choices{}
		_, err := tx.Value(valueChoices, &c)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return c
}

// Whose turn it is outlives the server, and not the next one; while it is somebody's, nobody else has
// it. Where a quorum does not confirm the member's revision nothing is saved.
func TestTurnsOfSnapshots(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2")
	cfg := saving(t, t.TempDir(), all...)
	r.restart(cfg)
	nodes["cp1"].sync(fitVoter(true, "cp1", "cp2"))
	nodes["cp2"].sync(fitVoter(false, "cp1", "cp2"))
	s := etcdSource{r.Server}
	if name, err := s.Begin(t.Context(), ""); name != "cp2" || err != nil {
		t.Fatalf("%q %v", name, err)
	}
	if _, err := s.Begin(t.Context(), ""); !errors.Is(err, etcdsnap.ErrNotNow) || !strings.HasSuffix(err.Error(), ": one is taken of cp2") {
		t.Errorf("a second one: %v", err)
	}
	if _, why := coordinator.AskTending(nil, r.choicesNow(), "cp1"); why == "" {
		t.Error("nobody is known, and one is asked for")
	}
	r.restart(cfg)
	if c := r.choicesNow(); c.EtcdSaving != "cp2" {
		t.Errorf("it is the turn of %q", c.EtcdSaving)
	}
	s = etcdSource{r.Server}
	for range 2 { // the second time there is nothing to forget
		if err := s.Forget(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if e := r.audited("etcd-snapshot-failed"); len(e) != 1 || e[0].Machine != "cp2" || e[0].Detail != "the server that took it ended" {
		t.Errorf("the log has %+v", e)
	}
	if _, err := s.Begin(t.Context(), ""); !errors.Is(err, etcdsnap.ErrNotNow) {
		t.Errorf("nobody has called since the restart: %v", err)
	}
	nodes["cp1"].sync(fitVoter(true, "cp1", "cp2"))
	nodes["cp2"].sync(fitVoter(false, "cp1", "cp2"))
	node := &giver{looked: &looked{}, behind: errors.New("etcdserver: request timed out")}
	r.nodePort = r.serveNode(nodes["cp2"].cert, node)
	if name, err := s.Begin(t.Context(), ""); name != "cp2" || err != nil {
		t.Fatalf("%q %v", name, err)
	}
	if _, err := s.Open(t.Context(), "cp2"); err == nil || !strings.Contains(err.Error(), "request timed out") {
		t.Errorf("without a quorum: %v", err)
	}
	if err := s.End(t.Context(), "cp2", etcdsnap.Manifest{}, errors.New("it broke off")); err != nil {
		t.Fatal(err)
	}
	if c := r.choicesNow(); c.EtcdSaving != "" {
		t.Errorf("it is the turn of %q", c.EtcdSaving)
	}
}

func TestSnapshotsThatAreOldAreAnAlarm(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2")
	at := time.Now()
	cfg := saving(t, t.TempDir(), all...)
	cfg.Now = func() time.Time { return at }
	r.restart(cfg)
	alarms := func() string {
		t.Helper()
		nodes["cp1"].sync(fitVoter(true, "cp1", "cp2"))
		resp, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(resp.Msg.GetEtcd().GetAlarms(), "\n")
	}
	if got := alarms(); got != "" {
		t.Errorf("at once: %s", got)
	}
	at = at.Add(2*time.Hour + time.Second)
	if got := alarms(); !strings.HasPrefix(got, "there is no good snapshot of etcd in ") {
		t.Errorf("after two hours: %q", got)
	}
}

// A restore that was asked for is called off by one admin alone, and nothing is left of it.
func TestARestoreOfEtcdIsCalledOff(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	file := &api.EtcdSnapshot{Sha256: strings.Repeat("a", 64), Size: 1 << 20}
	call := func(role pki.Role, req *api.RestoreEtcdRequest) (*api.Outcome, error) {
		req.Machine = "cp1"
		resp, err := r.operator(role).RestoreEtcd(t.Context(), connect.NewRequest(req))
		if err != nil {
			return nil, err
		}
		return resp.Msg.GetOutcome(), nil
	}
	ask := func() {
		t.Helper()
		if o, err := call(pki.RoleAdmin, &api.RestoreEtcdRequest{Lost: []string{"cp2", "cp3"}, Snapshot: file, GiveUpData: true}); err != nil || !o.GetOk() {
			t.Fatalf("%v %v", o, err)
		}
	}
	cancel := func() *api.RestoreEtcdRequest { return &api.RestoreEtcdRequest{Cancel: true, Reason: "power is back"} }
	if o, err := call(pki.RoleAdmin, cancel()); err != nil || o.GetReasonCode() != codeTooLate || o.GetMessage() != "no restore of etcd is under way" {
		t.Errorf("nothing was asked for: %v %v", o, err)
	}
	ask()
	if _, err := call(pki.RoleOperator, cancel()); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("who is no admin: %v", err)
	}
	if _, err := call(pki.RoleAdmin, &api.RestoreEtcdRequest{Cancel: true, Lost: []string{"cp2"}}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("with what belongs to asking: %v", err)
	}
	if d, _ := danger(cancel()); len(d) > 0 {
		t.Errorf("it takes two: %s", d)
	}
	r.restart(config(all...))
	well := voter("cp1", "cp2", "cp3")
	for _, n := range nodes {
		n.sync(well)
	}
	if o, err := call(pki.RoleAdmin, cancel()); err != nil || !o.GetOk() {
		t.Fatalf("%v %v", o, err)
	}
	if e := r.audited("etcd-restore-called-off"); len(e) != 1 || e[0].Machine != "cp1" || e[0].Detail != "out of the snapshot with SHA-256 "+file.Sha256+": power is back" {
		t.Errorf("the log has %+v", e)
	}
	for name, n := range nodes {
		n.sync(well)
		if e := n.sync(well).GetRun().GetEtcd(); e.GetAction() != api.EtcdWanted_ACTION_RUN || e.GetSnapshot() != nil || e.GetStop() != "" {
			t.Errorf("%s is told %v", name, e)
		}
	}
	ask()
	held := voter("cp1", "cp2", "cp3")
	held.Etcd.Snapshot = file.Sha256
	nodes["cp1"].sync(held)
	nodes["cp1"].sync(held)
	r.restart(config(all...)) // what cp1 said is forgotten; that others may have been told is not
	if o, err := call(pki.RoleAdmin, cancel()); err != nil || o.GetReasonCode() != codeTooLate || o.GetMessage() != "cp1 has the snapshot, and the other members were told to stop" {
		t.Errorf("too late: %v %v", o, err)
	}
}

// While a voter is on its way down by order none is taken, whatever it said before; and what ends the
// turn of another one that a restore has taken away ends nothing else.
func TestNoSnapshotWhileAVoterReboots(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	r.restart(saving(t, t.TempDir(), all...))
	for name, n := range nodes {
		req := obeying("boot of "+name, "cp1", "cp2", "cp3")
		req.Etcd.Follows = true
		n.sync(req)
	}
	s := etcdSource{r.Server}
	chosen, err := s.Begin(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	other := "cp1"
	if chosen == other {
		other = "cp2"
	}
	if err := s.End(t.Context(), other, etcdsnap.Manifest{}, nil); err != nil || r.choicesNow().EtcdSaving != chosen {
		t.Errorf("%s has ended, and the turn is of %q instead of %s: %v", other, r.choicesNow().EtcdSaving, chosen, err)
	}
	if err := s.End(t.Context(), chosen, etcdsnap.Manifest{}, nil); err != nil || r.choicesNow().EtcdSaving != "" {
		t.Errorf("%s has ended, and the turn is of %q: %v", chosen, r.choicesNow().EtcdSaving, err)
	}
	if o := r.act(api.ActMachineRequest_ACTION_REBOOT, false, "cp1")[0]; !o.GetOk() {
		t.Fatal(o)
	}
	if _, err := s.Begin(t.Context(), ""); !errors.Is(err, etcdsnap.ErrNotNow) || !strings.HasSuffix(err.Error(), "cp1 is on its way down by order, or not back yet") {
		t.Errorf("while cp1 reboots: %v", err)
	}
}
