package serverapi

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// passing is what a control plane says that has taken a turn of etcd's CA, and is through with one.
func passing(turn, done uint64) *api.SyncRequest {
	r := serving()
	r.Etcd.Follows, r.Etcd.CaTurn, r.Etcd.CaDone = true, turn, done
	return r
}

func (r *rig) replaceCA(ca string) (*api.RotateAuthorityResponse, error) {
	r.t.Helper()
	resp, err := r.operator(pki.RoleAdmin).RotateAuthority(r.t.Context(), connect.NewRequest(&api.RotateAuthorityRequest{Ca: ca}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// rotation is what "imagectl server ca show" says of etcd's.
func (r *rig) rotation() *api.RotationView {
	r.t.Helper()
	resp, err := r.operator(pki.RoleReader).ShowAuthority(r.t.Context(), connect.NewRequest(&api.ShowAuthorityRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	all := resp.Msg.GetAuthority().GetRotations()
	if len(all) != 1 || all[0].GetCa() != caEtcd {
		r.t.Fatalf("%v", all)
	}
	return all[0]
}

// openssl says whether a certificate is by one of the CAs.
func verified(t *testing.T, leaf, cas string) bool {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"leaf": leaf, "ca": cas} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return exec.Command("openssl", "verify", "-CAfile", filepath.Join(dir, "ca"), filepath.Join(dir, "leaf")).Run() == nil
}

// etcd's CA is replaced in three turns, each when the control plane is through with the one before,
// over restarts of the server. openssl judges what is signed, and the list of what is revoked.
func TestEtcdsCAIsReplacedStageByStage(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	if _, err := r.replaceCA(caEtcd); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "cluster demo has no etcd yet") {
		t.Errorf("before there is etcd: %v", err)
	}
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	e := cp.sync(passing(0, 0)).GetRun().GetEtcd()
	if e.GetCaPem() != "" || e.GetCaTurn() != 0 || r.rotation().GetStage() != "settled" {
		t.Fatalf("a CA that was never replaced: %v %v", e, r.rotation())
	}
	leaf := func() (string, string) {
		t.Helper()
		got, err := cp.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER)
		if err != nil {
			t.Fatal(err)
		}
		return got.GetItems()[0].GetCertificatePem(), got.GetItems()[0].GetCaPem()
	}
	oldLeaf, old := leaf()

	resp, err := r.replaceCA(caEtcd)
	if err != nil || !resp.GetChanged() || resp.GetRotation().GetStage() != "trusting" {
		t.Fatalf("%v %v", resp, err)
	}
	if again, err := r.replaceCA(caEtcd); err != nil || again.GetChanged() || !strings.HasPrefix(again.GetMessage(), "nothing to do: etcd's CA is being replaced already") {
		t.Errorf("again: %v %v", again, err)
	}
	told := func(when string, said *api.SyncRequest, turn uint64, cas, signs int) string {
		t.Helper()
		run := cp.sync(said).GetRun()
		e := run.GetEtcd()
		if n := strings.Count(e.GetCaPem(), "BEGIN CERTIFICATE"); e.GetCaTurn() != turn || n != cas {
			t.Errorf("%s: it is told of turn %d with %d CAs, want %d with %d", when, e.GetCaTurn(), n, turn, cas)
		}
		now, by := leaf()
		first, _, _ := strings.Cut(e.GetCaPem(), "-----END CERTIFICATE-----\n")
		if !strings.HasPrefix(by, first) {
			t.Errorf("%s: another one signs than the first of those it is told of", when)
		}
		if isOld := verified(t, now, old); isOld != (signs == 0) || !verified(t, now, e.GetCaPem()) {
			t.Errorf("%s: by openssl, the old one signs: %v", when, isOld)
		}
		for _, l := range run.GetRevocations() {
			if l.GetCa() != caEtcd {
				continue
			}
			signer, err := pki.ParseCertificatePEM([]byte(e.GetCaPem()))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pki.ParseRevocationList(l.GetCrlDer(), signer); err != nil {
				t.Errorf("%s: the list of what is revoked: %v", when, err)
			}
		}
		return e.GetCaPem()
	}
	both := told("nothing is done yet", passing(0, 0), 1, 2, 0)
	if !verified(t, oldLeaf, both) || !strings.HasPrefix(both, old) {
		t.Error("the old one is not the first of two")
	}
	r.restart(cfg)
	told("after a restart", passing(1, 0), 1, 2, 0)
	if notes := r.allNotes(); !strings.Contains(notes, "etcd's CA is being replaced: etcd's members and API servers learn to trust another one too\nthat waits: cp1 has not said that it is through") {
		t.Errorf("status says %s", notes)
	}
	told("it trusts both", passing(1, 1), 2, 2, 1)
	if _, ok := r.secret(secretNextEtcdCA); ok {
		t.Error("the next one's key is there twice")
	}
	r.restart(cfg)
	told("after a restart, signing", passing(2, 1), 2, 2, 1)
	last := told("all is by the new one", passing(2, 2), 3, 1, 1)
	if verified(t, oldLeaf, last) || strings.Contains(last, strings.TrimSpace(old)) {
		t.Error("the old one is trusted still")
	}
	r.restart(cfg)
	told("after a restart, dropping", passing(3, 2), 3, 1, 1)
	if v := r.rotation(); v.GetStage() != "dropping" {
		t.Errorf("%v", v)
	}
	told("through", passing(3, 3), 3, 1, 1)
	v := r.rotation()
	if v.GetStage() != "settled" || len(v.GetCas()) != 1 || v.GetCas()[0].GetUse() != "signs" || len(v.GetWaits()) > 0 {
		t.Errorf("%v", v)
	}
	if got := r.audited("etcd-ca-rotated"); len(got) != 1 || got[0].Before == got[0].After {
		t.Errorf("the log has %v", got)
	}
	var stages []string
	for _, e := range r.audited("etcd-ca-stage") {
		stages = append(stages, e.Before+" "+e.After)
	}
	if got, want := fmt.Sprint(stages), "[trusting signing signing dropping dropping settled]"; got != want {
		t.Errorf("the log has %s, want %s", got, want)
	}

	// And once more.
	if again, err := r.replaceCA(caEtcd); err != nil || !again.GetChanged() {
		t.Fatalf("%v %v", again, err)
	}
	told("the next one", passing(3, 3), 4, 2, 1)
}

// secret is one of the store.
func (r *rig) secret(name string) (value []byte, ok bool) {
	r.t.Helper()
	if err := r.change(r.t.Context(), r.self(), func(c *change) error {
		var err error
		value, ok, err = c.tx.Secret(name)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return value, ok
}

func TestOnlyEtcdsCAIsReplacedByItself(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1()))
	for ca, want := range map[string]string{
		caKubernetes: "unimplemented: CA kubernetes cannot be replaced yet: docs/ca-rotation.md says what can be done",
		caFrontProxy: "unimplemented: CA front-proxy cannot be replaced yet: docs/ca-rotation.md says what can be done",
		caImagectl:   "invalid_argument: CA imagectl is replaced step by step: imagectl server ca prepare",
		"":           `invalid_argument: there is no CA "" to replace; there is etcd`,
	} {
		if _, err := r.replaceCA(ca); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", ca, err, want)
		}
	}
	if kind, what := danger(&api.RotateAuthorityRequest{Ca: caEtcd}); !slices.Equal(kind, []Danger{Destroy}) || what != "replace the CA etcd" {
		t.Errorf("%s, %s", kind, what)
	}
}

// The new CA does not sign before a backup has it, where backups are made.
func TestEtcdsNewCAWaitsForABackup(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	var later atomic.Int64
	kept := r.keepCopies(func() time.Time { return r.cfg.Now().Add(time.Duration(later.Load())) })
	r.restart(r.cfg)
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	cp.sync(passing(0, 0))
	if _, err := kept.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.replaceCA(caEtcd); err != nil {
		t.Fatal(err)
	}
	if e := cp.sync(passing(1, 1)).GetRun().GetEtcd(); e.GetCaTurn() != 1 {
		t.Errorf("it went on without a backup: turn %d", e.GetCaTurn())
	}
	if waits := strings.Join(r.rotation().GetWaits(), "; "); !strings.HasPrefix(waits, "no backup was made since ") {
		t.Errorf("it waits for %s", waits)
	}
	later.Store(int64(2 * time.Second))
	if _, err := kept.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := cp.sync(passing(1, 1)).GetRun().GetEtcd(); e.GetCaTurn() != 2 {
		t.Errorf("it waits still: turn %d, %v", e.GetCaTurn(), r.rotation())
	}
}

// A server out of a backup from before the replacement begins none, and says what is wrong.
func TestAServerFromBeforeEtcdsCASaysSo(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	cp.sync(passing(3, 3))
	const want = "etcd on cp1 trusts CAs that this server does not know: it was restored from a backup that is older than they are; restore a newer one"
	if notes := r.allNotes(); !strings.Contains(notes, "alarm: "+want) {
		t.Error(notes)
	}
	if _, err := r.replaceCA(caEtcd); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), want) {
		t.Errorf("replacing: %v", err)
	}
}

