//go:build root && clock

package native

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/serverapi"
)

// comesAndGoes lets a person in and out again. Nodes hear of that at once, and look at what they
// have; else they do so every 20 seconds.
func (r *rack) comesAndGoes(when string) {
	r.t.Helper()
	if _, err := r.op.AddOperator(r.t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: "guest", Role: string(pki.RoleReader), CsrDer: r.csr(r.key())})); err != nil {
		r.t.Fatalf("%s: %v", when, err)
	}
	resp, err := r.op.RevokeOperators(r.t.Context(), connect.NewRequest(&api.RevokeOperatorsRequest{Names: []string{"guest"}, Reason: when}))
	if err != nil || !resp.Msg.GetOutcomes()[0].GetOk() {
		r.t.Fatalf("%s: %v %v", when, err, resp)
	}
}

func (r *rack) key() crypto.Signer {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	return key
}

func (r *rack) csr(key crypto.Signer) []byte {
	r.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return csr
}

// person is an admin with a key of her own, whose certificates live for hours.
type person struct {
	r   *rack
	key crypto.Signer
	ca  []*x509.Certificate
}

// person lets somebody in, who makes all of r's calls from now on.
func (r *rack) person(name string) *person {
	r.t.Helper()
	key := r.key()
	resp, err := r.op.AddOperator(r.t.Context(), connect.NewRequest(&api.AddOperatorRequest{Name: name, Role: string(pki.RoleAdmin), CsrDer: r.csr(key)}))
	if err != nil {
		r.t.Fatal(err)
	}
	p := &person{r: r, key: key}
	p.has(resp.Msg.GetCertificatePem(), resp.Msg.GetCaPem())
	return p
}

// has is called with a new certificate, and with the CAs that the server says to trust.
func (p *person) has(certificate, ca string) {
	t := p.r.t
	t.Helper()
	if ca != "" {
		var err error
		if p.ca, err = pki.ParseCertificatesPEM([]byte(ca)); err != nil {
			t.Fatal(err)
		}
	}
	chain, err := pki.ParseCertificatesPEM([]byte(certificate))
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{PrivateKey: p.key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	conf := p.trusts()
	conf.Certificates = []tls.Certificate{pair}
	p.r.http.CloseIdleConnections()
	p.r.http = &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}}
	p.r.op = apiconnect.NewOperatorServiceClient(p.r.http, serverURL)
}

func (p *person) trusts() *tls.Config {
	pool := x509.NewCertPool()
	for _, c := range p.ca {
		pool.AddCert(c)
	}
	return &tls.Config{RootCAs: pool}
}

// renew is what imagectl does before a call when the certificate is old: the key alone lets
// her have another one.
func (p *person) renew() {
	r := p.r
	r.t.Helper()
	r.wait(5*time.Minute, "a certificate for a person", func() (bool, string) {
		client, on, err := serverapi.OneConnection(r.t.Context(), serverURL, p.trusts())
		if err != nil {
			return false, err.Error()
		}
		defer client.CloseIdleConnections()
		csr, err := pki.RenewalRequest(p.key, on, rand.Reader)
		if err != nil {
			r.t.Fatal(err)
		}
		resp, err := apiconnect.NewEnrolServiceClient(client, serverURL).RenewOperator(r.t.Context(), connect.NewRequest(&api.RenewOperatorRequest{CsrDer: csr}))
		if err != nil {
			return false, err.Error()
		}
		p.has(resp.Msg.GetCertificatePem(), resp.Msg.GetCaPem())
		return true, ""
	})
}
