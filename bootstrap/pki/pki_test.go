package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testNow() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC) }

func newTestCA(t testing.TB, name string) *CA {
	t.Helper()
	l := Lifetimes{}.WithDefaults()
	ca, err := NewCA(name, l.CA, l.Backdate, testNow(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	// A liar's request: it asks for everything.
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "liar", Organization: []string{"system:liars"}},
		DNSNames: []string{"evil.example"},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func machineOne() Machine {
	return Machine{Cluster: "demo", Name: "cp1", Address: netip.MustParseAddr("10.0.0.11")}
}

func openssl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	return string(out), err
}

// openssl judges every profile: purposes that must hold, purposes that must not,
// and the names that a request must not have smuggled in.
func TestOpenSSLAcceptsEveryProfileForItsPurposeOnly(t *testing.T) {
	t.Parallel()
	m := machineOne()
	profile := must[Profile](t)
	for _, c := range []struct {
		name           string
		profile        Profile
		client, server bool
		life           time.Duration
		want           []string
	}{
		{"node", profile(Node(m, Lifetimes{})), true, true, 30 * day,
			[]string{"Subject: CN = cp1\n", "URI:imagectl://demo/node/cp1", "DNS:cp1, ", "IP Address:10.0.0.11"}},
		{"server", profile(Server("demo", []string{"localhost"}, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Lifetimes{})), true, true, 30 * day,
			[]string{"URI:imagectl://demo/server/imagectl", "DNS:localhost", "IP Address:10.0.0.1"}},
		{"operator", profile(Operator("demo", "ada@example.org", RoleAdmin, Lifetimes{})), true, false, 12 * time.Hour,
			[]string{"O = imagectl:admin, CN = ada@example.org", "URI:imagectl://demo/operator/ada@example.org"}},
		{"etcd-server", profile(EtcdServer(m, Lifetimes{})), true, true, 90 * day,
			[]string{"DNS:cp1, DNS:localhost, IP Address:10.0.0.11, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1"}},
		{"etcd-peer", profile(EtcdPeer(m, Lifetimes{})), true, true, 90 * day, []string{"DNS:cp1, IP Address:10.0.0.11"}},
		{"etcd-client", profile(EtcdClient(m, "kube-apiserver", Lifetimes{})), true, false, 90 * day,
			[]string{"O = imagectl:node:cp1, CN = kube-apiserver"}},
		{"join", profile(KubeletBootstrap(m, Lifetimes{})), true, false, 40 * time.Minute,
			[]string{"O = system:nodes, CN = system:node:cp1"}},
		{"kubelet-serving", profile(KubeletServing(m, Lifetimes{})), false, true, 90 * day,
			[]string{"O = system:nodes, CN = system:node:cp1", "DNS:cp1, IP Address:10.0.0.11"}},
		{"kubectl", profile(KubernetesAdmin("ada", Lifetimes{})), true, false, 8 * time.Hour,
			[]string{"O = kubeadm:cluster-admins, CN = imagectl:ada"}},
		{"kubelet-client", profile(KubeletClient(m, Lifetimes{})), true, false, 90 * day, []string{"O = system:nodes, CN = system:node:cp1"}},
		{"apiserver", profile(APIServer(m, []string{"kubernetes.default.svc", "k8s.example"}, []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Lifetimes{})), false, true, 90 * day,
			[]string{"CN = kube-apiserver\n", "DNS:cp1, DNS:k8s.example, DNS:kubernetes.default.svc, IP Address:10.0.0.11, IP Address:10.96.0.1"}},
		{"apiserver-kubelet-client", profile(APIServerKubeletClient(m, Lifetimes{})), true, false, 90 * day, []string{"Subject: CN = kube-apiserver-kubelet-client\n"}},
		{"front-proxy-client", profile(FrontProxyClient(m, Lifetimes{})), true, false, 90 * day, []string{"Subject: CN = front-proxy-client\n"}},
		{"controller-manager", profile(ControllerManager(m, Lifetimes{})), true, false, 90 * day, []string{"Subject: CN = system:kube-controller-manager\n"}},
		{"scheduler", profile(Scheduler(m, Lifetimes{})), true, false, 90 * day, []string{"Subject: CN = system:kube-scheduler\n"}},
		{"node-admin", profile(NodeAdmin(m, Lifetimes{})), true, false, 90 * day, []string{"O = kubeadm:cluster-admins, CN = kubernetes-admin@cp1\n"}},
		{"super-admin", profile(SuperAdmin(m, Lifetimes{})), true, false, time.Hour, []string{"O = system:masters, CN = kubernetes-super-admin"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ca := newTestCA(t, "imagectl demo")
			key := must[crypto.Signer](t)(NewKey(rand.Reader))
			public := must[PublicKey](t)(ParseRequest(request(t, key)))
			issued := must[Issued](t)(ca.Sign(c.profile, public, testNow(), rand.Reader))

			dir := t.TempDir()
			caFile, leafFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "leaf.pem")
			for file, b := range map[string][]byte{caFile: ca.CertificatePEM(), leafFile: issued.PEM} {
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for purpose, ok := range map[string]bool{"sslclient": c.client, "sslserver": c.server} {
				out, err := openssl(t, "verify", "-x509_strict", "-attime", "1772366401", "-purpose", purpose, "-CAfile", caFile, leafFile)
				if (err == nil) != ok {
					t.Errorf("openssl verify -purpose %s: err %v, want accepted %v\n%s", purpose, err, ok, out)
				}
			}
			text, err := openssl(t, "x509", "-noout", "-text", "-in", leafFile)
			if err != nil {
				t.Fatal(text)
			}
			for _, w := range append(c.want, "CA:FALSE", "Digital Signature\n") {
				if !strings.Contains(text, w) {
					t.Errorf("openssl x509 -text lacks %q:\n%s", w, text)
				}
			}
			for _, bad := range []string{"evil.example", "system:liars", "CN = liar"} {
				if strings.Contains(text, bad) {
					t.Errorf("the request smuggled %q in:\n%s", bad, text)
				}
			}
			cert := issued.Certificate
			now := testNow().Truncate(time.Second)
			if got, want := cert.NotBefore, now.Add(-48*time.Hour); !got.Equal(want) {
				t.Errorf("NotBefore: got %v, want %v", got, want)
			}
			if got, want := cert.NotAfter, now.Add(c.life-time.Second); !got.Equal(want) {
				t.Errorf("NotAfter: got %v, want %v", got, want)
			}
		})
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	t.Parallel()
	good := request(t, must[crypto.Signer](t)(NewKey(rand.Reader)))
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	p521 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	small := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	for _, c := range []struct {
		name string
		der  []byte
		want string
	}{
		{"a forged signature", forged, "parsing certificate request: no proof of possession: "},
		{"garbage", []byte("hello"), "parsing certificate request: "},
		{"nothing", nil, "parsing certificate request: "},
		{"too long", make([]byte, maxRequestBytes+1), "parsing certificate request: 16385 bytes exceed 16384"},
		{"a short RSA key", request(t, small), "parsing certificate request: an RSA key of 2048 bits is not accepted; use 3072 to 8192 bits, P-256, P-384 or Ed25519"},
		{"another curve", request(t, p521), "parsing certificate request: a key on curve P-521 is not accepted; use P-256, P-384, Ed25519 or RSA of at least 3072 bits"},
	} {
		if _, err := ParseRequest(c.der); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.want)
		}
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRequest(request(t, ed)); err != nil {
		t.Errorf("Ed25519: %v", err)
	}
}

func TestProfilesThatAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  func() error
		want string
	}{
		{func() error { _, err := Node(Machine{Cluster: "demo", Name: "a/../b"}, Lifetimes{}); return err },
			`making a profile: "a/../b" is no machine name`},
		{func() error { _, err := Node(Machine{Cluster: "De mo", Name: "a"}, Lifetimes{}); return err },
			`making a profile for a: "De mo" is no cluster name`},
		{func() error { _, err := Operator("demo", "ada", "root", Lifetimes{}); return err },
			`making a profile for ada: there is no role "root"`},
		{func() error { _, err := Operator("demo", "ada/bob", RoleAdmin, Lifetimes{}); return err },
			`making a profile: "ada/bob" is no operator name; use letters, digits, dots, dashes and @`},
		{func() error { _, err := Server("demo", []string{"*"}, nil, Lifetimes{}); return err },
			`making a profile for imagectl: "*" is no DNS name`},
		{func() error { _, err := Node(machineOne(), Lifetimes{Agent: time.Second}); return err },
			`making a profile for cp1: a lifetime of 1s is below one minute`},
	} {
		if err := c.err(); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestPrepareAndIssue(t *testing.T) {
	t.Parallel()
	ca, other := newTestCA(t, "one"), newTestCA(t, "other")
	key := must[PublicKey](t)(OwnKey(must[crypto.Signer](t)(NewKey(rand.Reader))))
	profile := must[Profile](t)(Node(machineOne(), Lifetimes{}))

	p := must[*Prepared](t)(ca.Prepare(profile, key, testNow(), rand.Reader))
	if _, err := other.Issue(p); err == nil || err.Error() != "issuing certificate cp1: it was prepared by another CA" {
		t.Errorf("another CA issues it: %v", err)
	}
	issued := must[Issued](t)(ca.Issue(p))
	if got, want := issued.Serial(), p.SerialNumber(); got != want || len(got) != 32 {
		t.Errorf("serial: got %s, want the prepared %s", got, want)
	}
	if _, err := ca.Issue(p); err == nil || err.Error() != "issuing certificate cp1: it was issued already" {
		t.Errorf("it is issued twice: %v", err)
	}
	if _, err := ca.Prepare(Profile{}, key, testNow(), rand.Reader); err == nil {
		t.Error("the zero profile is accepted")
	}
	late := ca.Certificate().NotAfter.Add(-29 * day)
	_, err := ca.Prepare(profile, key, late, rand.Reader)
	if err == nil || !strings.Contains(err.Error(), "after its CA one, which ends") {
		t.Errorf("a leaf outlives its CA: %v", err)
	}
}

func TestLoadCARefusesAStrangersKey(t *testing.T) {
	t.Parallel()
	a, b := newTestCA(t, "a"), newTestCA(t, "b")
	keyA, keyB := must[[]byte](t)(a.KeyPEM()), must[[]byte](t)(b.KeyPEM())
	if _, err := LoadCA(a.CertificatePEM(), keyA); err != nil {
		t.Error(err)
	}
	_, err := LoadCA(a.CertificatePEM(), keyB)
	if want := "loading CA a: the private key belongs to another certificate"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, "imagectl demo")
	key := must[PublicKey](t)(OwnKey(must[crypto.Signer](t)(NewKey(rand.Reader))))
	sign := func(p Profile, err error) *x509.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return must[Issued](t)(ca.Sign(p, key, testNow(), rand.Reader)).Certificate
	}
	node := sign(Node(machineOne(), Lifetimes{}))
	if id, err := IdentityOf(node, "demo"); err != nil || id != (Identity{Cluster: "demo", Kind: KindNode, Name: "cp1"}) {
		t.Errorf("node: got %v, %v", id, err)
	}
	ada := sign(Operator("demo", "ada@example.org", RoleReader, Lifetimes{}))
	if id, err := IdentityOf(ada, "demo"); err != nil || id != (Identity{Cluster: "demo", Kind: KindOperator, Name: "ada@example.org", Role: RoleReader}) {
		t.Errorf("operator: got %v, %v", id, err)
	}
	if _, err := IdentityOf(node, "prod"); err == nil || !strings.Contains(err.Error(), "it belongs to cluster demo, this is prod") {
		t.Errorf("another cluster's node: %v", err)
	}
	if _, err := IdentityOf(sign(EtcdPeer(machineOne(), Lifetimes{})), "demo"); err == nil {
		t.Error("a certificate without a URI has an identity")
	}
	ada.Subject.Organization = []string{"admin"}
	if _, err := IdentityOf(ada, "demo"); err == nil {
		t.Error("an organisation without prefix gives a role")
	}
}

func FuzzParseRequest(f *testing.F) {
	key, err := NewKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request(f, key))
	f.Fuzz(func(t *testing.T, der []byte) {
		if k, err := ParseRequest(der); err == nil && len(k.SPKI()) == 0 {
			t.Error("accepted without a key")
		}
	})
}
