package serverapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
)

func wireStep(s rollStep) api.RollAuthorityRequest_Step {
	return map[rollStep]api.RollAuthorityRequest_Step{
		rollPrepare: api.RollAuthorityRequest_STEP_PREPARE, rollActivate: api.RollAuthorityRequest_STEP_ACTIVATE,
		rollFinish: api.RollAuthorityRequest_STEP_FINISH, rollCancel: api.RollAuthorityRequest_STEP_CANCEL,
	}[s]
}

// ask asks for a step, and returns what was said; changed says whether it was done.
func (r *rig) ask(step rollStep, without ...string) (text string, changed bool) {
	r.t.Helper()
	resp, err := r.operator(pki.RoleAdmin).RollAuthority(r.t.Context(), connect.NewRequest(&api.RollAuthorityRequest{Step: wireStep(step), Without: without}))
	if ce := new(connect.Error); errors.As(err, &ce) {
		return ce.Message(), false
	} else if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetMessage(), resp.Msg.GetChanged()
}

// step does one that nothing is in the way of.
func (r *rig) step(step rollStep, without ...string) {
	r.t.Helper()
	if text, changed := r.ask(step, without...); !changed {
		r.t.Fatalf("%s: %s", step, text)
	}
}

// may waits until nothing is in the way of a step.
func (r *rig) may(step rollStep) {
	r.t.Helper()
	var left []obstacle
	r.soon("what keeps "+string(step)+" back", func() bool {
		v, err := r.rollView(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		left = v.obstacles(step)
		return len(left) == 0
	})
}

// only waits until nothing but some holders are in the way.
func (r *rig) only(step rollStep, want ...holder) {
	r.t.Helper()
	r.soon("who keeps "+string(step)+" back", func() bool {
		v, err := r.rollView(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		var got []holder
		for _, o := range v.obstacles(step) {
			got = append(got, o.holder)
		}
		return slices.Equal(got, want)
	})
}

// shown is what the server shows to whoever connects.
func (r *rig) chainShown() []*x509.Certificate {
	r.t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates
}

// Real agents live through a rollover, with a restart of the server after each step. One
// machine is off all the while, and one has an agent that knows nothing of rollovers.
func TestTheCAIsRolledOver(t *testing.T) {
	t.Parallel()
	r, c, k := agedRig(t)
	first := r.CAPEM()
	old := r.trust.Load().trusted
	nodes := []*lived{r.live(c, "cp1", cp1MAC), r.live(c, "w1", w1MAC)}
	w2 := r.approvedMachine("w2", "52:54:00:00:00:03")
	if text, _ := r.ask(rollActivate); text != "no other CA is prepared: imagectl server ca prepare" {
		t.Error(text)
	}

	// Prepared: nothing is signed by it, and who calls trusts it.
	r.step(rollPrepare)
	if text, changed := r.ask(rollPrepare); changed || !strings.HasPrefix(text, "nothing to do: another CA was prepared at ") {
		t.Errorf("a second time: %s", text)
	}
	next := r.trust.Load().trusted[1]
	if shown := r.chainShown(); pki.Verify(old, shown[:1], "", x509.ExtKeyUsageServerAuth, c.Now()) != nil {
		t.Error("the new CA signs before it is activated")
	}
	r.only(rollActivate, "node/w2")
	r.restart(r.cfg)
	r.only(rollActivate, "node/w2")
	if text, _ := r.ask(rollActivate); text != "activate is refused, for:\n- w2 has not called since this server started at "+stamp(r.start)+
		", so it has not said that it trusts the new CA; its certificate is good until "+stamp(w2.cert.Leaf.NotAfter)+"\nAsk again when it has changed, or give somebody up with --without NAME." {
		t.Error(text)
	}
	if text, _ := r.ask(rollActivate, "w2", "w9"); text != "nothing waits for w9" {
		t.Error(text)
	}
	w2.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, AgentVersion: "v0"})
	if text, _ := r.ask(rollActivate); !strings.Contains(text, "- w2 calls, and does not trust the new CA yet (agent v0); ") {
		t.Error(text)
	}

	// Activated: who trusts only the old one follows what that has signed.
	r.step(rollActivate, "w2")
	if text, changed := r.ask(rollActivate); changed || !strings.HasPrefix(text, "nothing to do: the new CA was activated ") {
		t.Errorf("a second time: %s", text)
	}
	if text, _ := r.ask(rollCancel); !strings.Contains(text, "the old one's key is gone") {
		t.Error(text)
	}
	shown := r.chainShown()
	if err := pki.Verify(old, shown, "", x509.ExtKeyUsageServerAuth, c.Now()); err != nil || !r.trust.Load().signs(shown[0]) {
		t.Errorf("with the old CA only: %v; the server shows a certificate by %s", err, pki.IssuerKeyID(shown[0]))
	}
	if pki.Verify(old, shown[:1], "", x509.ExtKeyUsageServerAuth, c.Now()) == nil {
		t.Error("without the cross-certificate the old CA is enough: this test shows nothing")
	}
	for _, l := range nodes {
		r.soon(l.name+"'s certificate of the new CA", func() bool { return r.trust.Load().signs(l.certificate(t).Leaf) })
	}
	// The certificate of before is good still.
	w2.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	r.restart(r.cfg)
	text, _ := r.ask(rollFinish)
	for _, want := range []string{
		"finish is refused, for:\n- no backup was made since ", "\n- operator/ada holds a certificate of the old CA until ",
		"\n- w2 holds a certificate of the old CA until " + stamp(w2.cert.Leaf.NotAfter) + " and has not called with one of the new\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
	saved2, err := k.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !saved2.At.After(r.trust.Load().Since) { // times of backups are whole seconds
		c.pass(2 * time.Second)
		if _, err := k.Save(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.pass(13 * time.Hour)
	r.only(rollFinish, "node/w2")

	// Finished.
	r.step(rollFinish, "w2")
	if text, changed := r.ask(rollFinish); changed || text != "nothing to do: one CA signs and is trusted" {
		t.Errorf("a second time: %s", text)
	}
	for _, l := range nodes {
		r.soon(l.name+" to forget the old CA", func() bool {
			b, _ := r.board.get(l.name)
			return slices.Equal(b.last.GetTrusts(), []string{pki.Digest(next)})
		})
	}
	if _, err := w2.agent().Sync(t.Context(), connect.NewRequest(&api.SyncRequest{})); err == nil {
		t.Error("a certificate of the old CA is accepted")
	}
	r.restart(r.cfg)
	// It comes back by itself: its key is known.
	if got := w2.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("w2 is %s", said(got))
	}
	run := w2.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE}).GetRun()
	if _, err := pki.ParseRevocationList(run.GetRevocations()[0].GetCrlDer(), next); err != nil {
		t.Error(err)
	}
	if got, err := pki.ParseCertificatesPEM([]byte(run.GetClientCaPem())); err != nil || len(got) != 1 || !got[0].Equal(next) {
		t.Errorf("nodes take callers of %d CAs, %v", len(got), err)
	}
	for _, l := range nodes {
		for _, bad := range []string{"enrolling again", "of no use", "not remembered"} {
			if n := l.log.count(bad); n > 0 {
				t.Errorf("%s says %d times: %s", l.name, n, bad)
			}
		}
	}
	// An agent that has lost what it was told knows the old CA only, out of node.json. What that
	// has signed for the new one leads it to the server.
	w1 := nodes[1]
	w1.stop()
	if err := w1.node.Remove("/var/lib/imagectl/server-ca.json"); err != nil {
		t.Fatal(err)
	}
	w1.start(r, c, string(first))
	r.soon("w1 to learn again", func() bool {
		b, err := w1.node.ReadFile("/var/lib/imagectl/server-ca.json")
		return err == nil && strings.Contains(string(b), "CERTIFICATE")
	})
	for action, want := range map[string]int{"ca-prepared": 1, "ca-activated": 1, "ca-finished": 1, "ca-cancelled": 0} {
		if got := len(r.audited(action)); got != want {
			t.Errorf("%d entries %s, want %d", got, action, want)
		}
	}
	if e := r.audited("ca-activated")[0]; !strings.HasSuffix(e.Detail, "; not waited for: w2") || e.Before != "prepared" || e.After != "activated" {
		t.Errorf("the entry: %+v", e)
	}
	err = r.store.Change(t.Context(), func(tx *store.Tx) error {
		if _, ok, err := tx.Secret(secretNextCA); ok || err != nil {
			t.Errorf("the second key is kept twice: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if string(r.FirstCAPEM()) != string(first) || string(r.FormerCAPEM()) != string(first) {
		t.Error("the first CA is forgotten: what it has signed cannot be checked")
	}
}

// A machine that was given the old CA, by a template for instance, enrols after the rollover:
// the code on its console is that of the CA that it was given.
func TestANewMachineKnowsTheOldCAOnly(t *testing.T) {
	t.Parallel()
	r, c, _ := agedRig(t)
	first := string(r.CAPEM())
	r.step(rollPrepare)
	r.step(rollActivate)
	l := r.liveWith(c, "w1", first) // compares the code
	if !r.trust.Load().signs(l.certificate(t).Leaf) {
		t.Error("it has a certificate of the old CA")
	}
}

// Taken back, nothing is left of it but the log.
func TestAPreparedCAIsTakenBack(t *testing.T) {
	t.Parallel()
	r, c, _ := agedRig(t)
	first := string(r.CAPEM())
	l := r.live(c, "w1", w1MAC)
	r.step(rollPrepare)
	r.only(rollActivate)
	trusts := func(n int) func() bool {
		return func() bool { b, _ := r.board.get(l.name); return len(b.last.GetTrusts()) == n }
	}
	r.soon("w1 to trust both", trusts(2))
	r.step(rollCancel)
	r.soon("w1 to trust one", trusts(1))
	r.restart(r.cfg)
	if string(r.CAPEM()) != first || r.trust.Load().phase() != settled || len(r.trust.Load().allCross) > 0 {
		t.Errorf("left: %+v", r.trust.Load().rollover)
	}
	r.step(rollPrepare) // another one
}

func TestMain(m *testing.M) {
	if dir := os.Getenv("ROLL_FOREVER"); dir != "" {
		fmt.Fprintln(os.Stderr, rollForever(dir))
		os.Exit(1)
	}
	if dir := os.Getenv("SERVE_FOREVER"); dir != "" {
		fmt.Fprintln(os.Stderr, serveForever(dir, os.Getenv("SERVE_AT")))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// rollForever is the child of the test below: it does one step after the other.
func rollForever(dir string) error {
	st, err := store.Open(context.Background(), store.Config{Dir: dir, Cluster: "demo", Log: os.Stderr})
	if err != nil {
		return err
	}
	cfg := config()
	cfg.Store = st
	s, err := New(context.Background(), cfg)
	if err != nil {
		return err
	}
	os.Stdout.WriteString("go\n")
	for {
		for _, step := range []rollStep{rollPrepare, rollCancel, rollPrepare, rollActivate, rollFinish} {
			if _, _, err := s.roll(context.Background(), caller{}, step, nil); err != nil && connect.CodeOf(err) != connect.CodeFailedPrecondition {
				return err
			}
		}
	}
}

// Whenever the server is killed, it comes back in one of the phases, with a CA that fits, and
// goes on from there.
func TestTheServerIsKilledInARollover(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seen := map[phase]int{}
	for i := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Env = append(os.Environ(), "ROLL_FOREVER="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*i*3) * time.Millisecond) // any moment will do
		_ = cmd.Process.Kill()
		_ = cmd.Wait()

		r := &rig{t: t, dir: dir}
		r.up(config())
		tr := r.trust.Load()
		seen[tr.phase()]++
		if n := map[phase]int{settled: 1, prepared: 2, activated: 2}[tr.phase()]; len(tr.trusted) != n {
			t.Errorf("%s, and %d CAs are trusted, want %d", tr.phase(), len(tr.trusted), n)
		}
		if len(tr.Trusted) > 0 {
			var ids []string
			for _, c := range tr.trusted {
				ids = append(ids, pki.KeyID(c))
			}
			if !slices.Equal(slices.Sorted(slices.Values(ids)), slices.Sorted(slices.Values(tr.Trusted))) {
				t.Errorf("%s: %v are trusted, and on record %v", tr.phase(), ids, tr.Trusted)
			}
		}
		if _, err := pki.ParseRevocationList(r.revoked.Load().Lists[caImagectl].CRL, tr.ca.Certificate()); err != nil {
			t.Errorf("%s: %v", tr.phase(), err)
		}
		if _, err := r.VerifyAudit(t.Context()); err != nil {
			t.Errorf("%s: %v", tr.phase(), err)
		}
		// The next step is possible, whichever it is.
		if to, ok := map[phase]rollStep{settled: rollPrepare, prepared: rollActivate, activated: rollFinish}[tr.phase()]; ok {
			if changed, _, err := r.roll(t.Context(), caller{}, to, nil); err != nil || !changed {
				t.Errorf("%s: %s: %v", tr.phase(), to, err)
			}
		}
		r.stop()
	}
	t.Logf("killed twelve times, found %v", seen)
}

// Of two servers the other one follows, and what it signs behind the times is not given out.
func TestTheOtherServerFollowsARollover(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := peer(t, e, id, "https://a:8443", config(cp1(), w1()))
	eventually(t, a.store, "a coordinates", func() bool { return a.store.Term() != "" })
	b := peer(t, e, id, "https://b:8443", config(cp1(), w1()))
	m := b.approvedBy(a, "w1", w1MAC)
	stale := b.trust.Load()

	a.step(rollPrepare)
	a.step(rollActivate, "w1")
	eventually(t, b.store, "b follows", func() bool { return b.trust.Load().phase() == activated })
	if c := b.chainShown(); !b.trust.Load().signs(c[0]) || !a.trust.Load().signs(c[0]) {
		t.Error("b shows a certificate of the old CA")
	}
	if got, err := m.tryEnrol(); err != nil || got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("got %v, %v", got, err) // with a certificate of the new CA
	}
	a.step(rollFinish, "w1", "operator/ada")
	eventually(t, b.store, "b follows", func() bool { return b.trust.Load().phase() == settled })

	b.trust.Store(stale) // as if it had not heard yet
	_, err := m.tryEnrol()
	if connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("a certificate of the old CA is given out: %v", err)
	}
	if err := b.loadTrust(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := m.tryEnrol(); err != nil || got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("got %v, %v", got, err)
	}
}

// approvedBy is a machine that enrols here and is approved at another server.
func (r *rig) approvedBy(other *rig, name, mac string) *fake {
	r.t.Helper()
	m := r.machine(mac)
	m.enrol()
	eventually(r.t, other.store, "the key", func() bool { rec, _ := other.store.Machine(name); return len(rec.Pending) == 1 })
	if o := other.approve(name, m.console(), false); !o.GetOk() {
		r.t.Fatalf("approving: %s", o.GetMessage())
	}
	eventually(r.t, r.store, "the approval", func() bool { rec, _ := r.store.Machine(name); return rec.Key != nil })
	if got := m.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		r.t.Fatalf("got %v", got)
	}
	return m
}

// tryEnrol asks with the CA that the server shows, whichever it is.
func (f *fake) tryEnrol() (*api.EnrolResponse, error) {
	f.t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	resp, err := apiconnect.NewEnrolServiceClient(client, f.url).Enrol(f.t.Context(), connect.NewRequest(&api.EnrolRequest{
		CsrDer: csr(f.t, f.key), Mode: api.Mode_MODE_INSTALLER, Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: f.mac}}},
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}
