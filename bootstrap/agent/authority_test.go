package agent

import (
	"crypto/rand"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/host/hosttest"
	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// What a server tells of its CAs counts from the moment on in which it is on the disk, and
// until node.json names other CAs.
func TestWhomAnAgentTakesForItsServer(t *testing.T) {
	t.Parallel()
	ca := func() *pki.CA {
		c, err := pki.NewCA("imagectl lab", time.Hour, 0, time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old, next, other := ca(), ca(), ca()
	node := hosttest.New(t)
	if err := node.MkdirAll(StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	load := func(given *pki.CA) *authority {
		t.Helper()
		a, err := loadAuthority(node.Host, nodeconf.Config{CA: string(given.CertificatePEM())})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	pem := func(all ...*pki.CA) string {
		var certs []*x509.Certificate
		for _, c := range all {
			certs = append(certs, c.Certificate())
		}
		return string(pki.EncodeCertificates(certs))
	}
	check := func(a *authority, want ...*pki.CA) {
		t.Helper()
		var digests []string
		for _, c := range want {
			digests = append(digests, pki.Digest(c.Certificate()))
		}
		if got := a.digests(); !slices.Equal(got, digests) {
			t.Errorf("got %v, want %v", got, digests)
		}
	}
	a := load(old)
	check(a, old)
	for _, c := range []struct {
		says string
		news bool
		bad  string
		want []*pki.CA
	}{
		{"", false, "", []*pki.CA{old}}, // an older server
		{pem(old), false, "", []*pki.CA{old}},
		{pem(old, next), true, "", []*pki.CA{old, next}},
		{pem(old, next), false, "", []*pki.CA{old, next}},
		{"nonsense", false, "learning of the server's CA: parsing certificates: there is something else than PEM blocks CERTIFICATE", []*pki.CA{old, next}},
		{pem(next, old), true, "", []*pki.CA{next, old}}, // the other one signs
		{pem(next), true, "", []*pki.CA{next}},
	} {
		news, err := a.learn(c.says)
		if text := errorText(err); news != c.news || text != c.bad {
			t.Errorf("%.40q: news %v, want %v; error %q, want %q", c.says, news, c.news, text, c.bad)
		}
		check(a, c.want...)
		check(load(old), c.want...)
	}
	check(load(other), other)
	// Unreadable: node.json's, from where the server's cross-certificate leads on.
	if err := node.WriteFile(authorityPath, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(load(old), old)
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := pki.Node(pki.Machine{Cluster: "lab", Name: "w1"}, pki.Lifetimes{Agent: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := old.Sign(profile, leaf, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.learn(string(issued.PEM)); errorText(err) != "learning of the server's CA: CN=w1 is no CA" {
		t.Errorf("a machine's certificate as a CA: %v", err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
