package serverapi

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/agent"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/tpm/tpmtest"
)

// clock is a server's clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now().Truncate(time.Second)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// said is what a machine was told.
func said(r *api.EnrolResponse) string {
	return fmt.Sprintf("%s %s: %s", strings.ToLower(strings.TrimPrefix(r.GetStatus().String(), "STATUS_")), r.GetReasonCode(), r.GetReason())
}

// timeless is what was said without a time that it should name.
func timeless(s string, at time.Time) string {
	return strings.ReplaceAll(s, at.UTC().Format(time.DateTime+" MST"), "TIME")
}

// Whoever should not get in does not, and is told why in these words.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		// try returns what was said, with what differs from run to run replaced.
		try  func(*testing.T) string
		want string
	}{
		{"a token that another key has used", func(t *testing.T) string {
			r, c := tokenRig(t)
			token := r.token("w1", false)
			r.machine(w1MAC).presented(token)
			return timeless(said(r.machine(w1MAC).presented(token)), c.Now())
		}, "pending token-reused: another key used the token at TIME; if w1 was not installed anew, somebody has copied it; imagectl machines config --token w1 makes another; an operator can still compare the code: imagectl machines approve w1 --replace-key"},
		{"a token that this key has used before it was replaced", func(t *testing.T) string {
			r, c := tokenRig(t)
			token := r.token("w1", false)
			first, second := r.machine(w1MAC), r.machine(w1MAC)
			first.presented(token)
			second.enrol()
			if o := r.approve("w1", second.console(), true); !o.GetOk() {
				t.Fatal(o)
			}
			return timeless(said(first.presented(token)), c.Now())
		}, "pending token-replayed: this key used the token at TIME and was replaced or withdrawn since; imagectl machines config --token w1 makes another; an operator can still compare the code: imagectl machines approve w1 --replace-key"},
		{"a token that was made for another machine", func(t *testing.T) string {
			r, _ := tokenRig(t)
			return said(r.machine(cp1MAC).presented(r.token("w1", false)))
		}, "pending token-foreign: the token is for w1, and by its hardware this machine is cp1; imagectl machines config --token cp1 makes another; an operator can still compare the code: imagectl machines approve cp1"},
		{"a token that is too old", func(t *testing.T) string {
			r, c := tokenRig(t)
			token, end := r.token("w1", false), c.Now().Add(tokenMinutes*time.Minute)
			c.pass(16 * time.Minute)
			return timeless(said(r.machine(w1MAC).presented(token)), end)
		}, "pending token-expired: the token for w1 expired at TIME; imagectl machines config --token w1 makes another; an operator can still compare the code: imagectl machines approve w1"},
		{"a token that a newer one replaced", func(t *testing.T) string {
			r, _ := tokenRig(t)
			token := r.token("w1", false)
			r.token("w1", false)
			return said(r.machine(w1MAC).presented(token))
		}, "pending token-unknown: there is no such token for w1, or a newer one took its place; imagectl machines config --token w1 makes another; an operator can still compare the code: imagectl machines approve w1"},
		{"a request with wishes in it gets what the server gives", func(t *testing.T) string {
			r, _ := tokenRig(t)
			f := r.machine(w1MAC)
			der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
				Subject:  pkix.Name{CommonName: "kubernetes-admin", Organization: []string{"system:masters", "imagectl:admin"}},
				DNSNames: []string{"evil.example"}, IPAddresses: []net.IP{{10, 96, 0, 1}},
				ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // CA:TRUE
			}, f.key)
			if err != nil {
				t.Fatal(err)
			}
			got := f.ask(der, r.token("w1", false))
			leaf, err := pki.ParseCertificatePEM([]byte(got.GetCertificatePem()))
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("%s; subject %s, names %v %v %v, CA %v", said(got), leaf.Subject, leaf.DNSNames, leaf.IPAddresses, leaf.URIs, leaf.IsCA)
		}, "approved enrol-token: approved as w1 by its token; subject CN=w1, names [w1] [] [imagectl://demo/node/w1], CA false"},
		{"a request that its key has not signed", func(t *testing.T) string {
			r, _ := tokenRig(t)
			f := r.machine(w1MAC)
			der := csr(t, f.key)
			der[len(der)-1] ^= 1
			return f.askError(der)
		}, "invalid_argument: parsing certificate request: no proof of possession: x509: ECDSA verification failure"},
		{"a copy of a TPM after the original went on", func(t *testing.T) string {
			own := tpmtest.New(t, "")
			own.Off()
			before := own.Save()
			own.On()
			own.Off()
			own.On()
			m := w1()
			m.EK = ekOf(t, own)
			r := start(t, tpmConfig(m))
			r.withTPM(w1MAC, own).prove()
			if o := r.arm("w1", false); !o.GetOk() {
				t.Fatal(o)
			}
			own.Off()
			own.Restore(before)
			own.On()
			return said(r.withTPM(w1MAC, own).prove())
		}, "pending tpm-set-back: its TPM counts 2 starts now and counted 3 before: somebody has copied it, set it back or cleared it; if its mainboard was replaced: imagectl machines replace w1"},
		{"the TPM of another machine", func(t *testing.T) string {
			own := tpmtest.New(t, "")
			m := w1()
			m.EK = ekOf(t, own)
			r := start(t, tpmConfig(cp1(), m))
			r.withTPM(w1MAC, own).prove()
			return strings.ReplaceAll(said(r.withTPM(cp1MAC, own).prove()), m.EK, "EK")
		}, "pending tpm-of-another-machine: by its hardware this machine is cp1, and its TPM (EK) belongs to w1: a network card was moved, or a virtual machine was cloned with its TPM; if it has another name now: imagectl machines retire w1"},
		{"another TPM in an enrolled machine", func(t *testing.T) string {
			own, other := tpmtest.New(t, ""), tpmtest.New(t, "")
			r := start(t, tpmConfig(w1()))
			f := r.withTPM(w1MAC, own)
			f.prove()
			if o := r.approve("w1", f.console(), false); !o.GetOk() {
				t.Fatal(o)
			}
			return strings.NewReplacer(ekOf(t, own), "EK", ekOf(t, other), "OTHER").Replace(said(r.withTPM(w1MAC, other).prove()))
		}, "pending tpm-swapped-ek: its TPM is OTHER, and w1 was enrolled with EK; if its mainboard was replaced: imagectl machines replace w1"},
		{"another TPM than cluster.yaml lists", func(t *testing.T) string {
			own, other := tpmtest.New(t, ""), tpmtest.New(t, "")
			m := w1()
			m.EK = ekOf(t, own)
			r := start(t, tpmConfig(m))
			return strings.NewReplacer(m.EK, "EK", ekOf(t, other), "OTHER").Replace(said(r.withTPM(w1MAC, other).prove()))
		}, "pending tpm-foreign-ek: its TPM is OTHER, and cluster.yaml says that w1 has EK"},
		{"a disk in another machine with its key in the TPM of the first", func(t *testing.T) string {
			first, second := hosttest.New(t), hosttest.New(t)
			tpmtest.New(t, first.Root)
			tpmtest.New(t, second.Root)
			r := start(t, tpmConfig(w1()))
			a := r.agent(first, string(r.CAPEM()))
			a.Config.TPM = true
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			line(t, first, `CODE +(\S+)`)
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			key, err := first.ReadFile(agent.KeyPath)
			if err != nil {
				t.Fatal(err)
			}
			thief := r.agent(second, string(r.CAPEM()))
			thief.Config.TPM = true
			if err := second.MkdirAll(agent.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := second.WriteFile(agent.KeyPath, key, 0o600); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprint(thief.Run(t.Context()))
		}, "reading the agent's key /var/lib/imagectl/agent.key: opening a TPM's key: the key belongs to another TPM: this disk comes from another machine, or the mainboard or its TPM was replaced or reset; install the machine again (TPM_RC_INTEGRITY (parameter 1): integrity check failed)"},
		{"a disk in another machine with its key in a file", func(t *testing.T) string {
			r, _ := tokenRig(t)
			f := r.approvedMachine("w1", w1MAC)
			thief := &fake{rig: r, mac: cp1MAC, key: f.key}
			return said(thief.enrol())
		}, "pending enrol-pending: waiting for an operator to compare the code: imagectl machines approve cp1"},
		{"a certificate that was revoked", func(t *testing.T) string {
			r, c := tokenRig(t)
			f := r.approvedMachine("w1", w1MAC)
			serial := pki.Serial(f.cert.Leaf)
			r.revokeSerials(serial)
			_, err := f.agent().Sync(t.Context(), connect.NewRequest(installer()))
			return strings.NewReplacer(serial, "SERIAL", c.Now().UTC().Format(time.RFC3339), "TIME").Replace(fmt.Sprint(err))
		}, "unauthenticated: the client certificate (serial SERIAL) was revoked at TIME: an operator revoked it: stolen"},
		{"the certificate of a key that was replaced", func(t *testing.T) string {
			r, c := tokenRig(t)
			f, second := r.approvedMachine("w1", w1MAC), r.machine(w1MAC)
			serial := pki.Serial(f.cert.Leaf)
			second.enrol()
			if o := r.approve("w1", second.console(), true); !o.GetOk() {
				t.Fatal(o)
			}
			_, err := f.agent().Sync(t.Context(), connect.NewRequest(installer()))
			return strings.NewReplacer(serial, "SERIAL", c.Now().UTC().Format(time.RFC3339), "TIME").Replace(fmt.Sprint(err))
		}, "unauthenticated: the client certificate (serial SERIAL) was revoked at TIME: the machine's key was replaced"},
		{"a certificate of a CA with the same name", func(t *testing.T) string {
			r, _ := tokenRig(t)
			ca, err := pki.NewCA("imagectl demo", 24*time.Hour, time.Hour, time.Now(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			cert := signed(t, ca, pki.RoleAdmin)
			// TLS 1.3's client hears of it after its handshake; who writes first sees the
			// connection end instead.
			for {
				_, err = apiconnect.NewOperatorServiceClient(r.client(cert), r.url).Status(t.Context(), connect.NewRequest(&api.StatusRequest{}))
				if alert := new(net.OpError); errors.As(err, &alert) && alert.Op == "remote error" || err == nil || t.Context().Err() != nil {
					return fmt.Sprint(alert)
				}
			}
		}, "remote error: tls: unknown certificate authority"},
		{"a server with another CA to the agent", func(t *testing.T) string {
			r, _ := tokenRig(t)
			ca, err := pki.NewCA("imagectl demo", 24*time.Hour, time.Hour, time.Now(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			node := hosttest.New(t)
			a := r.agent(node, string(ca.CertificatePEM()))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- a.Run(ctx) }()
			out := line(t, node, `status +(no server answers[^\r\n]*)`)
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if m, _ := r.store.Machine("w1"); m.Pending != nil {
				t.Errorf("it asked all the same: %+v", m)
			}
			return out
		}, "no server answers: unavailable: verifying the server: x509: certificate signed by unknown authority (possibly because of \"x509: ECDSA verification failure\" while trying to verify candidate authority certificate \"imagectl demo\")"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if got := row.try(t); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
		})
	}
}

// tokenRig takes tokens and has a clock of its own.
func tokenRig(t *testing.T) (*rig, *clock) {
	t.Helper()
	c := newClock()
	cfg := config(cp1(), w1())
	cfg.Tokens, cfg.Now = true, c.Now
	return start(t, cfg), c
}

// ask enrols with any request.
func (f *fake) ask(der []byte, token string) *api.EnrolResponse {
	f.t.Helper()
	resp, err := f.request(der, token)
	if err != nil {
		f.t.Fatal(err)
	}
	return resp.Msg
}

func (f *fake) askError(der []byte) string {
	_, err := f.request(der, "")
	return fmt.Sprint(err)
}

func (f *fake) request(der []byte, token string) (*connect.Response[api.EnrolResponse], error) {
	return apiconnect.NewEnrolServiceClient(f.client(nil), f.url).Enrol(f.t.Context(), connect.NewRequest(&api.EnrolRequest{
		CsrDer: der, Mode: api.Mode_MODE_INSTALLER, Token: token, Facts: &api.Facts{Interfaces: []*api.NetworkInterface{{Name: "eth0", Mac: f.mac}}},
	}))
}

// agent is a real one that trusts a CA, on a host that is a directory.
func (r *rig) agent(node *hosttest.Node, ca string) *agent.Agent {
	r.t.Helper()
	for name, text := range map[string]string{"/dev/console": "", "/proc/sys/kernel/random/boot_id": "boot-1\n"} {
		if err := node.WriteFile(name, []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	return &agent.Agent{
		Host: node.Host, Log: slog.New(slog.DiscardHandler), Version: "test", Now: time.Now, Rand: rand.Reader, Jitter: func() float64 { return 0 },
		Config: nodeconf.Config{Cluster: "demo", Mode: nodeconf.Installer, Servers: []string{r.url}, CA: ca},
	}
}

// line waits for a line on a console and returns its part in brackets.
func line(t *testing.T, node *hosttest.Node, re string) string {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		b, err := node.ReadFile("/dev/console")
		if err != nil {
			t.Fatal(err)
		}
		if found := regexp.MustCompile(re).FindStringSubmatch(string(b)); found != nil {
			return found[1]
		}
		if time.Now().After(end) {
			t.Fatalf("the console never said %s:\n%s", re, b)
		}
	}
}
