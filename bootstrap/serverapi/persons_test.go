package serverapi

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// human is a person with an own key.
type human struct {
	*rig
	name string
	key  crypto.Signer
	cert *tls.Certificate
}

func (r *rig) human(name string) *human {
	r.t.Helper()
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return &human{rig: r, name: name, key: key}
}

func (h *human) has(certificatePEM string) {
	h.t.Helper()
	leaf, err := pki.ParseCertificatePEM([]byte(certificatePEM))
	if err != nil {
		h.t.Fatal(err)
	}
	h.cert = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: h.key, Leaf: leaf}
}

func (h *human) calls() apiconnect.OperatorServiceClient {
	return apiconnect.NewOperatorServiceClient(h.client(h.cert), h.url)
}

// renew asks for another certificate, with no more than the key.
func (h *human) renew() error {
	h.t.Helper()
	client, on, err := OneConnection(h.t.Context(), h.url, h.client(nil).Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		h.t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	der, err := pki.RenewalRequest(h.key, on, rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := h.resend(client, der)
	if err == nil {
		h.has(resp.Msg.GetCertificatePem())
	}
	return err
}

// resend sends a request to be given another certificate.
func (r *rig) resend(client *http.Client, der []byte) (*connect.Response[api.RenewOperatorResponse], error) {
	return apiconnect.NewEnrolServiceClient(client, r.url).RenewOperator(r.t.Context(), connect.NewRequest(&api.RenewOperatorRequest{CsrDer: der}))
}

// let has somebody add this person.
func (h *human) let(by apiconnect.OperatorServiceClient, role pki.Role, replace bool) error {
	h.t.Helper()
	resp, err := by.AddOperator(h.t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: h.name, Role: string(role), CsrDer: csr(h.t, h.key), Replace: replace}))
	if err == nil {
		h.has(resp.Msg.GetCertificatePem())
	}
	return err
}

// local is whoever starts the server.
func (r *rig) local(name string) (apiconnect.OperatorServiceClient, error) {
	r.t.Helper()
	cert, key, _, err := r.Local(r.t.Context(), name)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return apiconnect.NewOperatorServiceClient(r.client(&pair), r.url), nil
}

func (r *rig) revokeOperator(by apiconnect.OperatorServiceClient, name string) *api.Outcome {
	r.t.Helper()
	resp, err := by.RevokeOperators(r.t.Context(), connect.NewRequest(&api.RevokeOperatorsRequest{Names: []string{name}, Reason: "left us"}))
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.Msg.GetOutcomes()[0]
}

func refusedWith(t *testing.T, what string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v\nwant %s", what, err, want)
	}
}

