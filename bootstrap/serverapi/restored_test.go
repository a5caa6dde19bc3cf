package serverapi

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// saved is a backup of a rig as a file, with the key to it.
type saved struct {
	file string
	key  *age.X25519Identity
}

func (r *rig) backup() saved {
	r.t.Helper()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		r.t.Fatal(err)
	}
	k, err := backup.NewKeeper(backup.Config{
		Header: backup.Header{Cluster: "demo", Servers: []string{r.url}}, Store: r.store, Recipients: []age.Recipient{key.Recipient()}, Now: r.cfg.Now, Log: r.cfg.Log,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	var b bytes.Buffer
	name, err := k.Stream(r.t.Context(), &b)
	if err != nil {
		r.t.Fatal(err)
	}
	s := saved{filepath.Join(r.t.TempDir(), name), key}
	if err := os.WriteFile(s.file, b.Bytes(), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// restore stops the server, forgets its state, and starts another one out of a
// backup, at a later time.
func (r *rig) restore(cfg Config, from saved, now time.Time) {
	r.t.Helper()
	r.stop()
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Fatal(err)
	}
	r.dir = filepath.Join(r.t.TempDir(), "elsewhere")
	if _, err := backup.Restore(r.t.Context(), backup.RestoreConfig{
		From: from.file, State: r.dir, Identities: []age.Identity{from.key}, Now: now, Log: os.Stderr, Volatile: true,
	}); err != nil {
		r.t.Fatal(err)
	}
	r.up(cfg)
}

// running is what a node reports whose system runs.
func running(held ...*api.HeldList) *api.SyncRequest {
	return &api.SyncRequest{Mode: api.Mode_MODE_NODE, Held: held}
}

func TestARestoredServerIsTheOneThatItWas(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp, w := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	cp.sync(running())
	w.sync(running())
	ca := r.CAPEM()
	armed := r.arm("cp1", true) // it will be installed and at work before the server is lost
	if !armed.GetOk() {
		t.Fatal(armed.GetMessage())
	}
	lists := r.revoked.Load().Lists
	b := r.backup()

	cfg := config(cp1(), w1())
	r.restore(cfg, b, time.Now())
	if !bytes.Equal(ca, r.CAPEM()) {
		t.Error("it has another CA")
	}
	// Nobody touched the nodes: they have the certificate and the URL that they had.
	for _, f := range []*fake{cp, w} {
		if resp := f.sync(running()); resp.GetRun() == nil || resp.GetSendLists() {
			t.Errorf("%s is told %v", f.mac, resp)
		}
	}
	if m, _ := r.store.Machine("cp1"); m.State == machine.Armed || m.Arming != nil {
		t.Errorf("an arming survived, its next netboot wipes it: %+v", m)
	}
	for _, name := range []string{caImagectl, caEtcd} {
		if old, now := lists[name].Number, r.revoked.Load().Lists[name].Number; now <= old+jump {
			t.Errorf("list %s has number %d after %d", name, now, old)
		}
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
	if !slices.Contains(r.actions(t), "server-restored") {
		t.Errorf("the log: %v", r.actions(t))
	}
	notes := r.allNotes()
	if !strings.Contains(notes, "what happened between is not on record") {
		t.Error(notes)
	}

	// It settles once, and what comes next is an ordinary start.
	number := r.revoked.Load().Lists[caImagectl].Number
	if !r.arm("w1", true).GetOk() {
		t.Error("w1 cannot be armed")
	}
	r.restart(cfg)
	if m, _ := r.store.Machine("w1"); m.State != machine.Armed || r.revoked.Load().Lists[caImagectl].Number != number {
		t.Error("a second start took something back again")
	}

	// The same backup once more: the lists of the first one have been around.
	r.restore(cfg, b, time.Now())
	if again := r.revoked.Load().Lists[caImagectl].Number; again < number {
		t.Errorf("list %d after %d", again, number)
	}
}

// actions of the audit log, in their order.
func (r *rig) actions(t *testing.T) []string {
	t.Helper()
	var out []string
	var tip audit.Tip
	for line, err := range r.store.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		var e audit.Entry
		if e, tip, err = audit.Open(tip, line); err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Action)
	}
	return out
}

func TestAMachineThatEnrolledAfterTheBackupIsApprovedAgain(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	b := r.backup()
	w := r.approvedMachine("w1", "52:54:00:00:00:02")
	w.sync(running())
	r.restore(config(cp1(), w1()), b, time.Now())
	_, err := w.agent().Sync(t.Context(), connect.NewRequest(running()))
	if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "enrol again") {
		t.Fatalf("got %v", err)
	}
	// The agent asks again with the key that it has; its code has not changed.
	if got := w.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Fatalf("got %v", got)
	}
	if o := r.approve("w1", w.console(), false); !o.GetOk() {
		t.Fatal(o.GetMessage())
	}
	if got := w.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Fatalf("got %v", got)
	}
	if resp := w.sync(running()); resp.GetRun() == nil {
		t.Errorf("got %v", resp)
	}
}

func TestATokenOfBeforeTheBackupIsVoid(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	cfg.Tokens = true
	r := start(t, cfg)
	if _, err := r.operator(pki.RoleAdmin).IssueToken(t.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: "w1"})); err != nil {
		t.Fatal(err)
	}
	r.restore(cfg, r.backup(), time.Now())
	if m, _ := r.store.Machine("w1"); m.Token != nil {
		t.Errorf("it is %+v", m.Token)
	}
}

