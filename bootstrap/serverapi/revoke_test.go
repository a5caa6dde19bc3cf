package serverapi

import (
	"crypto/rand"
	"crypto/tls"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

func (r *rig) retire(name, reason string) *api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).RetireMachine(r.t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{name}}, Reason: reason}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

func (r *rig) replace(name, code string) *api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).ReplaceMachine(r.t.Context(), connect.NewRequest(&api.ReplaceMachineRequest{Machine: name, Reason: "the board died", Code: code}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcome()
}

func (r *rig) revokeSerials(serials ...string) []*api.Outcome {
	r.t.Helper()
	resp, err := r.operator(pki.RoleAdmin).RevokeCertificates(r.t.Context(), connect.NewRequest(&api.RevokeCertificatesRequest{Serials: serials, Reason: "stolen"}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()
}

func (r *rig) certificates() []*api.CertificateView {
	r.t.Helper()
	resp, err := r.operator(pki.RoleReader).ListCertificates(r.t.Context(), connect.NewRequest(&api.ListCertificatesRequest{}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetCertificates()
}

// list reads the list that a CA has signed last.
func (r *rig) list(run *api.Run, ca string) pki.RevocationList {
	r.t.Helper()
	for _, l := range run.GetRevocations() {
		if l.GetCa() == ca {
			out, err := pki.ParseRevocationList(l.GetCrlDer(), r.listSigners()[ca].Certificate())
			if err != nil {
				r.t.Fatal(err)
			}
			return out
		}
	}
	r.t.Fatalf("there is no list of CA %s", ca)
	return pki.RevocationList{}
}

// member is a control plane or worker whose installed system has called.
func (r *rig) member(name, mac string) *fake {
	r.t.Helper()
	f := r.approvedMachine(name, mac)
	r.arm(name, false)
	f.install()
	return f
}

// Retiring a machine refuses everything it holds, at once and after a restart, and
// tells nodes by the list that they get.
func TestRetiringAMachineRevokesWhatItHolds(t *testing.T) {
	t.Parallel()
	cp2 := cp1()
	cp2.Name, cp2.MACs = "cp2", []string{"52:54:00:00:00:0b"}
	cfg := config(cp1(), cp2, w1())
	r := start(t, cfg)
	// Names the first control plane, which keeps the only etcd.
	first := r.member("cp1", "52:54:00:00:00:01")
	first.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	healthy := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: &api.EtcdObserved{Running: true, Healthy: true, MemberId: "1"}}
	d := first.sync(healthy)
	if got := r.list(d.GetRun(), caImagectl); got.Number() != "1" || got.Len() != 0 {
		t.Errorf("before: list %s with %d entries", got.Number(), got.Len())
	}
	if o := r.retire("cp1", ""); o.GetOk() || o.GetReasonCode() != codeWouldLoseEtcd {
		t.Errorf("the only etcd: %v", o)
	}

	f := r.member("cp2", "52:54:00:00:00:0b")
	issued, err := f.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := pki.ParseCertificatePEM([]byte(issued.GetItems()[0].GetCertificatePem()))
	if err != nil {
		t.Fatal(err)
	}
	// Both wait: one for news, the other to be sent away.
	answers := make(chan *api.SyncResponse, 1)
	go func() {
		req := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Etcd: healthy.GetEtcd(), KnownRevision: d.GetRevision(), WaitMs: uint32(time.Hour.Milliseconds())}
		for {
			resp, err := first.agent().Sync(t.Context(), connect.NewRequest(req))
			if err != nil {
				t.Error(err)
				close(answers)
				return
			}
			if len(resp.Msg.GetRun().GetRevocations()) == 2 && r.list(resp.Msg.GetRun(), caEtcd).Len() > 0 && r.list(resp.Msg.GetRun(), caImagectl).Len() > 0 {
				answers <- resp.Msg
				return
			}
			req.KnownRevision = resp.Msg.GetRevision()
		}
	}()
	watch := f.agent()
	refused := make(chan error, 1)
	go func() {
		req := &api.SyncRequest{Mode: api.Mode_MODE_NODE}
		for {
			resp, err := watch.Sync(t.Context(), connect.NewRequest(req))
			if err != nil {
				refused <- err
				return
			}
			req.KnownRevision, req.WaitMs = resp.Msg.GetRevision(), uint32(time.Hour.Milliseconds())
		}
	}()

	o := r.retire("cp2", "sold")
	if want := "its certificates are refused from now on; left to do: switch it off or wipe it (kubelet's own certificate is Kubernetes', which cannot revoke); nothing in etcd: its member is removed by itself (imagectl etcd members); take it out of cluster.yaml"; !o.GetOk() || o.GetState() != "retired" || o.GetMessage() != want {
		t.Fatalf("retiring: %v\nwant %s", o, want)
	}
	if o := r.retire("cp2", "sold"); !o.GetOk() {
		t.Errorf("retiring again, after a lost reply: %v", o)
	}
	news := <-answers
	if news == nil {
		t.Fatal("the lists did not travel")
	}
	if l := r.list(news.GetRun(), caImagectl); !l.Has(f.cert.Leaf) || l.Has(first.cert.Leaf) || l.Number() != "2" {
		t.Errorf("the list of node certificates: number %s", l.Number())
	}
	if l := r.list(news.GetRun(), caEtcd); !l.Has(peer) || l.Number() != "2" {
		t.Errorf("the list of etcd's certificates: number %s", l.Number())
	}
	want := "unauthenticated: the client certificate (serial " + pki.Serial(f.cert.Leaf) + ") was revoked at "
	check := func(when string, err error) {
		t.Helper()
		if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), ": the machine was retired: sold") {
			t.Errorf("%s: got %v\nwant %s…", when, err, want)
		}
	}
	// By the record or by the list, whichever it saw first.
	if err := <-refused; err.Error() != "permission_denied: machine cp2 was retired" {
		check("who waited", err)
	}
	_, err = f.agent().Sync(t.Context(), connect.NewRequest(installer()))
	check("at once", err)
	if got := f.enrol(); got.GetReasonCode() != "enrol-retired" {
		t.Errorf("enrolling again: %v", got)
	}
	r.restart(cfg)
	_, err = f.agent().Sync(t.Context(), connect.NewRequest(installer()))
	check("after a restart", err)
	if l := r.list(first.sync(healthy).GetRun(), caImagectl); l.Number() != "2" {
		t.Errorf("a restart signs list %s anew", l.Number())
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAWorkerGetsNoListForEtcd(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	w := r.member("w1", "52:54:00:00:00:02")
	run := w.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE}).GetRun()
	if got := run.GetRevocations(); len(got) != 1 || got[0].GetCa() != caImagectl {
		t.Errorf("got %v", got)
	}
}

// A key that is replaced takes its certificates with it.
func TestReplacingAKeyRevokesItsCertificates(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1()))
	old := r.approvedMachine("cp1", "52:54:00:00:00:01")
	if _, err := old.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_SERVER); err != nil {
		t.Fatal(err)
	}
	next := r.machine("52:54:00:00:00:01")
	next.enrol()
	if o := r.approve("cp1", next.console(), true); !o.GetOk() {
		t.Fatal(o)
	}
	next.enrol()
	if _, err := old.agent().Sync(t.Context(), connect.NewRequest(installer())); err == nil || !strings.Contains(err.Error(), "the machine's key was replaced") {
		t.Errorf("the old key: %v", err)
	}
	next.sync(installer())
	revoked := map[string]int{}
	for _, c := range r.certificates() {
		if c.GetHolder() == "node/cp1" && c.GetRevokedAt() != nil {
			revoked[c.GetProfile()]++
		}
	}
	if revoked["node"] != 1 || revoked["etcd-server"] != 1 || len(revoked) != 2 {
		t.Errorf("revoked: %v", revoked)
	}
}

