package pki

import (
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openssl judges a list: it is the CA's, and it revokes one certificate and not the
// other.
func TestOpenSSLRefusesWhatTheListRevokes(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, "imagectl demo")
	key := must[PublicKey](t)(OwnKey(must[crypto.Signer](t)(NewKey(rand.Reader))))
	profile := must[Profile](t)(Node(machineOne(), Lifetimes{}))
	good, bad := must[Issued](t)(ca.Sign(profile, key, testNow(), rand.Reader)), must[Issued](t)(ca.Sign(profile, key, testNow(), rand.Reader))
	der := must[[]byte](t)(ca.RevocationList(7, []Revocation{{bad.Serial(), testNow()}}, testNow()))

	dir := t.TempDir()
	put := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	caFile := put("ca.pem", ca.CertificatePEM())
	crlFile := put("ca.crl.pem", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	if out, err := openssl(t, "crl", "-in", crlFile, "-CAfile", caFile, "-noout", "-text"); err != nil || !strings.Contains(out, "verify OK") || !strings.Contains(out, "X509v3 CRL Number: \n                7") {
		t.Errorf("openssl crl: %v\n%s", err, out)
	}
	// Four weeks later, when no server may have been there to sign another.
	check := []string{"verify", "-x509_strict", "-crl_check", "-attime", "1774785600", "-CAfile", caFile, "-CRLfile", crlFile}
	if out, err := openssl(t, append(check, put("good.pem", good.PEM))...); err != nil {
		t.Errorf("a good certificate: %v\n%s", err, out)
	}
	if out, err := openssl(t, append(check, put("bad.pem", bad.PEM))...); err == nil || !strings.Contains(out, "certificate revoked") {
		t.Errorf("a revoked certificate: %v\n%s", err, out)
	}

	list := must[RevocationList](t)(ParseRevocationList(der, newTestCA(t, "other").Certificate(), ca.Certificate()))
	if !list.Has(bad.Certificate) || list.Has(good.Certificate) || list.Len() != 1 || list.Number() != "7" {
		t.Errorf("read: %+v", list)
	}
	older := must[RevocationList](t)(ParseRevocationList(must[[]byte](t)(ca.RevocationList(6, nil, testNow())), ca.Certificate()))
	if !list.Newer(older) || older.Newer(list) || list.Newer(list) || !older.Newer(RevocationList{}) {
		t.Error("the order of lists is wrong")
	}
}

func TestRevocationListsAreRefused(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t, "imagectl demo")
	der := must[[]byte](t)(ca.RevocationList(1, nil, testNow()))
	flipped := append([]byte(nil), der...)
	flipped[len(flipped)-1] ^= 1
	for want, err := range map[string]error{
		"signing the revocation list of CA imagectl demo: its number is 0":            second(ca.RevocationList(0, nil, testNow())),
		`signing the revocation list of CA imagectl demo: "x" is no serial number`:    second(ca.RevocationList(1, []Revocation{{Serial: "x"}}, testNow())),
		"reading the revocation list of CN=imagectl demo: its CA did not sign it: no": second(ParseRevocationList(der)),
		"reading the revocation list of CN=imagectl demo: its CA did not sign it: x":  second(ParseRevocationList(der, newTestCA(t, "imagectl demo").Certificate())),
		"reading the revocation list of CN=imagectl demo: its CA did not sign it: ":   second(ParseRevocationList(flipped, ca.Certificate())),
		"reading a revocation list: ": second(ParseRevocationList([]byte("x"), ca.Certificate())),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s…", err, want)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func FuzzParseRevocationList(f *testing.F) {
	ca := newTestCA(f, "imagectl demo")
	der, err := ca.RevocationList(1, []Revocation{{Serial: "40", At: testNow()}}, testNow())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		if l, err := ParseRevocationList(der, ca.Certificate()); err == nil && l.Number() == "" {
			t.Error("a list without a number is accepted")
		}
	})
}
