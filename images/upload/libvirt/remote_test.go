//go:build upload

package libvirt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/uploadtest"
	"github.com/imagectl/imagectl/test/daemon"
)

// reaches uploads an image, finds it again, and reads it back.
func reaches(t *testing.T, c Config) {
	t.Helper()
	to, img := made(t, c), uploadtest.Image(t, store.QCOW2, "prod-worker", 1)
	for _, again := range []bool{false, true} {
		j := &uploadtest.Journal{}
		out, err := upload.Run(t.Context(), to, img, j, func(upload.Event) {}, true)
		if err != nil || out.Unchanged != again || len(j.Left()) > 0 {
			t.Fatalf("outcome %+v, %v, left is %v; want unchanged %t", out, err, j.Left(), again)
		}
		checks, err := to.Verify(t.Context(), out.Object, img)
		if err != nil || len(checks) == 0 {
			t.Fatalf("checks %+v, %v", checks, err)
		}
		for _, k := range checks {
			if k.Result != upload.Good {
				t.Errorf("%s is %s: %s", k.Name, k.Result, k.Detail)
			}
		}
	}
}

// refuses wants a kind of error with some words, and nothing on the host.
func refuses(t *testing.T, c Config, kind error, words string) {
	t.Helper()
	_, err := upload.Run(t.Context(), made(t, c), uploadtest.Image(t, store.QCOW2, "prod-worker", 2), &uploadtest.Journal{}, func(upload.Event) {}, true)
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v, want %v and %q", err, kind, words)
	}
}

// through is a configuration with another way to the same daemon.
func (c Config) through(t *testing.T, uri string, l Local) Config {
	t.Helper()
	dial, driver, err := Address(uri, l)
	if err != nil {
		t.Fatal(err)
	}
	c.Dial, c.Driver = dial, driver
	return c
}

func save(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// private is a key in the form of ssh's files.
func private(t *testing.T, key crypto.PrivateKey) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// By Debian's sshd, with a key alone, to Debian's libvirtd.
func TestOverSSH(t *testing.T) {
	host := daemon.StartLibvirtd(t)
	c := startedAt(t, host)
	dir := t.TempDir()
	public, mine, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	// Hosts have keys of several kinds, and a user knows one of them.
	second, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sshd := daemon.StartSSHD(t, save(t, dir, "authorized", ssh.MarshalAuthorizedKey(authorized)), "HostKey "+save(t, dir, "second", private(t, second)))
	home := func(key crypto.PrivateKey, known ...ssh.PublicKey) Local {
		l := Local{Home: t.TempDir(), User: sshd.User}
		save(t, l.Home, ".ssh/id_ed25519", private(t, key))
		lines := ""
		for _, k := range known {
			lines += knownhosts.Line([]string{knownhosts.Normalize(sshd.Address)}, k) + "\n"
		}
		save(t, l.Home, ".ssh/known_hosts", []byte(lines))
		return l
	}
	uri := "qemu+ssh://" + sshd.Address + "/session?socket=" + url.QueryEscape(host.Socket())
	reaches(t, c.through(t, uri, home(mine, sshd.HostKey)))
	foreign, err := ssh.NewSignerFromKey(other)
	if err != nil {
		t.Fatal(err)
	}
	shown := ssh.FingerprintSHA256(sshd.HostKey)
	refuses(t, c.through(t, uri, home(mine)), upload.ErrAuth, "is not in ")
	refuses(t, c.through(t, uri, home(mine, foreign.PublicKey())), upload.ErrAuth, shown+", and ")
	refuses(t, c.through(t, uri, home(other, sshd.HostKey)), upload.ErrAuth, "unable to authenticate")
	// The URI may name files of its own.
	empty(t, c.admin(t))
	reaches(t, c.through(t, uri+"&keyfile="+url.QueryEscape(save(t, dir, "named", private(t, mine))), home(other, sshd.HostKey)))
	nobody := Local{Home: t.TempDir(), User: sshd.User}
	refuses(t, c.through(t, uri, nobody), upload.ErrAuth, "log in once with ssh")
	save(t, nobody.Home, ".ssh/known_hosts", []byte(knownhosts.Line([]string{sshd.Address}, sshd.HostKey)))
	refuses(t, c.through(t, uri, nobody), upload.ErrAuth, "there is no key to log in")
	refuses(t, c.through(t, "qemu+ssh://"+sshd.Address+"/session?socket=/nowhere", home(mine, sshd.HostKey)), upload.ErrServer, "does libvirtd listen there")
}

// authority is one that the test makes.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  crypto.Signer
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, cert, key}
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// leaf is a certificate for an address, or for a client, and its key.
func (a authority) leaf(name string, use x509.ExtKeyUsage, address net.IP) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{use},
	}
	if address != nil {
		tmpl.IPAddresses = []net.IP{address}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// client is a directory as libvirt's clients have it: who is trusted, and who we are.
func (a authority) client(trusts authority) string {
	a.t.Helper()
	dir := a.t.TempDir()
	cert, key := a.leaf("imagectl", x509.ExtKeyUsageClientAuth, nil)
	for name, b := range map[string][]byte{"cacert.pem": trusts.pem(), "clientcert.pem": cert, "clientkey.pem": key} {
		save(a.t, dir, name, b)
	}
	return dir
}

// To Debian's libvirtd, which listens itself.
func TestOverTLS(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	cert, key := ours.leaf("kvm1", x509.ExtKeyUsageServerAuth, net.IPv4(127, 0, 0, 1))
	host, address := daemon.StartLibvirtdTLS(t, ours.pem(), cert, key)
	c := startedAt(t, host)
	with := func(pki string) Config {
		return c.through(t, fmt.Sprintf("qemu+tls://%s/session?pkipath=%s", address, url.QueryEscape(pki)), Local{})
	}
	reaches(t, with(ours.client(ours)))
	refuses(t, with(ours.client(theirs)), upload.ErrServer, "certificate signed by unknown authority")
	refuses(t, with(theirs.client(ours)), upload.ErrAuth, "does not take the client's certificate CN=imagectl")
	refuses(t, with(t.TempDir()), upload.ErrAuth, "reading the client's certificate: open ")
	elsewhere := c.through(t, strings.Replace(fmt.Sprintf("qemu+tls://%s/session?pkipath=%s", address, url.QueryEscape(ours.client(ours))), "127.0.0.1", "localhost", 1), Local{})
	refuses(t, elsewhere, upload.ErrServer, "localhost")
	// The user's own place, without a parameter.
	home := t.TempDir()
	if err := os.MkdirAll(filepath.Join(home, ".pki"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(ours.client(ours), filepath.Join(home, ".pki", "libvirt")); err != nil {
		t.Fatal(err)
	}
	empty(t, c.admin(t))
	reaches(t, c.through(t, "qemu+tls://"+address+"/session", Local{Home: home}))
}
