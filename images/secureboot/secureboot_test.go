package secureboot_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/secureboot"
)

// made is when the tests' certificates are made; it lies in the past of any clock.
func made() time.Time { return time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC) }

func pair(t testing.TB, name string) (secureboot.Pair, *secureboot.Signer) {
	t.Helper()
	p, err := secureboot.Generate(name, made(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p, signer(t, p)
}

func signer(t testing.TB, p secureboot.Pair) *secureboot.Signer {
	t.Helper()
	cert, err := secureboot.ParseCertificate(p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	s, err := secureboot.NewSigner(p.Key, cert)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestEnrolmentFilesAreThoseOfEfitools makes the same files with efitools from the
// same keys: they are equal to the byte, the signatures included. Firmware takes
// them in test/release.
func TestEnrolmentFilesAreThoseOfEfitools(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	signers := map[string]*secureboot.Signer{}
	for _, name := range []string{"PK", "KEK", "db", "another"} {
		var p secureboot.Pair
		p, signers[name] = pair(t, "test "+name)
		write(t, at(name+".key"), p.Key)
		write(t, at(name+".crt"), p.Certificate)
	}
	keys := secureboot.Keys{PK: signers["PK"], KEK: signers["KEK"], DB: []*x509.Certificate{signers["db"].Certificate(), signers["another"].Certificate()}}
	// In another time zone, and with a fraction that EFI_TIME has no room for here.
	files, err := keys.Enrolment(time.Date(2026, 8, 13, 3, 2, 4, 5e8, time.FixedZone("far", 2*3600)))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]byte{}
	for _, f := range files {
		got[f.Name] = f.Content
	}
	if len(got) != 9 {
		t.Fatalf("%d files, want 9", len(got))
	}
	// The owner is in the list itself, in the mixed order of UEFI's GUIDs.
	g := [16]byte(got["db.esl"][28:44])
	for _, p := range [][2]int{{0, 3}, {1, 2}, {4, 5}, {6, 7}} {
		g[p[0]], g[p[1]] = g[p[1]], g[p[0]]
	}
	owner := uuid.UUID(g)
	if owner.Version() != 8 || owner.Variant() != uuid.RFC4122 {
		t.Errorf("the owner %s is no UUID of version 8", owner)
	}
	for _, v := range []struct {
		name, by string
		certs    []string
	}{{"PK", "PK", []string{"PK"}}, {"KEK", "PK", []string{"KEK"}}, {"db", "KEK", []string{"db", "another"}}} {
		var list []byte
		for _, c := range v.certs {
			fstreetest.Run(t, "efitools", "cert-to-efi-sig-list", "-g", owner.String(), at(c+".crt"), at("one.esl"))
			list = append(list, read(t, at("one.esl"))...)
		}
		write(t, at(v.name+".esl"), list)
		fstreetest.Run(t, "efitools", "sign-efi-sig-list", "-g", owner.String(), "-t", "2026-08-13 01:02:04",
			"-k", at(v.by+".key"), "-c", at(v.by+".crt"), v.name, at(v.name+".esl"), at(v.name+".auth"))
		fstreetest.Run(t, "openssl", "openssl", "x509", "-in", at(v.name+".crt"), "-outform", "DER", "-out", at(v.name+".cer"))
		for _, end := range []string{".esl", ".auth", ".cer"} {
			if want := read(t, at(v.name+end)); !bytes.Equal(got[v.name+end], want) {
				t.Errorf("%s differs from efitools':\n%x\n%x", v.name+end, got[v.name+end], want)
			}
		}
	}
}

func TestEnrolmentNeedsACertificateForDB(t *testing.T) {
	_, s := pair(t, "test")
	_, err := secureboot.Keys{PK: s, KEK: s}.Enrolment(made())
	if want := "making enrolment files: there is no certificate for db"; fmt.Sprint(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestEqualInputGivesEqualSignatures(t *testing.T) {
	_, s := pair(t, "test")
	sign := func(what string) []byte {
		b, err := s.SignProgram(sha256.Sum256([]byte(what)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(sign("a"), sign("a")) {
		t.Error("two signatures of the same program differ")
	}
	if bytes.Equal(sign("a"), sign("b")) {
		t.Error("two programs have the same signature")
	}
}

// TestGeneratedCertificate: what openssl says about one.
func TestGeneratedCertificate(t *testing.T) {
	p, _ := pair(t, "prod Secure Boot db")
	path := filepath.Join(t.TempDir(), "crt")
	write(t, path, p.Certificate)
	out := fstreetest.Run(t, "openssl", "openssl", "x509", "-in", path, "-noout", "-subject", "-issuer", "-startdate", "-enddate")
	want := "subject=CN = prod Secure Boot db\nissuer=CN = prod Secure Boot db\nnotBefore=Mar  4 05:06:07 2025 GMT\nnotAfter=Mar  4 05:06:07 2045 GMT\n"
	if out != want {
		t.Errorf("openssl says\n%swant\n%s", out, want)
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	own, _ := pair(t, "own")
	other, _ := pair(t, "other")
	write(t, at("own"), own.Key)
	openssl := func(args ...string) []byte {
		fstreetest.Run(t, "openssl", slices.Concat([]string{"openssl"}, args, []string{"-out", at("out")})...)
		return read(t, at("out"))
	}
	ec := openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
	write(t, at("ec"), ec)
	ecCert := openssl("req", "-x509", "-key", at("ec"), "-subj", "/CN=ec")
	smallCert := openssl("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=small", "-keyout", at("small"))
	encrypted := openssl("pkey", "-in", at("own"), "-aes256", "-passout", "pass:x")
	pkcs1 := openssl("rsa", "-in", at("own"), "-traditional")
	oldEncrypted := openssl("rsa", "-in", at("own"), "-traditional", "-aes256", "-passout", "pass:x")
	der := openssl("x509", "-in", func() string { write(t, at("crt"), own.Certificate); return at("crt") }(), "-outform", "DER")

	const encryptedHint = "it is encrypted; decrypt it for the build: openssl pkey -in KEY -out db.key"
	for _, tt := range []struct {
		name      string
		key, cert []byte
		want      string // "" for none
	}{
		{"as generated", own.Key, own.Certificate, ""},
		{"PKCS #1 and DER", pkcs1, der, ""},
		{"another's certificate", own.Key, other.Certificate, `the certificate "CN=other" belongs to another private key`},
		{"no PEM", []byte("x"), own.Certificate, "parsing private key: it is not PEM; make keys with: imagectl secureboot keys"},
		{"a certificate for a key", own.Certificate, own.Certificate, `parsing private key: it is a PEM block "CERTIFICATE", want PRIVATE KEY`},
		{"an encrypted key", encrypted, own.Certificate, "parsing private key: " + encryptedHint},
		{"a key encrypted as formerly", oldEncrypted, own.Certificate, "parsing private key: " + encryptedHint},
		{"an elliptic key", ec, own.Certificate, "parsing private key: it is a *ecdsa.PrivateKey, want RSA: firmware verifies nothing else"},
		{"an elliptic certificate", own.Key, ecCert, "its key is a *ecdsa.PublicKey, want RSA: firmware verifies nothing else"},
		{"a short key", own.Key, smallCert, "its RSA key has 1024 bits, want 2048 to 4096"},
		{"a key for a certificate", own.Key, own.Key, `it is a PEM block "PRIVATE KEY", want CERTIFICATE`},
		{"half a certificate", own.Key, own.Certificate[:100], "it is damaged PEM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert, err := secureboot.ParseCertificate(tt.cert)
			if err == nil {
				_, err = secureboot.NewSigner(tt.key, cert)
			}
			if got := strings.Replace(fmt.Sprint(err), "<nil>", "", 1); got != tt.want {
				t.Errorf("error %s\nwant  %s", got, tt.want)
			}
		})
	}
}

// FuzzParse: whatever the files are, there is an answer, and what is accepted signs.
func FuzzParse(f *testing.F) {
	p, _ := pair(f, "seed")
	f.Add(p.Key, p.Certificate)
	f.Add([]byte("-----BEGIN"), []byte("-----BEGIN"))
	f.Fuzz(func(t *testing.T, key, cert []byte) {
		c, err := secureboot.ParseCertificate(cert)
		if err != nil {
			return
		}
		s, err := secureboot.NewSigner(key, c)
		if err != nil {
			return
		}
		if _, err := s.SignProgram([32]byte{}); err != nil {
			t.Error(err)
		}
	})
}