// A certificate that was signed in the moment in which the CA is replaced is not given out.
func TestWhatTheOldCAOfEtcdHasSignedThisMomentIsNotGivenOut(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	cp.sync(passing(0, 0))
	before := r.etcd.Load()
	if _, err := r.replaceCA(caEtcd); err != nil {
		t.Fatal(err)
	}
	cp.sync(passing(1, 1))
	after := r.etcd.Load()
	if pki.KeyID(before.ca.Certificate()) == pki.KeyID(after.ca.Certificate()) {
		t.Fatal("the old one signs still")
	}
	r.etcd.Store(before)
	if _, err := cp.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("got %v", err)
	}
	r.etcd.Store(after)
	if _, err := cp.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER); err != nil {
		t.Error(err)
	}
}

// The right to start etcd anew reaches the machine.
func TestAMemberIsToldToStartAnew(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	cp := r.member("cp1", "52:54:00:00:00:01")
	cp.sync(serving())
	cp.sync(passing(0, 0))
	if _, err := r.replaceCA(caEtcd); err != nil {
		t.Fatal(err)
	}
	stale := passing(1, 0)
	stale.Etcd.CaStale = true
	if e := cp.sync(stale).GetRun().GetEtcd(); !e.GetRestart() {
		t.Errorf("%v", e)
	}
	if _, c, err := r.decide(t.Context()); err != nil || c.EtcdRestarting != "cp1" || c.EtcdCA.Stage != coordinator.CATrusting {
		t.Errorf("%+v %v", c, err)
	}
	if e := cp.sync(passing(1, 0)).GetRun().GetEtcd(); e.GetRestart() {
		t.Error("it is told still")
	}
}

