package serverapi

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/tpm/tpmtest"
)

// A diskless machine goes from approved to enrolled with nothing in between. At each start
// its TPM lets a new key in and the one before is refused; a second key within a start waits
// for a person, and so does every key once an operator has revoked one.
func TestADisklessMachineComesWithANewKeyAtEachStart(t *testing.T) {
	t.Parallel()
	own := tpmtest.New(t, "")
	m := w1()
	m.EK, m.Diskless = ekOf(t, own), true
	cfg := tpmConfig(cp1(), m)
	r := start(t, cfg)
	state := func(when string, want machine.State) {
		t.Helper()
		if got := r.store.State("w1"); got != want {
			t.Errorf("%s: it is %s, want %s", when, got, want)
		}
	}
	starts := func(when string) *prover {
		t.Helper()
		own.Off()
		own.On()
		p := r.withTPM(w1MAC, own)
		if got := p.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED || got.GetReasonCode() != enrol.CodeTPM {
			t.Fatalf("%s: %v", when, got)
		}
		p.sync(running())
		return p
	}
	if o := r.arm("w1", false); o.GetReasonCode() != codeDiskless || !strings.Contains(o.GetMessage(), "it is diskless: it starts from the network whenever it is switched on, and nothing is ever installed on it") {
		t.Errorf("arming it: %v", o)
	}
	if o := r.arm("w1", true); o.GetReasonCode() != codeDiskless {
		t.Errorf("arming it to be installed again: %v", o)
	}
	state("before its first start", machine.Approved)
	first := starts("the first start")
	state("after its first start", machine.Enrolled)

	// It joins, and is switched off and on.
	first.sync(joinedAs("1"))
	state("joined", machine.Ready)
	if o := r.arm("w1", false); o.GetReasonCode() != codeDiskless {
		t.Errorf("arming it when it has run: %v", o)
	}
	second := starts("the second start")
	state("after its second start", machine.Enrolled)
	if _, err := first.agent().Sync(t.Context(), connect.NewRequest(running())); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the key of the start before: %v", err)
	}

	another := r.withTPM(w1MAC, own)
	if got := another.prove(); got.GetReasonCode() != enrol.CodeKeyConflict || !strings.Contains(got.GetReason(), "which has brought a key since its last start") {
		t.Errorf("a second key in one start: %v", got)
	}
	second.sync(running()) // it is disturbed by nothing
	r.restart(cfg)
	third := starts("the third start, of another server")

	// Who was revoked does not come back by being switched off and on.
	resp, err := r.operator(pki.RoleAdmin).RevokeCertificates(t.Context(), connect.NewRequest(&api.RevokeCertificatesRequest{Serials: []string{"node/w1"}}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		t.Fatalf("revoking: %v, %v", resp, err)
	}
	if _, err := third.agent().Sync(t.Context(), connect.NewRequest(running())); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the revoked key: %v", err)
	}
	own.Off()
	own.On()
	fourth := r.withTPM(w1MAC, own)
	if got := fourth.prove(); got.GetStatus() != api.EnrolResponse_STATUS_PENDING || !strings.Contains(got.GetReason(), "whose key was withdrawn") {
		t.Errorf("started after it was revoked: %v", got)
	}
	if o := r.approve("w1", fourth.console(), false); !o.GetOk() {
		t.Fatalf("approving: %v", o)
	}
	if got := fourth.prove(); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("after a person has approved it: %v", got)
	}
	starts("the start after that")
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}
