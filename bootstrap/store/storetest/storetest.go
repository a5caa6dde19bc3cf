// Package storetest runs an etcd with mutual TLS on loopback, for tests of what several
// servers do on it. Only tests use it.
package storetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/imagectl/imagectl/bootstrap/store"
)

// Etcd is a running etcd of one member.
type Etcd struct {
	store.Location
	dir    string
	server *embed.Etcd
	moved  bool
}

// Start runs an etcd until the test ends.
func Start(t *testing.T) *Etcd {
	t.Helper()
	e := &Etcd{dir: t.TempDir()}
	e.certificates(t)
	e.Endpoints = []string{fmt.Sprintf("https://127.0.0.1:%d", Port(t))}
	e.Up(t)
	t.Cleanup(e.Down)
	return e
}

// Port is one of 127.0.0.1 that is the test's until it ends, also while nobody listens there: the
// kernel gives it to no connection, and no other caller of Port gets it, in this process or another.
func Port(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 20000 + mathrand.IntN(12000)
		// Whoever has this name has the port.
		owner, err := net.Listen("unix", fmt.Sprintf("@imagectl-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			owner.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { owner.Close() })
		return port
	}
	t.Fatal("no port between 20000 and 31999 is free")
	return 0
}

// Up starts it again with the data that it had, at the same address.
func (e *Etcd) Up(t *testing.T) {
	t.Helper()
	at, err := url.Parse(e.Endpoints[0])
	if err != nil {
		t.Fatal(err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(e.dir, "data")
	nowhere := []url.URL{{Scheme: "unix", Path: filepath.Join(e.dir, "peer")}}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, nowhere
	cfg.InitialCluster = cfg.Name + "=" + nowhere[0].String()
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*at}, []url.URL{*at}
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: e.Certificate, KeyFile: e.Key, TrustedCAFile: e.CA, ClientCertAuth: true}
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
	cfg.LogLevel, cfg.LogOutputs = "fatal", []string{os.DevNull}
	if e.server, err = embed.StartEtcd(cfg); err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.server.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("etcd was not ready within a minute")
	}
}

// Down stops it; its data stays.
func (e *Etcd) Down() {
	if e.server != nil {
		e.server.Close()
		e.server = nil
	}
}

// Member makes a state directory of one more server, whose state is on this etcd; the
// first brings it there.
func (e *Etcd) Member(t *testing.T, identity *age.X25519Identity) string {
	t.Helper()
	dir := t.TempDir()
	if !e.moved {
		e.moved = true
		if err := os.WriteFile(filepath.Join(dir, "identity.age"), []byte(identity.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := store.Config{Dir: dir, Cluster: "demo", Log: io.Discard, Volatile: true}
		if _, err := store.ToEtcd(t.Context(), c, e.Location); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	if err := store.Join(t.Context(), dir, e.Location, []byte(identity.String()+"\n")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Identity makes what encrypts the secrets.
func Identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// certificates makes a CA, and one certificate for both ends.
func (e *Etcd) certificates(t *testing.T) {
	t.Helper()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd of a test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	caKey, leafKey := key(t), key(t)
	e.CA, e.Certificate, e.Key = filepath.Join(e.dir, "ca.pem"), filepath.Join(e.dir, "cert.pem"), filepath.Join(e.dir, "key.pem")
	e.sign(t, e.CA, ca, ca, caKey, caKey)
	e.sign(t, e.Certificate, leaf, ca, leafKey, caKey)
	der, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	write(t, e.Key, "PRIVATE KEY", der)
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (e *Etcd) sign(t *testing.T, path string, c, parent *x509.Certificate, of, by *ecdsa.PrivateKey) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, of.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, "CERTIFICATE", der)
}

func write(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
