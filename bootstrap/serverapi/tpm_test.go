package serverapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/tpm"
	"github.com/imagectl/imagectl/bootstrap/tpm/tpmtest"
)

// prover is a machine with a TPM that enrols by hand.
type prover struct {
	*fake
	device *tpm.Device
	claim  tpm.Claim
	// proven is the last request with a proof.
	proven *api.EnrolRequest
}

// withTPM makes a machine with a new key in a TPM.
func (r *rig) withTPM(mac string, v *tpmtest.TPM) *prover {
	r.t.Helper()
	device := v.Device()
	key, err := device.NewKey()
	if err != nil {
		r.t.Fatal(err)
	}
	claim, err := device.Claim()
	if err != nil {
		r.t.Fatal(err)
	}
	return &prover{fake: &fake{rig: r, mac: mac, key: key}, device: device, claim: claim}
}

func (p *prover) send(req *api.EnrolRequest) *api.EnrolResponse {
	p.t.Helper()
	resp, err := apiconnect.NewEnrolServiceClient(p.client(nil), p.url).Enrol(p.t.Context(), connect.NewRequest(req))
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.Msg
}

func (p *prover) request() *api.EnrolRequest {
	p.t.Helper()
	return &api.EnrolRequest{
		CsrDer: csr(p.t, p.key), Mode: api.Mode_MODE_INSTALLER, Tpm: &api.TpmClaim{EkPublic: p.claim.EK, AkPublic: p.claim.AK},
		Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: p.mac}}},
	}
}

// prove enrols and answers the challenge, if there is one.
func (p *prover) prove() *api.EnrolResponse {
	p.t.Helper()
	req := p.request()
	resp := p.send(req)
	ch := resp.GetTpmChallenge()
	if ch == nil {
		return resp
	}
	proof, err := p.device.Prove(tpm.Challenge{Nonce: ch.GetNonce(), Credential: ch.GetCredential(), Secret: ch.GetSecret()},
		p.signer().Certificate().RawSubjectPublicKeyInfo, p.key.(*tpm.Key))
	if err != nil {
		p.t.Fatal(err)
	}
	req.TpmProof = &api.TpmProof{
		Nonce: proof.Nonce, Activated: proof.Activated, KeyPublic: proof.Key, Certified: proof.Certified, CertifySignature: proof.CertifySignature,
		Quoted: proof.Quoted, QuoteSignature: proof.QuoteSignature, Pcrs: proof.PCRs,
	}
	p.proven = proto.CloneOf(req)
	resp = p.send(req)
	if resp.GetStatus() == api.EnrolResponse_STATUS_APPROVED {
		leaf, err := pki.ParseCertificatePEM([]byte(resp.GetCertificatePem()))
		if err != nil {
			p.t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(p.key.Public())
		if err != nil || !bytes.Equal(spki, leaf.RawSubjectPublicKeyInfo) {
			p.t.Errorf("the certificate is for another key: %v", err)
		}
		p.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: p.key, Leaf: leaf}
	}
	return resp
}

// ekOf is a TPM's name, as cluster.yaml has it.
func ekOf(t *testing.T, v *tpmtest.TPM) string {
	t.Helper()
	claim, err := v.Device().Claim()
	if err != nil {
		t.Fatal(err)
	}
	ek, err := claim.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	return ek
}

func tpmConfig(machines ...Machine) Config {
	cfg := config(machines...)
	cfg.TPM = true
	return cfg
}

const w1MAC, cp1MAC = "52:54:00:00:00:02", "52:54:00:00:00:01"

// A machine whose registers hold what cluster.yaml does not allow is refused, and no operator
// can accept its key; with the value that it has shown, it comes in.
func TestAMachineThatHasStartedSomethingElseIsRefused(t *testing.T) {
	t.Parallel()
	own := tpmtest.New(t, "")
	m := w1()
	m.EK = ekOf(t, own)
	cfg := tpmConfig(cp1(), m)
	allowed := strings.Repeat("ab", 32)
	cfg.PCRs = tpm.PCRPolicy{7: {allowed}}
	r := start(t, cfg)
	f := r.withTPM(w1MAC, own)
	got := f.prove()
	is := regexp.MustCompile(`^its register 7 \(the state of Secure Boot\) is ([0-9a-f]{64}), and cluster\.yaml allows ` + allowed + `; if it has started what it should, add that to identity\.tpm\.pcrs$`).FindStringSubmatch(got.GetReason())
	if got.GetReasonCode() != enrol.CodeTPMMeasured || is == nil {
		t.Fatalf("got %v", got)
	}
	if rec, _ := r.store.Machine("w1"); rec.Pending != nil {
		t.Errorf("it is remembered: %+v", rec.Pending)
	}
	cfg.PCRs[7] = append(cfg.PCRs[7], is[1])
	r.restart(cfg)
	if got := f.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("with its value allowed: %v", got)
	}
}