// Other hardware takes a machine's name: with the code at once, or step by step.
func TestReplacingAMachine(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	old := r.member("w1", "52:54:00:00:00:02")
	old.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE, Address: "127.0.0.9"})
	if o := r.replace("w1", old.console()); o.GetOk() || o.GetReasonCode() != "nothing-pending" || o.GetMessage() != "this is the code of the hardware that w1 has now; the new one shows another" {
		t.Errorf("the old one's code: %v", o)
	}
	next := r.machine("52:54:00:00:00:02")
	next.enrol()
	if o := r.replace("w1", "0000-0000-0000"); o.GetOk() || o.GetReasonCode() != "code-mismatch" {
		t.Errorf("a wrong code: %v", o)
	}
	if m, _ := r.store.Machine("w1"); m.Key == nil || m.InstalledAt.IsZero() {
		t.Errorf("a refusal changed something: %+v", m)
	}
	if o := r.replace("w1", next.console()); !o.GetOk() || o.GetState() != "approved" {
		t.Fatal(o)
	}
	if m, _ := r.store.Machine("w1"); m.Key == nil || m.Key.ApprovedBy != "ada" || !m.InstalledAt.IsZero() || m.Address != "" {
		t.Errorf("the record: %+v", m)
	}
	if got := next.enrol(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("the new hardware: %v", got)
	}
	if _, err := old.agent().Sync(t.Context(), connect.NewRequest(installer())); err == nil || !strings.Contains(err.Error(), "the machine's hardware was replaced: the board died") {
		t.Errorf("the old hardware: %v", err)
	}
	if got := old.enrol(); got.GetReasonCode() != "enrol-rejected" {
		t.Errorf("the old hardware enrols again: %v", got)
	}
	if o := r.arm("w1", false); !o.GetOk() {
		t.Errorf("arming it as one that was never installed: %v", o)
	}

	// After it was retired, without the code.
	if o := r.retire("w1", ""); !o.GetOk() {
		t.Fatal(o)
	}
	if o := r.arm("w1", true); o.GetOk() || !strings.Contains(o.GetMessage(), "imagectl machines replace gives its name to other hardware") {
		t.Errorf("arming a retired one: %v", o)
	}
	if o := r.replace("w1", ""); !o.GetOk() || !strings.Contains(o.GetMessage(), "imagectl machines approve w1 --code w1=CODE") {
		t.Fatal(o)
	}
	third := r.approvedMachine("w1", "52:54:00:00:00:02")
	third.sync(installer())
	if o := r.replace("nobody", ""); o.GetOk() || o.GetReasonCode() != codeUnknownName {
		t.Errorf("a machine that does not exist: %v", o)
	}
}

