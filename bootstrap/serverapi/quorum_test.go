package serverapi

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// replaceKeys approves other keys for machines, in one command.
func (r *rig) replaceKeys(force bool, keys map[string]*fake, names ...string) []*api.Outcome {
	r.t.Helper()
	codes := map[string]string{}
	for _, name := range names {
		codes[name] = keys[name].console()
	}
	resp, err := r.operator(pki.RoleOperator).ApproveMachine(r.t.Context(), connect.NewRequest(&api.ApproveMachineRequest{
		Selection: &api.Selection{Names: names}, Codes: codes, ReplaceKey: true, Force: force}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()
}

// askAgain has machines ask with other keys.
func askAgain(r *rig, all []Machine) map[string]*fake {
	keys := map[string]*fake{}
	for _, m := range all {
		keys[m.Name] = r.machine(m.MACs[0])
		keys[m.Name].enrol()
	}
	return keys
}

const costs = "its certificates are revoked with its key, etcd's too: without cp1 1 of 3 etcd voters are healthy, quorum is 2, not healthy: cp3: nothing can be written until it has a certificate again; --force does it all the same"

// A voter loses its certificates of etcd with its key: not while the others need it, unless somebody
// says so, and not two voters at once.
func TestReplacingAVotersKeyKeepsTheQuorum(t *testing.T) {
	t.Parallel()
	r, all, _ := controlPlanes(t, "cp1", "cp2", "cp3")
	keys := askAgain(r, all)
	r.board.forget("cp3")
	if o := r.replaceKeys(false, keys, "cp1")[0]; o.GetReasonCode() != "would-lose-etcd" || o.GetMessage() != costs {
		t.Errorf("while cp3 is away: %v", o)
	}
	if m, _ := r.store.Machine("cp1"); m.Key == nil || len(m.Pending) != 1 {
		t.Errorf("it is refused, and the record is %+v", m)
	}
	if o := r.replaceKeys(false, keys, "cp3")[0]; !o.GetOk() {
		t.Errorf("the one that is away: %v", o)
	}
	if o := r.replaceKeys(true, keys, "cp1")[0]; !o.GetOk() {
		t.Errorf("forced: %v", o)
	}
	if o := r.replaceKeys(false, keys, "cp2")[0]; o.GetReasonCode() != "would-lose-etcd" {
		t.Errorf("the last one, and the others have not called by their new keys: %v", o)
	}
}

func TestTwoVotersKeysAreNotReplacedAtOnce(t *testing.T) {
	t.Parallel()
	r, all, _ := controlPlanes(t, "cp1", "cp2", "cp3")
	keys := askAgain(r, all)
	out := r.replaceKeys(false, keys, "cp1", "cp2", "cp3")
	if !out[0].GetOk() || out[1].GetReasonCode() != "would-lose-etcd" || out[2].GetReasonCode() != "would-lose-etcd" {
		t.Errorf("all in one command: %v", out)
	}
}

// What was armed was judged when it was armed, and has no data any more.
func TestAnArmedVotersKeyIsReplaced(t *testing.T) {
	t.Parallel()
	r, all, _ := controlPlanes(t, "cp1", "cp2", "cp3")
	if o := r.arm("cp1", true); !o.GetOk() {
		t.Fatal(o)
	}
	keys := askAgain(r, all[:1])
	r.board.forget("cp3")
	if m, _ := r.store.Machine("cp1"); m.State != machine.Armed {
		t.Fatalf("it is %s", m.State)
	}
	if o := r.replaceKeys(false, keys, "cp1")[0]; !o.GetOk() {
		t.Error(o)
	}
}

// A token that may replace a key does not cost the quorum either, neither when it is made nor when
// it is used.
func TestATokenKeepsTheQuorum(t *testing.T) {
	t.Parallel()
	r, all, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	cfg := config(all...)
	cfg.Tokens = true
	r.restart(cfg)
	call := func(names ...string) {
		for _, name := range names {
			nodes[name].sync(voter("cp1", "cp2", "cp3"))
		}
	}
	call("cp1", "cp2")
	issue := func(force bool) (string, error) {
		resp, err := r.operator(pki.RoleOperator).IssueToken(t.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: "cp1", ReplaceKey: true, Force: force}))
		if err != nil {
			return "", err
		}
		return resp.Msg.GetToken(), nil
	}
	_, err := issue(false)
	refusedWith(t, "made while cp3 is away", err, "failed_precondition: cp1 (would-lose-etcd): "+costs)
	call("cp3")
	token, err := issue(false)
	if err != nil {
		t.Fatal(err)
	}
	r.board.forget("cp3")
	next := r.machine(all[0].MACs[0])
	for range 2 {
		got := next.presented(token)
		if got.GetReasonCode() != "would-lose-etcd" || got.GetStatus() != api.EnrolResponse_STATUS_PENDING || got.GetReason() != costs+"; an operator can: imagectl machines approve cp1 --replace-key --force" {
			t.Errorf("used while cp3 is away: %v", got)
		}
	}
	if m, _ := r.store.Machine("cp1"); len(m.Pending) != 1 || m.Token.UsedBy != "" {
		t.Errorf("the record: %+v", m)
	}
	call("cp3")
	if got := next.presented(token); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("used when it is back: %v", got)
	}
	if _, seen := r.board.get("cp1"); seen {
		t.Error("what it said by the key before counts still")
	}
	// By a word of somebody who knows what it costs, it lets in another one all the same.
	r.board.forget("cp3")
	if token, err = issue(true); err != nil {
		t.Fatalf("forced: %v", err)
	}
	if got := r.machine(all[0].MACs[0]).presented(token); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("a forced one, used while cp3 is away: %v", got)
	}
}

// Revoking is never refused; it says what it costs, and that a node without its key gets nothing more.
func TestRevokingAVoterSaysWhatItCosts(t *testing.T) {
	t.Parallel()
	r, _, nodes := controlPlanes(t, "cp1", "cp2", "cp3")
	if _, err := nodes["cp1"].issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER); err != nil {
		t.Fatal(err)
	}
	const want = "etcd refuses new connections with it once its node has called, open ones stay; the node gets no other one before a key of it is approved again; without cp1 2 of 3 etcd voters are healthy, quorum is 2"
	if o := r.revokeSerials("node/cp1")[0]; !o.GetOk() || !strings.HasSuffix(o.GetMessage(), want) {
		t.Errorf("got  %s\nwant …%s", o.GetMessage(), want)
	}
	if _, err := nodes["cp2"].issue(api.CertificateProfile_CERTIFICATE_PROFILE_ETCD_PEER); err != nil {
		t.Fatal(err)
	}
	r.board.forget("cp1")
	if o := r.revokeSerials("node/cp2")[0]; !o.GetOk() || !strings.HasSuffix(o.GetMessage(), "; without cp2 1 of 3 etcd voters are healthy, quorum is 2, not healthy: cp1: nothing can be written until it has a certificate again") {
		t.Errorf("got %s", o.GetMessage())
	}
}
