package pkcs11_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/pkcs11"
	"github.com/imagectl/imagectl/images/secureboot"
	"github.com/imagectl/imagectl/images/uki"
)

// softHSM is where Debian's package has the library of its token in software.
const softHSM = "/usr/lib/softhsm/libsofthsm2.so"

const pin = "4711-secret"

// token is one of SoftHSM's with two keys. The first, with the ID 0a0b, is also in
// pair.
type token struct {
	conf string
	pair secureboot.Pair
}

func newToken(t *testing.T) token {
	t.Helper()
	dir := t.TempDir()
	k := token{conf: filepath.Join(dir, "conf")}
	if err := os.MkdirAll(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, k.conf, fmt.Appendf(nil, "directories.tokendir = %s/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", dir))
	k.util(t, "--init-token", "--free", "--label", "prod", "--so-pin", "12345678", "--pin", pin)
	for _, id := range []string{"0c", "0a0b"} {
		var err error
		if k.pair, err = secureboot.Generate("test", time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), rand.Reader); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, id+".pem")
		write(t, path, k.pair.Key)
		k.util(t, "--import", path, "--token", "prod", "--label", "key "+id, "--id", id, "--pin", pin)
	}
	return k
}

func (k token) util(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("softhsm2-util", args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.conf)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util %s: %v: %s (apt-get install -y softhsm2)", args[0], err, out)
	}
}

// run really runs a program, and looks that the PIN is not where others see it.
func (k token) run(t *testing.T) pkcs11.Run {
	return func(argv, env []string, stdin []byte) ([]byte, error) {
		if strings.Contains(strings.Join(argv, " "), pin) {
			t.Errorf("the PIN is among the arguments: %q", argv)
		}
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Env = append(append(os.Environ(), "SOFTHSM2_CONF="+k.conf), env...)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.Join(strings.Fields(stderr.String()), " "))
		}
		return out, err
	}
}