// A machine whose TPM cluster.yaml lists is let in without a person, with the key that
// is in that TPM, and nobody else is.
func TestAListedTPMLetsItsMachineIn(t *testing.T) {
	t.Parallel()
	own, other := tpmtest.New(t, ""), tpmtest.New(t, "")
	m := w1()
	m.EK = ekOf(t, own)
	cfg := tpmConfig(cp1(), m)
	r := start(t, cfg)

	// Others come first. None is remembered, none makes an alarm.
	thief := r.withTPM(w1MAC, other)
	if got := thief.prove(); got.GetReasonCode() != enrol.CodeTPMUnlisted || !strings.Contains(got.GetReason(), "and cluster.yaml says that w1 has "+m.EK) {
		t.Errorf("a foreign TPM: %v", got)
	}
	if got := r.machine(w1MAC).enrol(); got.GetReasonCode() != enrol.CodeTPMUnused {
		t.Errorf("no claim: %v", got)
	}
	if rec, _ := r.store.Machine("w1"); rec.Pending != nil || rec.State != machine.Approved {
		t.Errorf("the record: %+v", rec)
	}

	f := r.withTPM(w1MAC, own)
	got := f.prove()
	if got.GetStatus() != api.EnrolResponse_STATUS_APPROVED || got.GetMachine() != "w1" || got.GetReason() != "approved as w1 by its TPM" {
		t.Fatalf("the machine: %v", got)
	}
	// Its TLS key is in the TPM, and a certificate of its own lets it work.
	f.sync(installer())
	// The reply was lost: the same request again, and one without a proof.
	if again := f.send(f.proven); again.GetCertificatePem() != got.GetCertificatePem() {
		t.Errorf("the same request: %v", again)
	}
	if again := f.prove(); again.GetCertificatePem() != got.GetCertificatePem() {
		t.Errorf("the same key: %v", again)
	}
	list, err := r.operator(pki.RoleReader).ListMachines(t.Context(), connect.NewRequest(&api.ListMachinesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if v := list.Msg.GetMachines()[1].GetTpm(); v.GetEk() != m.EK || !v.GetAccepted() || len(v.GetAk()) != 64 || len(v.GetPcrs()) != len(tpm.PCRIndexes()) || v.GetResets() == 0 {
		t.Errorf("the view: %v", v)
	}

	// Another system on the machine has its TPM: a person decides.
	second := r.withTPM(w1MAC, own)
	if got := second.prove(); got.GetReasonCode() != enrol.CodeKeyConflict || got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Errorf("a second key: %v", got)
	}
	if got := second.prove(); got.GetTpmChallenge() != nil || got.GetReasonCode() != enrol.CodeKeyConflict {
		t.Errorf("a second key that asks again: %v", got)
	}
	if rec, _ := r.store.Machine("w1"); len(rec.Pending) != 1 {
		t.Errorf("the record: %+v", rec)
	}
	// After a restart all is known, and challenges of before are void.
	r.restart(cfg)
	if got := f.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("after a restart: %v", got)
	}
	late := second.proven
	if late == nil {
		t.Fatal("the second key has proven nothing")
	}
	if got := second.send(late); got.GetReasonCode() != tpm.CodeNonceForeign {
		t.Errorf("an answer to the server before the restart: %v", got)
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// Where no TPM is listed, an operator accepts one with the code; from then on it is the
// machine's, and no other machine's.
func TestAnOperatorAcceptsATPMWithTheCode(t *testing.T) {
	t.Parallel()
	own, other := tpmtest.New(t, ""), tpmtest.New(t, "")
	r := start(t, tpmConfig(cp1(), w1()))
	f, twin := r.withTPM(w1MAC, own), r.withTPM(cp1MAC, own)
	if got := f.prove(); got.GetReasonCode() != enrol.CodePending || !strings.Contains(got.GetReason(), "; its TPM is new here: tpm: {ek: ") {
		t.Fatalf("a new TPM: %v", got)
	}
	twin.prove()
	if o := r.approve("w1", f.console(), false); !o.GetOk() {
		t.Fatalf("approving: %v", o)
	}
	if o := r.approve("cp1", twin.console(), false); o.GetReasonCode() != enrol.CodeTPMElsewhere {
		t.Errorf("approving the same TPM for another machine: %v", o)
	}
	if got := f.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Fatalf("after the approval: %v", got)
	}

	// Armed again: the installer's new key needs nobody, if it is in the same TPM.
	if o := r.arm("w1", false); !o.GetOk() {
		t.Fatal(o)
	}
	if got := r.withTPM(w1MAC, other).prove(); got.GetReasonCode() != enrol.CodeTPMSwapped {
		t.Errorf("another TPM: %v", got)
	}
	next := r.withTPM(w1MAC, own)
	if got := next.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("the next installer: %v", got)
	}
	next.sync(installer())
	if got := f.send(f.proven); got.GetStatus() == api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("the key before, with its old proof: %v", got)
	}
	if _, err := f.agent().Sync(t.Context(), connect.NewRequest(installer())); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the certificate before: %v", err)
	}
	// The hardware goes to another name.
	if got := r.withTPM(cp1MAC, own).prove(); got.GetReasonCode() != enrol.CodeTPMElsewhere {
		t.Errorf("the same TPM as another machine: %v", got)
	}
	if _, err := r.operator(pki.RoleOperator).RetireMachine(t.Context(), connect.NewRequest(&api.RetireMachineRequest{Selection: &api.Selection{Names: []string{"w1"}}})); err != nil {
		t.Fatal(err)
	}
	if got := r.withTPM(cp1MAC, own).prove(); got.GetReasonCode() != enrol.CodePending {
		t.Errorf("after the first was retired: %v", got)
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// A TPM whose state was copied, as with a virtual machine's disk, counts less than the
// one that went on.
func TestACopiedTPMIsFoundOut(t *testing.T) {
	t.Parallel()
	own := tpmtest.New(t, "")
	m := w1()
	m.EK = ekOf(t, own)
	r := start(t, tpmConfig(m))
	own.Off()
	before := own.Save()
	own.On()
	own.Off()
	own.On()
	if got := r.withTPM(w1MAC, own).prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Fatal(got)
	}
	if o := r.arm("w1", false); !o.GetOk() {
		t.Fatal(o)
	}
	own.Off()
	own.Restore(before)
	own.On()
	if got := r.withTPM(w1MAC, own).prove(); got.GetReasonCode() != enrol.CodeTPMRolledBack {
		t.Errorf("a copy: %v", got)
	}
}

