// Package pin trusts servers by their certificate itself: Proxmox VE and vCenter
// make certificates of their own, which no authority signs, so do many who run a
// store or a registry, and vCenter names the certificates of its hosts. A server
// without a pin is checked in the usual way. With one, nothing else counts: neither
// who signed the certificate nor its name, nor whether it has expired.
package pin

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // What vCenter names hosts' certificates by, over a connection that is checked.
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
)

// Digest of a certificate in DER form: SHA-256, or SHA-1 where a server that is
// trusted says so.
type Digest []byte

// Parse reads the SHA-256 that a person pins: 32 bytes in hexadecimal, with or
// without colons.
func Parse(text string) (Digest, error) {
	d, err := decode(text)
	if err != nil || len(d) != sha256.Size {
		return nil, fmt.Errorf("reading the fingerprint %q: want the certificate's SHA-256, 64 hexadecimal digits; openssl x509 -noout -fingerprint -sha256 shows it", text)
	}
	return d, nil
}

func decode(text string) (Digest, error) {
	return hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(text), ":", ""))
}

// Untrusted tells whether a call failed because of the server's certificate, and nothing
// was sent, or because the server is not where it was: asking again changes nothing.
func Untrusted(err error) bool {
	var bad *tls.CertificateVerificationError
	return errors.Is(err, ErrMismatch) || errors.Is(err, ErrElsewhere) || errors.As(err, &bad)
}

// ErrElsewhere: the server sends its clients to another one, or to itself without TLS.
// Whoever carries requests says so (cmd/imagectl/cli).
var ErrElsewhere = errors.New("it sends us elsewhere")

// ErrMismatch: the server has another certificate than the pinned one.
var ErrMismatch = errors.New("the server's certificate is not the pinned one")

// Transport is an http.RoundTripper, safe for concurrent use.
type Transport struct {
	base *http.Transport

	mu     sync.Mutex
	pinned map[string]*pinned
}

type pinned struct {
	digest    Digest
	transport *http.Transport
}

// New returns a transport that sends as base does to servers without a pin.
func New(base *http.Transport) *Transport {
	return &Transport{base: base, pinned: map[string]*pinned{}}
}

// Pin trusts a server, HOST or HOST:PORT of its URL, by its certificate alone.
func (t *Transport) Pin(host string, d Digest) { t.pin(withPort(host), d) }

// PinAll is Pin for all ports of a host whose services have one certificate.
func (t *Transport) PinAll(hostname string, d Digest) { t.pin(atAnyPort(hostname), d) }

func (t *Transport) pin(key string, d Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.pinned[key]; old != nil && bytes.Equal(old.digest, d) {
		return
	}
	own := t.base.Clone()
	if own.TLSClientConfig == nil {
		own.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	// The whole check is the comparison; VerifyConnection runs for resumed
	// connections, too.
	own.TLSClientConfig.InsecureSkipVerify = true
	own.TLSClientConfig.VerifyConnection = func(s tls.ConnectionState) error { return d.check(s) }
	t.pinned[key] = &pinned{d, own}
}

// Name pins a server by the thumbprint that one which is trusted names: SHA-1 or
// SHA-256.
func (t *Transport) Name(host, thumbprint string) error {
	d, err := decode(thumbprint)
	if err != nil || len(d) != sha1.Size && len(d) != sha256.Size {
		return fmt.Errorf("reading the thumbprint %q of %s: it is neither SHA-1 nor SHA-256", thumbprint, host)
	}
	if t.find(host) == nil {
		t.Pin(host, d)
	}
	return nil
}

// find gives the pin of a server; nil when it has none.
func (t *Transport) find(host string) *pinned {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own := t.pinned[withPort(host)]; own != nil {
		return own
	}
	return t.pinned[atAnyPort((&url.URL{Host: host}).Hostname())]
}

func (d Digest) check(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return ErrMismatch
	}
	raw := s.PeerCertificates[0].Raw
	full := sha256.Sum256(raw)
	got := Digest(full[:])
	if len(d) == sha1.Size {
		short := sha1.Sum(raw) //nolint:gosec // See the import.
		got = short[:]
	}
	if !bytes.Equal(got, d) {
		return fmt.Errorf("%w: it has the fingerprint %X", ErrMismatch, []byte(got))
	}
	return nil
}

func atAnyPort(hostname string) string { return net.JoinHostPort(strings.ToLower(hostname), "*") }

// withPort names a server as RoundTrip looks for it.
func withPort(host string) string {
	host = strings.ToLower(host)
	if u := (&url.URL{Host: host}); u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return host
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if own := t.find(r.URL.Host); own != nil && r.URL.Scheme == "https" {
		return own.transport.RoundTrip(r)
	}
	return t.base.RoundTrip(r)
}
