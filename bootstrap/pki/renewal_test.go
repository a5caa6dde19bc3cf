package pki

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"
	"time"
)

// connection is both sides of a TLS connection, up to a version.
func connection(t *testing.T, version uint16) (client, server tls.ConnectionState) {
	t.Helper()
	ca, err := NewCA("test", 24*time.Hour, time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := Server("test", []string{"server"}, nil, Lifetimes{Agent: 2 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Sign(profile, public, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.Certificate())
	a, b := net.Pipe()
	c := tls.Client(a, &tls.Config{RootCAs: pool, ServerName: "server", MaxVersion: version})
	s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key}}, SessionTicketsDisabled: true})
	done := make(chan error, 1)
	go func() { done <- s.HandshakeContext(t.Context()) }()
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return c.ConnectionState(), s.ConnectionState()
}

func TestARenewalRequestIsGoodOnItsConnectionOnly(t *testing.T) {
	t.Parallel()
	client, server := connection(t, tls.VersionTLS13)
	_, other := connection(t, tls.VersionTLS13)
	key, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := RenewalRequest(key, client, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := OwnKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseRenewal(der, server); err != nil || got.Fingerprint() != own.Fingerprint() {
		t.Errorf("on its connection: %v", err)
	}
	if _, err := ParseRenewal(der, other); !errors.Is(err, ErrOtherConnection) {
		t.Errorf("on another one: %v", err)
	}
	plain, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRenewal(plain, server); !errors.Is(err, ErrOtherConnection) {
		t.Errorf("one that names none: %v", err)
	}
	forged := append([]byte{}, der...)
	forged[len(forged)-1] ^= 1
	if _, err := ParseRenewal(forged, server); err == nil || errors.Is(err, ErrOtherConnection) {
		t.Errorf("one that the key has not signed: %v", err)
	}
	old, _ := connection(t, tls.VersionTLS12)
	if _, err := RenewalRequest(key, old, rand.Reader); err == nil {
		t.Error("TLS 1.2, whose exporter may name two connections, is taken")
	}
}