func (k token) signer(t *testing.T, uri, pin string) (*secureboot.Signer, error) {
	t.Helper()
	cert, err := secureboot.ParseCertificate(k.pair.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	u, err := pkcs11.ParseURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pkcs11.NewKey(u, pin, cert.PublicKey.(*rsa.PublicKey), k.run(t))
	if err != nil {
		return nil, err
	}
	return secureboot.WithKey(key, cert)
}

// TestForeignToolsAcceptATokensSignature: and it is that of the same key in a file,
// byte by byte.
func TestForeignToolsAcceptATokensSignature(t *testing.T) {
	t.Parallel()
	k := newToken(t)
	stub, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if err != nil {
		t.Fatalf("%v: apt-get install -y systemd-boot-efi", err)
	}
	program := func(s *secureboot.Signer) []byte {
		t.Helper()
		m, err := uki.New(uki.Options{
			Stub: stub, OSRelease: "ID=test\n", Cmdline: "quiet", Kernel: fstree.Bytes(stub), Initrd: fstree.Bytes("initrd"), Signer: s,
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	inToken, err := k.signer(t, "pkcs11:token=prod;id=%0a%0B;object=key%200a0b;type=private?module-path="+softHSM, pin)
	if err != nil {
		t.Fatal(err)
	}
	signed := program(inToken)
	inFile, err := secureboot.NewSigner(k.pair.Key, inToken.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(signed, program(inFile)) {
		t.Error("the token signs otherwise than the same key in a file")
	}
	path, cert := filepath.Join(t.TempDir(), "uki.efi"), filepath.Join(t.TempDir(), "cert.pem")
	write(t, path, signed)
	write(t, cert, k.pair.Certificate)
	fstreetest.Run(t, "sbsigntool", "sbverify", "--cert", cert, path)
	if out := fstreetest.Run(t, "osslsigncode", "osslsigncode", "verify", "-CAfile", cert, "-in", path); !strings.Contains(out, "Succeeded") {
		t.Errorf("osslsigncode: %s", out)
	}
}

func TestWhatATokenRefuses(t *testing.T) {
	t.Parallel()
	k := newToken(t)
	const module = "?module-path=" + softHSM
	for _, tt := range []struct{ name, uri, pin, want string }{
		{"another PIN", "pkcs11:token=prod;id=%0a%0b" + module, "0000", "CKR_PIN_INCORRECT"},
		{"no such key", "pkcs11:token=prod;id=%01" + module, pin, "Private key not found"},
		{"another key", "pkcs11:token=prod;id=%0c" + module, pin, "its key with the ID 0c is not that of the certificate"},
		{"no such token", "pkcs11:token=qa;id=%0a%0b" + module, pin, `No slot with token named "qa" found`},
		{"no such slot", "pkcs11:slot-id=7;id=%0a%0b" + module, pin, "CKR_SLOT_ID_INVALID"},
		{"no such library", "pkcs11:token=prod;id=%0a%0b?module-path=/no/library.so", pin, "/no/library.so: cannot open shared object file"},
		{"no PIN", "pkcs11:token=prod;id=%0a%0b" + module, "", "the PIN is empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := k.signer(t, tt.uri, tt.pin)
			if err == nil {
				_, err = s.SignProgram([32]byte{1})
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), pin) {
				t.Errorf("error %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestOnlyWhatFirmwareTakesIsSigned(t *testing.T) {
	t.Parallel()
	key, err := pkcs11.NewKey(pkcs11.URI{ID: "a"}, "1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, opts := range []crypto.SignerOpts{crypto.SHA1, &rsa.PSSOptions{Hash: crypto.SHA256}} {
		if _, err := key.Sign(nil, make([]byte, 32), opts); err == nil || err.Error() != "signing with a token: it signs PKCS #1 v1.5 over SHA-256 only" {
			t.Errorf("with %v: error %v", opts, err)
		}
	}
}

func TestParseURI(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		uri, want string // of the error, "" for none
		is        pkcs11.URI
	}{
		// As p11tool prints it.
		{"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=8ec8fe7ee8327e20;token=prod;id=%0A%0B;object=db;type=private", "", pkcs11.URI{Token: "prod", ID: "\n\v"}},
		{"pkcs11:slot-id=3;id=%01?module-path=/usr/lib/opensc-pkcs11.so", "", pkcs11.URI{Slot: "3", ID: "\x01", Module: "/usr/lib/opensc-pkcs11.so"}},
		{"keys/db.key", "it does not begin with pkcs11:", pkcs11.URI{}},
		{"pkcs11:object=db", "it has no id, by which the key is found: pkcs11-tool --login --list-objects shows ids, and id=%0A%0B is that of the ID 0a0b", pkcs11.URI{}},
		{"pkcs11:", "it has no id, by which the key is found: pkcs11-tool --login --list-objects shows ids, and id=%0A%0B is that of the ID 0a0b", pkcs11.URI{}},
		{"pkcs11:id=%0", `"id=%0" is not NAME=VALUE with %XX for other than plain characters`, pkcs11.URI{}},
		{"pkcs11:id=%01;;", `"" is not NAME=VALUE with %XX for other than plain characters`, pkcs11.URI{}},
		{"pkcs11:id=%01;id=%02", "it has id twice", pkcs11.URI{}},
		{"pkcs11:id=%01;slot-id=x", `slot-id "x" is no number`, pkcs11.URI{}},
		{"pkcs11:id=%01;label=db", `its attribute "label" is not one of RFC 7512`, pkcs11.URI{}},
		{"pkcs11:id=%01?module-name=softhsm2", "module-name is not known; name the library's file: module-path=/usr/lib/softhsm/libsofthsm2.so", pkcs11.URI{}},
		{"pkcs11:id=%01?pin-value=1234", "pin-value does not belong in it: pin says where the PIN is", pkcs11.URI{}},
		{"pkcs11:id=%01?pin-source=file:/pin", "pin-source does not belong in it: pin says where the PIN is", pkcs11.URI{}},
	} {
		got, err := pkcs11.ParseURI(tt.uri)
		if tt.want != "" {
			if err == nil || err.Error() != tt.want {
				t.Errorf("%s: error %v\nwant %s", tt.uri, err, tt.want)
			}
			continue
		}
		if diff := cmp.Diff(tt.is, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.uri, err, diff)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("pkcs11:token=prod;id=%0A?module-path=/x")
	f.Fuzz(func(t *testing.T, s string) {
		if u, err := pkcs11.ParseURI(s); err == nil && u.ID == "" {
			t.Errorf("%q has no ID", s)
		}
	})
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}
