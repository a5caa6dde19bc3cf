package serverapi

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

func (r *rig) token(name string, replace bool) string {
	r.t.Helper()
	resp, err := r.operator(pki.RoleOperator).IssueToken(r.t.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: name, ReplaceKey: replace}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetToken()
}

// present enrols with a token.
func (f *fake) present(token string) (*api.EnrolResponse, error) {
	resp, err := apiconnect.NewEnrolServiceClient(f.client(nil), f.url).Enrol(f.t.Context(), connect.NewRequest(&api.EnrolRequest{
		CsrDer: csr(f.t, f.key), Mode: api.Mode_MODE_NODE, Token: token,
		Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: f.mac}}},
	}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (f *fake) presented(token string) *api.EnrolResponse {
	f.t.Helper()
	resp, err := f.present(token)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp
}

// A token lets one key in, atomically: of many that come at once, one. The same key
// may ask again; a second one is an alarm and disturbs nothing.
func TestATokenLetsOneKeyIn(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	cfg.Tokens = true
	r := start(t, cfg)
	token := r.token("w1", false)
	const mac = "52:54:00:00:00:02"

	var all []*fake
	for range 6 {
		all = append(all, r.machine(mac))
	}
	answers := make([]*api.EnrolResponse, len(all))
	var wg sync.WaitGroup
	for i, f := range all {
		wg.Go(func() {
			// The store may have been too busy with the others; then it asks again.
			for range 50 {
				var err error
				if answers[i], err = f.present(token); err == nil {
					return
				}
			}
			t.Error("no answer")
		})
	}
	wg.Wait()
	var winner *fake
	for i, a := range answers {
		switch {
		case a.GetStatus() == api.EnrolResponse_STATUS_APPROVED && winner == nil:
			winner = all[i]
		case a.GetStatus() == api.EnrolResponse_STATUS_APPROVED:
			t.Error("two keys got in")
		case a.GetReasonCode() != "token-reused":
			t.Errorf("a second key: %v", a)
		}
	}
	if winner == nil {
		t.Fatal("nobody got in")
	}
	first := winner.presented(token)
	if again := winner.presented(token); again.GetCertificatePem() == "" || again.GetCertificatePem() != first.GetCertificatePem() {
		t.Errorf("a lost reply: %v", again)
	}
	winner.enrol()
	winner.sync(installer())
	m, _ := r.store.Machine("w1")
	if m.Key == nil || m.Key.ApprovedBy != "ada by token" || m.Token.UsedBy != m.Key.Fingerprint || len(m.Pending) == 0 {
		t.Errorf("the record: %+v", m)
	}
	status, err := r.operator(pki.RoleReader).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
	if err != nil || !strings.Contains(strings.Join(status.Msg.GetNotes(), "\n"), "alarm: 1 machines are claimed by a second key") {
		t.Errorf("status: %v, %v", status, err)
	}

	// Another machine's token, and one that replaces the key.
	c := r.machine("52:54:00:00:00:01")
	if got := c.presented(token); got.GetReasonCode() != "token-foreign" {
		t.Errorf("another machine: %v", got)
	}
	next, again := r.machine(mac), r.token("w1", true)
	if got := next.presented(again); got.GetStatus() != api.EnrolResponse_STATUS_APPROVED {
		t.Errorf("the token that may replace the key: %v", got)
	}
	if got := winner.presented(token); got.GetReasonCode() != "token-unknown" {
		t.Errorf("the first key with the first token: %v", got)
	}
	if _, err := winner.agent().Sync(t.Context(), connect.NewRequest(installer())); err == nil || !strings.Contains(err.Error(), "the machine's key was replaced") {
		t.Errorf("the first key's certificate: %v", err)
	}
	// A restart forgets nothing.
	r.restart(cfg)
	last := r.machine(mac)
	if got := last.presented(again); got.GetReasonCode() != "token-reused" {
		t.Errorf("after a restart: %v", got)
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
	// Neither the state directory nor the audit log has the secret.
	r.stop()
	r.stop = func() {}
	for _, secret := range []string{token, again} {
		_, random, _ := strings.Cut(secret, ".")
		if err := filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte(random)) {
				t.Errorf("%s holds a token, or cannot be read: %v", path, err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestTokensAreMadeForMachinesThatMayHaveOne(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	cfg.Tokens = true
	now := time.Now()
	var mu sync.Mutex
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	r := start(t, cfg)
	issue := func(req *api.IssueTokenRequest) error {
		_, err := r.operator(pki.RoleOperator).IssueToken(t.Context(), connect.NewRequest(req))
		return err
	}
	check := func(err error, want string) {
		t.Helper()
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	check(issue(&api.IssueTokenRequest{Machine: "w2"}), `not_found: cluster.yaml does not list "w2"; imagectl machines ls shows what it lists`)
	check(issue(&api.IssueTokenRequest{Machine: "w1", Minutes: 61}), "invalid_argument: 61 minutes exceed 60: a token is for a machine that starts now")
	token := r.token("w1", false)
	mu.Lock()
	now = now.Add(16 * time.Minute)
	mu.Unlock()
	late := r.machine("52:54:00:00:00:02")
	if got := late.presented(token); got.GetReasonCode() != "token-expired" || got.GetStatus() != api.EnrolResponse_STATUS_PENDING {
		t.Errorf("too late: %v", got)
	}
	// It waits for an operator, as without a token.
	if o := r.approve("w1", late.console(), false); !o.GetOk() {
		t.Error(o)
	}
	check(issue(&api.IssueTokenRequest{Machine: "w1"}), "failed_precondition: w1 has an approved key; if this machine is made anew, say --replace-key")
	r.retire("w1", "")
	check(issue(&api.IssueTokenRequest{Machine: "w1", ReplaceKey: true}), "failed_precondition: w1 was retired; imagectl machines replace w1 gives its name to other hardware")

	plain := start(t, config(w1()))
	_, err := plain.operator(pki.RoleAdmin).IssueToken(t.Context(), connect.NewRequest(&api.IssueTokenRequest{Machine: "w1"}))
	check(err, "failed_precondition: cluster.yaml takes no tokens; set identity.policy: token and restart imagectl serve")
}
