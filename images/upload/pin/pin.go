// Package pin trusts servers by their certificate itself: Proxmox VE and vCenter
// make certificates of their own, which no authority signs, and vCenter names the
// certificates of its hosts. A server without a pin is checked in the usual way.
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
func (t *Transport) Pin(host string, d Digest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := withPort(host)
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
	t.mu.Lock()
	_, fixed := t.pinned[withPort(host)]
	t.mu.Unlock()
	if !fixed {
		t.Pin(host, d)
	}
	return nil
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

func withPort(host string) string {
	if u := (&url.URL{Host: host}); u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "443")
	}
	return host
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	own := t.pinned[withPort(r.URL.Host)]
	t.mu.Unlock()
	if own != nil && r.URL.Scheme == "https" {
		return own.transport.RoundTrip(r)
	}
	return t.base.RoundTrip(r)
}