// Every call × every role of a person with an own key × revoked: on open and on new
// connections, and whatever the person asks for again.
func TestAPersonIsWhatTheRoleSaysAndNothingWhenRevoked(t *testing.T) {
	t.Parallel()
	r := start(t, config(cp1(), w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	want, all := whoMay(), procedures()
	for _, role := range pki.Roles() {
		h := r.human("person-" + string(role))
		refusedWith(t, "before", h.renew(), "permission_denied: this key is no operator's")
		if err := h.let(root, role, false); err != nil {
			t.Fatal(err)
		}
		if err := h.renew(); err != nil {
			t.Fatal(err)
		}
		id, err := pki.IdentityOf(h.cert.Leaf, "demo")
		if err != nil || id.Name != h.name || id.Role != role {
			t.Fatalf("got %v, %v", id, err)
		}
		open := r.client(h.cert)
		for _, p := range all {
			if got := try(t, open, r.url, p); got != want[p][string(role)] {
				t.Errorf("%s calls %s: got %s, want %s", h.name, p, got, want[p][string(role)])
			}
		}
		if o := r.revokeOperator(root, h.name); !o.GetOk() || o.GetState() != "revoked" {
			t.Fatal(o)
		}
		for name, client := range map[string]func(string) string{
			"an open connection": func(p string) string { return try(t, open, r.url, p) },
			"a new connection":   func(p string) string { return try(t, r.client(h.cert), r.url, p) },
		} {
			for _, p := range all {
				if got := client(p); got != "unauthenticated" {
					t.Errorf("%s, revoked, calls %s on %s: got %s", h.name, p, name, got)
				}
			}
		}
		refusedWith(t, "renewing", h.renew(), "permission_denied: operator "+h.name+" was revoked at ")
		refusedWith(t, "adding the same key", h.let(root, role, true), "failed_precondition: this key of operator "+h.name+" was revoked; make another")
		if _, err := r.local(h.name); err == nil {
			t.Error("starting the server under a revoked name lets it in")
		}
	}
	if _, err := r.VerifyAudit(t.Context()); err != nil {
		t.Error(err)
	}
}

// The first operator comes in by starting the server, and nobody else while there is an
// admin; a revoked one never again, and another name when no admin is left.
func TestOnlyTheFirstOperatorComesInByStartingTheServer(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	r := start(t, cfg)
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.local("mallory")
	refusedWith(t, "a second one", err, "mallory is no operator of this cluster; make a key with imagectl operators request, and have it added by root")
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	_, err = r.local("ada")
	refusedWith(t, "one with an own key", err, "operator ada has an own key and needs no context file of this machine")
	r.restart(cfg)
	if _, err := r.local("root"); err != nil {
		t.Errorf("the first one, at the next start: %v", err)
	}
	if o := r.revokeOperator(ada.calls(), "root"); !o.GetOk() || strings.Contains(o.GetMessage(), "no admin is left") {
		t.Error(o)
	}
	r.restart(cfg)
	_, err = r.local("root")
	refusedWith(t, "revoked, at the next start", err, "operator root was revoked at ")
	refusedWith(t, "revoked, at the next start", err, ": an operator revoked it: left us")
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("got %v", err)
	}
	if o := r.revokeOperator(ada.calls(), "ada"); !o.GetOk() || !strings.HasSuffix(o.GetMessage(), "no admin is left: start imagectl serve with --operator and another name") {
		t.Error(o)
	}
	_, err = r.local("root")
	refusedWith(t, "revoked, without an admin", err, "operator root was revoked at ")
	if _, err := r.local("eve"); err != nil {
		t.Errorf("the way back in: %v", err)
	}
	resp, err := r.operator(pki.RoleReader).ListOperators(t.Context(), connect.NewRequest(&api.ListOperatorsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range resp.Msg.GetOperators() {
		line := p.GetName() + " " + p.GetRole()
		if p.GetLocal() {
			line += " local"
		}
		if p.GetRevokedAt() != nil {
			line += " revoked by " + p.GetRevokedBy()
		}
		got = append(got, line)
	}
	if g, w := strings.Join(got, "; "), "ada admin revoked by imagectl://demo/operator/ada; eve admin local; root admin local revoked by imagectl://demo/operator/ada"; g != w {
		t.Errorf("got  %s\nwant %s", g, w)
	}
}

func TestAPersonsKeyIsThePersonsAlone(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleOperator, false); err != nil {
		t.Fatal(err)
	}
	if err := ada.let(root, pki.RoleOperator, false); err != nil {
		t.Errorf("again, after a lost reply: %v", err)
	}
	bob := &human{rig: r, name: "bob", key: ada.key}
	refusedWith(t, "another's key", bob.let(root, pki.RoleReader, false), "this key belongs to operator ada; each person has an own one")
	refusedWith(t, "another role", ada.let(root, pki.RoleAdmin, false), "operator ada is on record with role operator; say --replace to take that role and key away")
	old := ada.cert
	if err := ada.let(root, pki.RoleAdmin, true); err != nil {
		t.Fatal(err)
	}
	if got := try(t, r.client(old), r.url, apiconnect.OperatorServiceListMachinesProcedure); got != "unauthenticated" {
		t.Errorf("with the certificate of the role before: %s", got)
	}
	next := r.human("ada")
	if err := next.let(root, pki.RoleAdmin, true); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, "the key before", ada.renew(), "operator ada has another key now")
	for name, role := range map[string]string{"": "admin", "a b": "admin", "eve": "king"} {
		_, err := root.AddOperator(t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: name, Role: role, CsrDer: csr(t, ada.key)}))
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%q with role %q: %v", name, role, err)
		}
	}
	// Wishes in a request are not heard.
	eve := r.human("eve")
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: old.Leaf.Subject, DNSNames: []string{"server"}}, eve.key)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := root.AddOperator(t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: "eve", Role: "reader", CsrDer: der}))
	if err != nil {
		t.Fatal(err)
	}
	eve.has(resp.Msg.GetCertificatePem())
	if id, err := pki.IdentityOf(eve.cert.Leaf, "demo"); err != nil || id.Name != "eve" || id.Role != pki.RoleReader || len(eve.cert.Leaf.DNSNames) > 0 {
		t.Errorf("got %v, %v", id, err)
	}
	if o := r.revokeOperator(root, "nobody"); o.GetOk() || o.GetReasonCode() != codeUnknownOperator {
		t.Error(o)
	}
}

