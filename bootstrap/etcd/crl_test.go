package etcd

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// etcd itself, with our configuration file: it refuses new connections with a revoked
// certificate on both ports, as of the file that is there at that moment, and
// everybody when there is none.
func TestEtcdReadsTheRevocationListAtEachHandshake(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(path string, b []byte) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		// As the agent writes: readers see the old or the new one.
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := pki.NewCA("etcd", 24*time.Hour*365, 48*time.Hour, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bundle := func(p pki.Profile, err error) (tls.Certificate, []byte) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		key, err := pki.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		own, err := pki.OwnKey(key)
		if err != nil {
			t.Fatal(err)
		}
		issued, err := ca.Sign(p, own, time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		text, err := pki.EncodeKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{issued.Certificate.Raw}, PrivateKey: key, Leaf: issued.Certificate}, append(issued.PEM, text...)
	}
	number := uint64(0)
	revoke := func(all ...tls.Certificate) {
		t.Helper()
		var revoked []pki.Revocation
		for _, c := range all {
			revoked = append(revoked, pki.Revocation{Serial: pki.Serial(c.Leaf), At: time.Now()})
		}
		number++
		der, err := ca.RevocationList(number, revoked, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		put(CRLPath, der)
	}
	m := pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}
	_, server := bundle(pki.EtcdServer(m, pki.Lifetimes{}))
	_, peer := bundle(pki.EtcdPeer(m, pki.Lifetimes{}))
	put(CAPath, ca.CertificatePEM())
	put(ServerPath, server)
	put(PeerPath, peer)
	revoke()

	own := first()
	own.Address, own.InitialCluster = m.Address, "cp1=https://127.0.0.1:2380"
	text, err := own.Config()
	if err != nil {
		t.Fatal(err)
	}
	conf := string(text)
	for _, path := range []string{"/etc/etcd/", DataDir} {
		conf = strings.ReplaceAll(conf, path, dir+path)
	}
	// Any port; what is advertised is never dialled.
	var lines []string
	for line := range strings.Lines(conf) {
		if strings.HasPrefix(line, "listen-") {
			line = line[:strings.Index(line, ":")+1] + " https://127.0.0.1:0\n"
		}
		lines = append(lines, line)
	}
	put("etcd.yaml", []byte(strings.Join(lines, "")))
	c, err := embed.ConfigFromFile(filepath.Join(dir, "etcd.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, CRLPath); c.ClientTLSInfo.CRLFile != want || c.PeerTLSInfo.CRLFile != want {
		t.Fatalf("etcd reads %q and %q, want %s", c.ClientTLSInfo.CRLFile, c.PeerTLSInfo.CRLFile, want)
	}
	c.LogLevel, c.UnsafeNoFsync = "error", true
	c.LogOutputs = []string{filepath.Join(dir, "log")}
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	<-e.Server.ReadyNotify()

	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	get := func(url string, cert tls.Certificate) error {
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}}
		resp, err := (&http.Client{Transport: tr}).Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	// etcd cuts a peer off that says nothing for this long, also when the whole process
	// stood still.
	accepted := func(url string, cert tls.Certificate) error {
		for {
			began := time.Now()
			if err := get(url, cert); err == nil || time.Since(began) < rafthttp.ConnReadTimeout {
				return err
			}
		}
	}
	good, _ := bundle(pki.EtcdClient(m, "good", pki.Lifetimes{}))
	bad, _ := bundle(pki.EtcdPeer(m, pki.Lifetimes{}))
	for _, url := range []string{"https://" + e.Clients[0].Addr().String() + "/version", "https://" + e.Peers[0].Addr().String() + "/version"} {
		revoke()
		for name, cert := range map[string]tls.Certificate{"good": good, "bad": bad} {
			if err := accepted(url, cert); err != nil {
				t.Errorf("%s: nothing is revoked, and %s is refused: %v", url, name, err)
			}
		}
		revoke(bad)
		if get(url, bad) == nil {
			t.Errorf("%s: a revoked certificate is accepted", url)
		}
		if err := accepted(url, good); err != nil {
			t.Errorf("%s: another one is refused: %v", url, err)
		}
		if err := os.Remove(filepath.Join(dir, CRLPath)); err != nil {
			t.Fatal(err)
		}
		if get(url, good) == nil {
			t.Errorf("%s: without a list somebody is accepted", url)
		}
	}
}
