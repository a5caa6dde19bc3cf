package etcd

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// etcd itself, with our configuration file: the certificates that it shows are those on the disk at
// that moment, and the CAs that it trusts those of its start, until it is started anew. Both are seen
// in a handshake, on both ports.
func TestEtcdReadsItsCAsAtItsStartOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put := func(path string, b []byte) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".new", b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	authority := func(name string) *pki.CA {
		t.Helper()
		ca, err := pki.NewCA(name, 24*time.Hour*365, 48*time.Hour, time.Now(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	before, after := authority("etcd lab"), authority("etcd lab 2")
	m := pki.Machine{Cluster: "lab", Name: "cp1", Address: netip.MustParseAddr("127.0.0.1")}
	bundle := func(ca *pki.CA, p pki.Profile, err error) (tls.Certificate, []byte) {
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
	leaves := func(ca *pki.CA) {
		t.Helper()
		server, err1 := pki.EtcdServer(m, pki.Lifetimes{})
		_, text := bundle(ca, server, err1)
		put(ServerPath, text)
		peer, err2 := pki.EtcdPeer(m, pki.Lifetimes{})
		_, text = bundle(ca, peer, err2)
		put(PeerPath, text)
	}
	trust := func(cas ...*pki.CA) {
		t.Helper()
		var text []byte
		for _, ca := range cas {
			text = append(text, ca.CertificatePEM()...)
		}
		put(CAPath, text)
	}
	trust(before)
	leaves(before)
	crl, err := before.RevocationList(1, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	put(CRLPath, crl)

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
	var lines []string
	for line := range strings.Lines(conf) {
		if strings.HasPrefix(line, "listen-") { // any port; what is advertised is never dialled
			line = line[:strings.Index(line, ":")+1] + " https://127.0.0.1:0\n"
		}
		lines = append(lines, line)
	}
	put("etcd.yaml", []byte(strings.Join(lines, "")))
	start := func() *embed.Etcd {
		t.Helper()
		c, err := embed.ConfigFromFile(filepath.Join(dir, "etcd.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		c.LogLevel, c.UnsafeNoFsync = "error", true
		c.LogOutputs = []string{filepath.Join(dir, "log")}
		e, err := embed.StartEtcd(c)
		if err != nil {
			t.Fatal(err)
		}
		<-e.Server.ReadyNotify()
		return e
	}
	e := start()
	defer func() { e.Close() }()

	profile, profileErr := pki.EtcdClient(m, "imagectl-agent", pki.Lifetimes{})
	client := map[*pki.CA]tls.Certificate{}
	for _, ca := range []*pki.CA{before, after} {
		client[ca], _ = bundle(ca, profile, profileErr)
	}
	// answers: etcd answers a client with a certificate by a CA.
	answers := func(ca *pki.CA) bool {
		t.Helper()
		tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots(before, after),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { c := client[ca]; return &c, nil }}} // whether or not it is asked for
		resp, err := (&http.Client{Transport: tr}).Get("https://" + e.Clients[0].Addr().String() + "/version")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	check := func(when string, leaf *pki.CA, accepted ...*pki.CA) {
		t.Helper()
		var want []string
		for _, ca := range accepted {
			want = append(want, string(ca.Certificate().RawSubject))
		}
		for _, address := range []string{e.Clients[0].Addr().String(), e.Peers[0].Addr().String()} {
			s, err := Show(t.Context(), address, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots(before, after), Certificates: []tls.Certificate{client[accepted[0]]}})
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			var have []string
			for _, name := range s.Accepts {
				have = append(have, string(name))
			}
			if s.Leaf.CheckSignatureFrom(leaf.Certificate()) != nil || !slices.Equal(have, want) {
				t.Errorf("%s: what %s shows is by %s, and it takes certificates of %q, want %q", when, address, s.Leaf.Issuer, have, want)
			}
		}
		for _, ca := range []*pki.CA{before, after} {
			if got, want := answers(ca), slices.Contains(accepted, ca); got != want {
				t.Errorf("%s: a client with a certificate by %s is answered: %v", when, ca.Certificate().Subject, got)
			}
		}
	}
	check("at first", before, before)
	trust(before, after)
	check("with another CA on the disk", before, before)
	e.Close()
	e = start()
	check("started anew", before, before, after)
	leaves(after)
	check("with other certificates on the disk", after, before, after)
	trust(after)
	check("without the old CA on the disk", after, before, after)
	e.Close()
	e = start()
	check("started anew without it", after, after)
}

func roots(all ...*pki.CA) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, ca := range all {
		pool.AddCert(ca.Certificate())
	}
	return pool
}