// A machine was retired after the backup. The server does not know it any more, but
// the nodes do.
func TestARevocationAfterTheBackupComesBackFromTheNodes(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp, w := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("w1", "52:54:00:00:00:02")
	b := r.backup()
	if o := r.retire("w1", ""); !o.GetOk() {
		t.Fatal(o.GetMessage())
	}
	run := cp.sync(running()).GetRun()
	held := func(whole bool) []*api.HeldList {
		var out []*api.HeldList
		for _, l := range run.GetRevocations() {
			h := &api.HeldList{Ca: l.GetCa(), Number: r.number(l.GetCrlDer())}
			if whole {
				h.CrlDer = l.GetCrlDer()
			}
			out = append(out, h)
		}
		return out
	}
	last := r.number(run.GetRevocations()[0].GetCrlDer())
	r.restore(config(cp1(), w1()), b, time.Now())
	if resp := w.sync(running()); resp.GetRun() == nil {
		t.Fatalf("nobody has told it yet: %v", resp)
	}
	// Its list must not be replaced before this server has seen it.
	asked := cp.sync(running(held(false)...))
	if !asked.GetSendLists() || len(asked.GetRun().GetRevocations()) > 0 {
		t.Fatalf("got %v", asked)
	}
	lie := held(true)
	lie[0].Number++
	if resp := cp.sync(running(lie...)); resp.GetRun().GetRevocations() == nil {
		t.Errorf("a list that is not what it says: %v", resp)
	}
	next := cp.sync(running(held(true)...))
	list, err := pki.ParseRevocationList(next.GetRun().GetRevocations()[0].GetCrlDer(), r.signer().Certificate())
	if err != nil || next.GetSendLists() {
		t.Fatal(err, next)
	}
	if !list.Has(w.cert.Leaf) || r.number(next.GetRun().GetRevocations()[0].GetCrlDer()) <= last {
		t.Errorf("the new list %s has %d entries", list.Number(), list.Len())
	}
	if _, err := w.agent().Sync(t.Context(), connect.NewRequest(running())); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "that cp1 kept") {
		t.Errorf("w1 is still let in: %v", err)
	}
	if got := w.enrol(); got.GetStatus() == api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("w1 gets another certificate: %v", got)
	}
	// Others that have the same list need not send it.
	if resp := cp.sync(running(held(false)...)); resp.GetSendLists() {
		t.Error("it is asked again")
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func (r *rig) number(der []byte) uint64 {
	r.t.Helper()
	l, err := pki.PeekRevocationList(der)
	if err != nil {
		r.t.Fatal(err)
	}
	var n uint64
	if err := json.Unmarshal([]byte(l.Number()), &n); err != nil {
		r.t.Fatal(err)
	}
	return n
}

// A certificate that was renewed after the backup is found when it is used, and then
// it can be revoked.
func TestACertificateOfAfterTheBackupIsFound(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	w := r.approvedMachine("w1", "52:54:00:00:00:02")
	b := r.backup()
	resp, err := w.issue(api.CertificateProfile_CERTIFICATE_PROFILE_NODE)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParseCertificatePEM([]byte(resp.GetItems()[0].GetCertificatePem()))
	if err != nil {
		t.Fatal(err)
	}
	w.cert.Certificate, w.cert.Leaf = [][]byte{leaf.Raw}, leaf
	r.restore(config(cp1(), w1()), b, time.Now())
	w.sync(running())
	if o := r.retire("w1", ""); !o.GetOk() {
		t.Fatal(o.GetMessage())
	}
	if _, ok := r.revoked.Load().entries[caImagectl+"/"+pki.Serial(leaf)]; !ok {
		t.Error("the certificate that it holds is not revoked")
	}
	if !slices.Contains(r.actions(t), "certificate-found") {
		t.Errorf("the log: %v", r.actions(t))
	}
}

// The cluster was formed after the backup. Whoever calls first may not be whoever
// has etcd's data.
func TestARestoredServerStartsNoSecondCluster(t *testing.T) {
	t.Parallel()
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	cp2 := cp1()
	cp2.Name, cp2.MACs = "cp2", []string{"52:54:00:00:00:03"}
	cfg := config(cp1(), cp2)
	cfg.Now = now
	r := start(t, cfg)
	one, two := r.approvedMachine("cp1", "52:54:00:00:00:01"), r.approvedMachine("cp2", "52:54:00:00:00:03")
	b := r.backup()
	empty := &api.EtcdObserved{Empty: true}
	r.restore(cfg, b, now())
	two.sync(running())
	report := running()
	report.Etcd = empty
	if run := two.sync(report).GetRun(); run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_WAIT {
		t.Errorf("cp2 is told %v", run.GetEtcd())
	}
	report = running()
	report.Etcd = &api.EtcdObserved{Running: true, MemberId: "1", Healthy: true}
	one.sync(report)
	later.Store(int64(silence + time.Second))
	one.sync(report)
	if run := one.sync(report).GetRun(); run.GetEtcd().GetAction() != api.EtcdWanted_ACTION_RUN {
		t.Errorf("cp1 is told %v", run.GetEtcd())
	}
}