func TestRevokingCertificates(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1()))
	f := r.member("cp1", "52:54:00:00:00:01")
	issued, err := f.issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER, api.CertificateProfile_CERTIFICATE_PROFILE_KUBELET_BOOTSTRAP)
	if err != nil {
		t.Fatal(err)
	}
	serial := func(i int) string {
		c, err := pki.ParseCertificatePEM([]byte(issued.GetItems()[i].GetCertificatePem()))
		if err != nil {
			t.Fatal(err)
		}
		return pki.Serial(c)
	}
	colons := strings.ToUpper(serial(0)[:2] + ":" + serial(0)[2:]) // as openssl shows it
	for _, c := range []struct{ asked, code, message string }{
		{"4d", codeUnknownSerial, "there is no certificate 4d that has not ended; imagectl certs ls shows them"},
		{"operator/bob", codeUnknownSerial, "there is no certificate operator/bob that has not ended; imagectl certs ls shows them"},
		{colons, codeDone, "etcd refuses new connections with it once its node has called, open ones stay; the node gets another certificate by itself"},
		{serial(0), codeRevoked, "nothing is left to revoke"},
		{serial(1), codeDone, "Kubernetes cannot revoke: there it is good until its end"},
		{pki.Serial(f.cert.Leaf), codeDone, "the server refuses it now, nodes with their next call; the key of cp1 is refused too: install it again (imagectl machines arm cp1 --reinstall) to give it another"},
	} {
		if o := r.revokeSerials(c.asked)[0]; o.GetReasonCode() != c.code || o.GetMessage() != c.message || o.GetOk() != (c.code == codeDone) {
			t.Errorf("%s: got %v\nwant %s: %s", c.asked, o, c.code, c.message)
		}
	}
	// The key went with the certificate.
	if got := f.enrol(); got.GetReasonCode() != "enrol-rejected" {
		t.Errorf("the key of a revoked certificate: %v", got)
	}
	next := r.approvedMachine("cp1", "52:54:00:00:00:01")
	next.sync(installer())

	// A person, in the middle of a stream.
	cert, key, _, err := r.Operator(t.Context(), "eve", pki.RoleReader)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	eve := apiconnect.NewOperatorServiceClient(r.client(&pair), r.url)
	stream, err := eve.WatchMachines(t.Context(), connect.NewRequest(&api.WatchMachinesRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatalf("watching: %v", err)
	}
	defer stream.Close()
	if o := r.revokeSerials("operator/eve")[0]; !o.GetOk() {
		t.Fatal(o)
	}
	for stream.Receive() {
	}
	if connect.CodeOf(stream.Err()) != connect.CodeUnauthenticated || !strings.Contains(stream.Err().Error(), "an operator revoked it: stolen") {
		t.Errorf("the stream ended with %v", stream.Err())
	}
	if _, err := eve.ListMachines(t.Context(), connect.NewRequest(&api.ListMachinesRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a revoked operator: %v", err)
	}
	// The server's own: it makes itself another at once.
	before := r.certificates()
	if o := r.revokeSerials("server/imagectl")[0]; !o.GetOk() || !strings.Contains(o.GetMessage(), "the server makes itself another") {
		t.Fatal(o)
	}
	for _, c := range before {
		if c.GetHolder() == "server/imagectl" && c.GetSerial() == serverSerial(t, r) {
			t.Error("the server shows its revoked certificate")
		}
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// serverSerial is the serial number of what the server shows now.
func serverSerial(t *testing.T, r *rig) string {
	t.Helper()
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn, ok := c.(*tls.Conn)
	if !ok {
		t.Fatal("no TLS")
	}
	return pki.Serial(conn.ConnectionState().PeerCertificates[0])
}

// What is revoked while a request is under way gets nothing more: the transaction
// looks again.
func TestARevocationThatWasStoredFirstWins(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	from := caller{identity: pki.Identity{Cluster: "demo", Kind: pki.KindNode, Name: "w1"}, serial: pki.Serial(f.cert.Leaf), fingerprint: fingerprint(f.cert.Leaf)}
	standing := func() error {
		return r.change(t.Context(), from.actor(), func(c *change) error { return c.standing(from) })
	}
	if err := standing(); err != nil {
		t.Fatal(err)
	}
	r.revokeSerials(from.serial)
	if err := standing(); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a revoked certificate: %v", err)
	}
	from.serial = "40"
	if err := r.store.Change(t.Context(), func(tx *store.Tx) error {
		m, _, err := tx.Machine("w1")
		m.State = machine.Retired
		return orPut(tx, m, err)
	}); err != nil {
		t.Fatal(err)
	}
	if err := standing(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a retired machine: %v", err)
	}
}

func orPut(tx *store.Tx, m store.Machine, err error) error {
	if err != nil {
		return err
	}
	return tx.PutMachine(m)
}

// A node cannot make the server remember without bound.
func TestANodeGetsSoManyCertificatesAndNoMore(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	give := func(h holder, at time.Time) error {
		t.Helper()
		p, err := pki.KubeletBootstrap(pki.Machine{Cluster: "demo", Name: "w1"}, pki.Lifetimes{})
		if err != nil {
			t.Fatal(err)
		}
		issued, err := r.authority.kubernetes.Sign(p, own, at, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return r.change(t.Context(), r.self(), func(c *change) error {
			c.now = at
			return c.issued(h, caKubernetes, profileJoin, issued)
		})
	}
	if err := r.change(t.Context(), r.self(), func(c *change) error {
		full := make([]certificate, maxCertificates)
		for i := range full {
			full[i] = certificate{Serial: "40", CA: caKubernetes, NotAfter: now.Add(10 * time.Minute)}
		}
		return c.tx.PutValue(valueCertificates+"node/w1", full)
	}); err != nil {
		t.Fatal(err)
	}
	if err := give("node/w1", now); connect.CodeOf(err) != connect.CodeResourceExhausted || !strings.Contains(err.Error(), "node/w1 holds 256 certificates that have not ended and gets no more") {
		t.Errorf("one more: %v", err)
	}
	if err := give("node/w1", now.Add(keepEnded+time.Hour)); err != nil {
		t.Errorf("after they have ended: %v", err)
	}
}
