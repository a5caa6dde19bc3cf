package cli

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// front is a TLS server that lets nobody in, and counts who asked.
type front struct {
	*httptest.Server
	digest [sha256.Size]byte

	mu    sync.Mutex
	asked int
	proto string
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	f.proto = r.Proto
	http.Error(w, "nobody comes in here", http.StatusForbidden)
}

// seen is what was asked since the last time.
func (f *front) seen() (asked int, proto string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked, proto = f.asked, f.proto
	f.asked, f.proto = 0, ""
	return asked, proto
}

// authority signs certificates for this machine's loopback address.
type authority struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, cert, key}
}

// front starts a server whose certificate ends at a time, and is its own if the
// authority does not sign it.
func (a authority) front(signed bool, end time.Time) *front {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	form := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "a platform"}, NotBefore: end.Add(-24 * time.Hour), NotAfter: end,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	parent, by := form, key
	if signed {
		parent, by = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, form, parent, key.Public(), by)
	if err != nil {
		a.Fatal(err)
	}
	f := &front{digest: sha256.Sum256(der)}
	f.Server = httptest.NewUnstartedServer(f)
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.EnableHTTP2 = true
	f.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	f.StartTLS()
	a.Cleanup(f.Close)
	return f
}

// platformOf is an entry of upload: for each type that is spoken to by HTTP.
type platformOf struct {
	kind, keys, options string
	path                string
	// ca and pin say which options the type has; http1 that it speaks no other.
	ca, pin, http1 bool
}

func httpPlatforms() []platformOf {
	const user = "username: ops, password: {env: SECRET}"
	return []platformOf{
		{kind: "opennebula", path: "/RPC2", keys: "datastore: default, " + user, ca: true, pin: true},
		{kind: "s3", keys: "bucket: vms, region: eu, " + user, ca: true, pin: true},
		{kind: "oci", path: "/team/vms", keys: user, ca: true, pin: true},
		{kind: "openstack", path: "/v3", keys: user, ca: true, pin: true},
		{kind: "vsphere", keys: "datastore: ds1, " + user, options: "datacenter: dc1, pool: p1, network: n1, node: node.json", ca: true, pin: true, http1: true},
		{kind: "vsphere-library", keys: "datastore: lib1, " + user, ca: true, pin: true, http1: true},
		{kind: "proxmox", keys: "datastore: ds1, username: ops@pve!up, password: {env: SECRET}", options: "host: pve1", ca: true, pin: true, http1: true},
		// These have names of their own that authorities sign; only who puts something in
		// their place (endpoint) needs ca.
		{kind: "aws", keys: "region: eu-central-1, " + user, ca: true},
		{kind: "azure", keys: "datastore: vms, region: westeurope, password: {env: SECRET}", options: "subscription: s, resourceGroup: g", ca: true},
		{kind: "gcp", keys: "bucket: staging, password: {env: SECRET}", options: "project: p", ca: true},
		{kind: "digitalocean", keys: "region: fra1, password: {env: SECRET}"},
		{kind: "hetzner", keys: "password: {env: SECRET}"},
	}
}

func (p platformOf) entry(name, url, option string) string {
	all := strings.Trim(p.options+", "+option, ", ")
	return fmt.Sprintf("  - {name: %s, type: %s, endpoint: \"%s\", %s, options: {%s}}\n", name, p.kind, url+p.path, p.keys, all)
}

// No target says a word to a server whose certificate is not what it was told to trust.
func TestUploadTrustsNoOtherCertificate(t *testing.T) {
	s := newUploadSite(t)
	t.Setenv("SECRET", "secret")
	a := newAuthority(t)
	s.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})))
	past := time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC)
	good, own, old := a.front(true, time.Now().Add(time.Hour)), a.front(false, time.Now().Add(time.Hour)), a.front(true, past)
	const ca = "ca: ca.pem"
	pinned := func(digest [sha256.Size]byte) string {
		return `fingerprint: "` + hex.EncodeToString(digest[:]) + `"`
	}
	const unknown = `tls: failed to verify certificate: x509: certificate signed by unknown authority`
	for _, tt := range []struct {
		name   string
		at     *front
		option string
		// ca and pin say which options the case takes.
		ca, pin bool
		want    string // empty if it is trusted
	}{
		{"self-signed", own, "", false, false, unknown},
		{"self-signed, and an authority that did not sign it", own, ca, true, false, unknown},
		{"expired", old, ca, true, false, `tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time \S+ is after 2020-01-02T00:00:00Z`},
		{"signed by the authority that is configured", good, ca, true, false, ""},
		{"signed by one that is not", good, "", false, false, unknown},
		{"self-signed with the right pin", own, pinned(own.digest), false, true, ""},
		{"self-signed with a wrong pin", own, pinned(good.digest), false, true, fmt.Sprintf("the server's certificate is not the pinned one: it has the fingerprint %X", own.digest)},
		{"signed by the authority that is configured, with a wrong pin", good, ca + ", " + pinned(own.digest), true, true, fmt.Sprintf("the server's certificate is not the pinned one: it has the fingerprint %X", good.digest)},
		{"expired with the right pin", old, pinned(old.digest), false, true, ""},
	} {
		for _, p := range httpPlatforms() {
			if tt.ca && !p.ca || tt.pin && !p.pin {
				continue
			}
			name := "my-" + p.kind
			s.write("cluster.yaml", s.started+"\nupload:\n"+p.entry(name, tt.at.URL, tt.option))
			code, out, errs := s.imagectl("upload", "list", name)
			asked, proto := tt.at.seen()
			what := fmt.Sprintf("%s, %s: exit code %d after %d requests (%s)\n%s%s", p.kind, tt.name, code, asked, proto, out, errs)
			if tt.want == "" {
				want, refused := "HTTP/2.0", exitAuth
				if p.kind == "vsphere" {
					refused = exitServer // vCenter refuses by faults: 403 is a proxy's
				}
				if p.http1 {
					want = "HTTP/1.1"
				}
				if code != refused || asked == 0 || proto != want || strings.Contains(errs, "certificate") {
					t.Errorf("want %s requests that are refused by what answers: %s", want, what)
				}
				continue
			}
			want := tt.want
			if hint := trustHint(p.kind); hint != "" && !tt.pin {
				want += fmt.Sprintf("; the certificate that %s shows has the fingerprint %X: %s", tt.at.Listener.Addr(), tt.at.digest, hint)
			}
			if asked != 0 || code != exitServer || !regexp.MustCompile(want).MatchString(errs) {
				t.Errorf("want no request, exit code %d and %s: %s", exitServer, want, what)
			}
		}
	}
}