// Revoking a certificate of a person's key takes the key too, or it would get another.
func TestRevokingACertificateOfAPersonsKeyKeepsThePersonOut(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	for name, asked := range map[string]func(*human) string{
		"ada": func(h *human) string { return pki.Serial(h.cert.Leaf) },
		"bob": func(*human) string { return "operator/bob" },
	} {
		h := r.human(name)
		if err := h.let(root, pki.RoleReader, false); err != nil {
			t.Fatal(err)
		}
		if o := r.revokeSerials(asked(h))[0]; !o.GetOk() || !strings.HasSuffix(o.GetMessage(), name+" gets no other: an admin may add another key (imagectl operators add "+name+")") {
			t.Error(o)
		}
		refusedWith(t, name, h.renew(), "was revoked at ")
	}
	// One certificate of the local operator: whose keys change anyway. All: the name.
	resp, err := root.ListCertificates(t.Context(), connect.NewRequest(&api.ListCertificatesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Msg.GetCertificates() {
		if c.GetHolder() == "operator/root" {
			r.revokeSerials(c.GetSerial())
		}
	}
	if _, err := r.local("root"); err != nil {
		t.Errorf("after a lost certificate: %v", err)
	}
	r.revokeSerials("operator/root")
	_, err = r.local("root")
	refusedWith(t, "after all were revoked", err, "operator root was revoked at ")
}

// A person's own key gets so many certificates and no more. What counts is what is good: neither
// kubeconfigs, nor what was revoked or has ended, nor what another key had.
func TestAPersonGetsSoManyCertificatesAndNoMore(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleReader, false); err != nil {
		t.Fatal(err)
	}
	for range movesBurst {
		if err = ada.renew(); err != nil {
			break
		}
	}
	if err == nil {
		err = ada.renew()
	}
	refusedWith(t, "too often", err, "resource_exhausted: operator ada asks for a certificate too often")
	held, err := r.held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := held["operator/ada"][0]
	holds := func(n int, as func(*certificate)) {
		t.Helper()
		if err := r.change(t.Context(), r.self(), func(c *change) error {
			all := []certificate{first}
			for i := range n {
				o := first
				o.Serial = fmt.Sprintf("%x", i+1)
				as(&o)
				all = append(all, o)
			}
			return c.tx.PutValue(valueCertificates+"operator/ada", all)
		}); err != nil {
			t.Fatal(err)
		}
		r.renewals = newLimits()
	}
	for what, as := range map[string]func(*certificate){
		"kubeconfigs":          func(o *certificate) { o.CA, o.Profile = caKubernetes, profileKubeconfig },
		"of another key":       func(o *certificate) { o.Key = "another" },
		"ended":                func(o *certificate) { o.NotAfter = time.Now().Add(-time.Minute) },
		"of another authority": func(o *certificate) { o.Profile = profileNode },
	} {
		if holds(2*maxRenewed, as); ada.renew() != nil {
			t.Errorf("%s count", what)
		}
	}
	holds(maxRenewed, func(*certificate) {})
	refusedWith(t, "too many", ada.renew(), "resource_exhausted: this key of operator/ada has 129 certificates that are good, and gets no more")
	var serials []string
	for i := range 8 {
		serials = append(serials, fmt.Sprintf("%x", i+1))
	}
	if err := r.change(t.Context(), r.self(), func(c *change) error {
		_, err := r.revoke(c, "operator/ada", "a test", func(o certificate) bool { return slices.Contains(serials, o.Serial) })
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := ada.renew(); err != nil {
		t.Errorf("revoked ones count: %v", err)
	}
}

// Who has seen a person's request, the one that an admin was sent or one on the wire, gets nothing
// by it, and does not use up what the person may ask for.
func TestAPersonsRequestIsOfNoUseToOthers(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	// It keeps its connection for more than one call.
	client, on, err := OneConnection(t.Context(), r.url, r.client(nil).Transport.(*http.Transport).TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	seen, err := pki.RenewalRequest(ada.key, on, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.resend(client, seen); err != nil {
		t.Fatal(err)
	}
	const want = "permission_denied: the request was not made for this connection: it was sent before, or by an imagectl that is older than the server; bring imagectl up to date"
	before := len(r.audited("certificate-issued"))
	stranger := r.client(nil)
	for range 2 * movesBurst {
		_, err := r.resend(stranger, seen)
		refusedWith(t, "seen on the wire", err, want)
		if t.Failed() {
			break
		}
	}
	_, err = r.resend(stranger, csr(t, ada.key))
	refusedWith(t, "what the admin was sent", err, want)
	if n := len(r.audited("certificate-issued")); n != before {
		t.Errorf("%d certificates were made of it", n-before)
	}
	if err := ada.renew(); err != nil {
		t.Errorf("the person afterwards: %v", err)
	}
}

// Whoever has many kubeconfigs made does not have the server forget the certificate that it would
// refuse once it is revoked.
func TestNobodyOutlivesBeingRevoked(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	root, err := r.local("root")
	if err != nil {
		t.Fatal(err)
	}
	ada := r.human("ada")
	if err := ada.let(root, pki.RoleAdmin, false); err != nil {
		t.Fatal(err)
	}
	profile, err := pki.KubernetesAdmin("ada", r.lifetimes)
	if err != nil {
		t.Fatal(err)
	}
	own, err := pki.OwnKey(ada.key)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := r.authority.kubernetes.Sign(profile, own, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.change(t.Context(), r.self(), func(c *change) error {
		for range maxCertificates + 5 {
			if err := c.issued("operator/ada", caKubernetes, profileKubeconfig, issued); err != nil {
				return err
			}
		}
		c.entries = nil // one transaction takes 128
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	held, err := r.held(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(held["operator/ada"]); n != maxCertificates+1 {
		t.Errorf("%d are remembered, want %d", n, maxCertificates+1)
	}
	if o := r.revokeOperator(root, "ada"); !o.GetOk() {
		t.Fatal(o)
	}
	if got := try(t, r.client(ada.cert), r.url, apiconnect.OperatorServiceListMachinesProcedure); got != "unauthenticated" {
		t.Errorf("her certificate is taken: %s", got)
	}
}