// The real agent with a TPM, against the real server.
func TestTheRealAgentProvesItselfByItsTPM(t *testing.T) {
	t.Parallel()
	node := hosttest.New(t)
	for name, text := range map[string]string{"/dev/console": "", "/proc/sys/kernel/random/boot_id": "boot-1\n", "/sys/class/dmi/id/product_serial": "W1-SERIAL\n"} {
		if err := node.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := w1()
	m.Serial = "W1-SERIAL"
	asked := make(chan Asked, 1000)
	cfg := tpmConfig(m)
	cfg.Asked = func(a Asked) { asked <- a }
	r := start(t, cfg)
	newAgent := func() *agent.Agent {
		return &agent.Agent{
			Host: node.Host, Log: slog.New(slog.DiscardHandler), Version: "test", Now: time.Now, Rand: rand.Reader, Jitter: func() float64 { return 0 },
			Config: nodeconf.Config{Cluster: "demo", Mode: nodeconf.Installer, Servers: []string{r.url}, CA: string(r.CAPEM()), TPM: true},
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- newAgent().Run(ctx) }()
	answer := func(code string) Asked {
		t.Helper()
		end := time.After(3 * time.Minute)
		for {
			select {
			case a := <-asked:
				if a.Code == code {
					return a
				}
			case err := <-done:
				t.Fatalf("the agent ended: %v", err)
			case <-end:
				console, err := node.ReadFile("/dev/console")
				t.Fatalf("nobody was told %s; the console says (%v):\n%s", code, err, console)
			}
		}
	}
	answer(enrol.CodeTPMAbsent)
	// Its driver comes late.
	v := tpmtest.New(t, node.Root)
	answer(enrol.CodePending)
	rec, _ := r.store.Machine("w1")
	if o := r.approve("w1", rec.Pending[0].Code, false); !o.GetOk() {
		t.Fatal(o)
	}
	answer(enrol.CodeApproved)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	file, err := node.ReadFile(agent.KeyPath)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Device().OpenKey(file); err != nil || strings.Contains(string(file), "BEGIN PRIVATE KEY") {
		t.Errorf("the key's file: %v\n%s", err, file)
	}

	// The disk in another machine.
	stolen := newAgent()
	stolenNode := hosttest.New(t)
	stolen.Host = stolenNode.Host
	tpmtest.New(t, stolenNode.Root)
	for name, text := range map[string][]byte{agent.KeyPath: file, "/dev/console": nil, "/proc/sys/kernel/random/boot_id": []byte("boot-1\n")} {
		if err := stolenNode.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := stolen.Run(t.Context()); !errors.Is(err, tpm.ErrForeignKey) {
		t.Errorf("a stolen disk: %v", err)
	}
	console, err := stolenNode.ReadFile("/dev/console")
	if err != nil || !strings.Contains(string(console), "imagectl: reading the agent's key /var/lib/imagectl/agent.key: opening a TPM's key: the key belongs to another TPM") {
		t.Errorf("its console (%v):\n%s", err, console)
	}
}
