package httpboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// certificate is self-signed, for an address and a day.
func certificate(t *testing.T, key crypto.Signer, address string, from time.Time) (certPEM, keyPEM []byte) {
	t.Helper()
	c := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "boot"}, NotBefore: from, NotAfter: from.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.ParseIP(address)},
	}
	der, err := x509.CreateCertificate(rand.Reader, &c, &c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})
}

func TestTLSForUEFI(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	elliptical, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	ours := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		name    string
		key     crypto.Signer
		address string
		from    time.Time
		want    string
	}{
		{"an ECDSA key", elliptical, "127.0.0.1", now, "has a key of kind ECDSA, UEFI wants RSA"},
		{"expired", key, "127.0.0.1", now.Add(-48 * time.Hour), "is good from "},
		{"not good yet", key, "127.0.0.1", now.Add(48 * time.Hour), "is good from "},
		{"another address", key, "10.0.0.1", now, "(make it with subjectAltName=IP:127.0.0.1)"},
	} {
		cert, keyPEM := certificate(t, c.key, c.address, c.from)
		if _, err := TLS(cert, keyPEM, ours, now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := TLS([]byte("no certificate"), []byte("no key"), ours, now); err == nil {
		t.Error("no certificate: no error")
	}

	cert, keyPEM := certificate(t, key, "127.0.0.1", now)
	cfg, err := TLS(cert, keyPEM, ours, now)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(New(Config{Source: answersByCard, Open: open, Server: at, Programs: programs(true)}))
	s.TLS = cfg
	s.StartTLS()
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	for _, suites := range [][]uint16{{tls.TLS_RSA_WITH_AES_128_CBC_SHA}, {tls.TLS_RSA_WITH_AES_256_CBC_SHA}, {tls.TLS_RSA_WITH_AES_128_CBC_SHA256}, {tls.TLS_RSA_WITH_AES_256_GCM_SHA384}, nil} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12, CipherSuites: suites}}}
		r, err := client.Get(s.URL + "/boot/" + card(armed) + "/snponly.efi")
		if err != nil {
			t.Errorf("suites %x: %v", suites, err)
			continue
		}
		if got := body(t, r); got != "a program" {
			t.Errorf("suites %x: got %q", suites, got)
		}
		r.Body.Close()
		client.CloseIdleConnections()
	}
}
