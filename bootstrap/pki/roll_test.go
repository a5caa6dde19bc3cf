package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// rolled is a CA, its successor ten years on, and a node's certificate of each.
type rolled struct {
	old, next          *CA
	nextByOld          *x509.Certificate
	oldByNext          *x509.Certificate
	oldLeaf, nextLeaf  *x509.Certificate
	now                time.Time
	strangerCA         *CA
	nextByStranger     *x509.Certificate
	strangersCertified *x509.Certificate
}

func roll(t *testing.T) rolled {
	t.Helper()
	r := rolled{old: newTestCA(t, "imagectl demo"), strangerCA: newTestCA(t, "imagectl demo"), now: testNow().Add(9 * 365 * day)}
	l := Lifetimes{}.WithDefaults()
	r.next = must[*CA](t)(r.old.Successor(l.CA, l.Backdate, r.now.Add(-day), rand.Reader))
	cert := must[*x509.Certificate](t)
	r.nextByOld = cert(r.old.Cross(r.next.Certificate(), rand.Reader))
	r.oldByNext = cert(r.next.Cross(r.old.Certificate(), rand.Reader))
	r.nextByStranger = cert(r.strangerCA.Cross(r.next.Certificate(), rand.Reader))
	r.strangersCertified = cert(r.next.Cross(r.strangerCA.Certificate(), rand.Reader))
	leaf := func(ca *CA) *x509.Certificate {
		key := must[PublicKey](t)(OwnKey(must[crypto.Signer](t)(NewKey(rand.Reader))))
		return must[Issued](t)(ca.Sign(must[Profile](t)(Node(machineOne(), Lifetimes{})), key, r.now, rand.Reader)).Certificate
	}
	r.oldLeaf, r.nextLeaf = leaf(r.old), leaf(r.next)
	return r
}

// openssl judges the chains of a rollover.
func TestChainsOfARollover(t *testing.T) {
	t.Parallel()
	r := roll(t)
	dir := t.TempDir()
	file := func(name string, certs ...*x509.Certificate) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, EncodeCertificates(certs), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	type certs = []*x509.Certificate
	old, next := r.old.Certificate(), r.next.Certificate()
	for i, c := range []struct {
		what         string
		leaf         *x509.Certificate
		roots, shown certs
		good         bool
	}{
		{"an old leaf, with both trusted", r.oldLeaf, certs{next, old}, nil, true},
		{"a new leaf, with both trusted", r.nextLeaf, certs{old, next}, nil, true},
		{"a new leaf where only the old is trusted, with new by old", r.nextLeaf, certs{old}, certs{r.nextByOld}, true},
		{"a new leaf where only the old is trusted, alone", r.nextLeaf, certs{old}, nil, false},
		{"a new leaf where only the old is trusted, with new by a stranger", r.nextLeaf, certs{old}, certs{r.nextByStranger}, false},
		{"a new leaf where only the old is trusted, with the new itself", r.nextLeaf, certs{old}, certs{next}, false},
		{"an old leaf where only the new is trusted, with old by new", r.oldLeaf, certs{next}, certs{r.oldByNext}, true},
		{"an old leaf where only the new is trusted, alone", r.oldLeaf, certs{next}, nil, false},
		{"an old leaf where only the new is trusted, with new by old", r.oldLeaf, certs{next}, certs{r.nextByOld}, false},
	} {
		args := []string{"verify", "-x509_strict", "-attime", strconv.FormatInt(r.now.Add(time.Minute).Unix(), 10), "-CAfile", file("roots.pem", c.roots...)}
		if len(c.shown) > 0 {
			args = append(args, "-untrusted", file("shown.pem", c.shown...))
		}
		out, err := openssl(t, append(args, file("leaf.pem", c.leaf))...)
		if (err == nil) != c.good {
			t.Errorf("%d, %s: openssl says %v, want accepted %v\n%s", i, c.what, err, c.good, out)
		}
		err = Verify(c.roots, append(certs{c.leaf}, c.shown...), "cp1", x509.ExtKeyUsageServerAuth, r.now)
		if (err == nil) != c.good {
			t.Errorf("%d, %s: Verify says %v, want accepted %v", i, c.what, err, c.good)
		}
	}
}

// What crypto/x509 does alone: the reason for Anchors. When this fails, Anchors can go.
func TestGoCountsSelfIssuedCertificates(t *testing.T) {
	t.Parallel()
	r := roll(t)
	o := x509.VerifyOptions{Roots: Pool([]*x509.Certificate{r.old.Certificate()}), Intermediates: Pool([]*x509.Certificate{r.nextByOld}), CurrentTime: r.now}
	if _, err := r.nextLeaf.Verify(o); err == nil || !strings.Contains(err.Error(), "too many intermediates") {
		t.Errorf("got %v", err)
	}
}

func TestAnchorsAreWhatACASigned(t *testing.T) {
	t.Parallel()
	r := roll(t)
	type certs = []*x509.Certificate
	roots := certs{r.old.Certificate()}
	for what, c := range map[string]struct {
		shown certs
		at    time.Time
		want  int
	}{
		"new by old": {certs{r.nextByOld}, r.now, 2},
		"what the new one has signed, behind new by old": {certs{r.nextByOld, r.strangersCertified}, r.now, 2},
		"a leaf of its own":          {certs{r.oldLeaf}, r.now, 1},
		"another CA's":               {certs{r.nextByStranger, r.strangerCA.Certificate()}, r.now, 1},
		"after the old one's end":    {certs{r.nextByOld}, r.old.Certificate().NotAfter.Add(time.Second), 1},
		"before the new one's begin": {certs{r.nextByOld}, testNow(), 1},
	} {
		if got := Anchors(roots, c.shown, c.at); len(got) != c.want {
			t.Errorf("%s: %d anchors, want %d", what, len(got), c.want)
		}
	}
	if len(roots) != 1 {
		t.Error("the caller's roots were changed")
	}
}

func TestCrossRefuses(t *testing.T) {
	t.Parallel()
	r := roll(t)
	other := newTestCA(t, "etcd demo")
	for want, c := range map[string]*x509.Certificate{
		"cross-signing by CA imagectl demo: CN=etcd demo is no CA of that name": other.Certificate(),
		"cross-signing by CA imagectl demo: CN=cp1 is no CA of that name":       r.oldLeaf,
		"cross-signing by CA imagectl demo: it is the same key":                 r.old.Certificate(),
	} {
		if _, err := r.old.Cross(c, rand.Reader); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestCertificatesAreReadAsWritten(t *testing.T) {
	t.Parallel()
	r := roll(t)
	all := []*x509.Certificate{r.old.Certificate(), r.next.Certificate()}
	got, err := ParseCertificatesPEM(EncodeCertificates(all))
	if err != nil || len(got) != 2 || !got[0].Equal(all[0]) || !got[1].Equal(all[1]) {
		t.Errorf("%d, %v", len(got), err)
	}
	if got, err := ParseCertificatesPEM(nil); err != nil || got != nil {
		t.Errorf("of nothing: %v, %v", got, err)
	}
	key := must[[]byte](t)(r.old.KeyPEM())
	for _, b := range [][]byte{key, append(EncodeCertificates(all), "rest"...), []byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n")} {
		if _, err := ParseCertificatesPEM(b); err == nil {
			t.Errorf("%.60q was read", b)
		}
	}
}