// While something else is under way that starts etcd or API servers anew, or cannot, there is no
// beginning.
func TestWhatEtcdsCAIsNotReplacedBeside(t *testing.T) {
	t.Parallel()
	ready := coordinator.Choices{EtcdFirst: "cp1", EtcdFormed: true, EtcdVoters: []string{"cp1"}, KubernetesFirst: "cp1", KubernetesFormed: true, APIServers: []string{"cp1"}, Policy: true}
	before, anew := ready, ready
	before.Policy = false
	anew.EtcdAlone, anew.EtcdAloneID = "cp1", "once"
	for _, c := range []struct {
		choices coordinator.Choices
		want    string
	}{
		{before, "API servers of this cluster are from before imagectl started them anew by itself: imagectl server encryption-key rotate first"},
		{anew, "etcd begins anew with what cp1 has; replace its CA when that is done"},
		{ready, ""},
	} {
		cfg := config(cp1(), w1())
		r := start(t, cfg)
		r.member("cp1", "52:54:00:00:00:01")
		if err := r.change(t.Context(), audit.Actor{}, func(ch *change) error { return ch.tx.PutValue(valueChoices, c.choices) }); err != nil {
			t.Fatal(err)
		}
		r.restart(cfg)
		_, err := r.replaceCA(caEtcd)
		if c.want == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		refusedWith(t, c.want, err, "failed_precondition: "+c.want)
		if _, has := r.secret(secretNextEtcdCA); has {
			t.Errorf("%s: a key was made all the same", c.want)
		}
	}
}
