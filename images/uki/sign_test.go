package uki_test

import (
	"bytes"
	"crypto/rand"
	"debug/pe"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/secureboot"
	"github.com/imagectl/imagectl/images/uki"
)

// signer is a new key, and a file with its certificate.
func signer(t testing.TB) (s *secureboot.Signer, certPath string) {
	t.Helper()
	p, err := secureboot.Generate("test", time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := secureboot.ParseCertificate(p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = secureboot.NewSigner(p.Key, cert); err != nil {
		t.Fatal(err)
	}
	certPath = filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(certPath, p.Certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	return s, certPath
}

func TestForeignToolsAcceptTheSignature(t *testing.T) {
	o := options(t)
	var cert string
	o.Signer, cert = signer(t)
	path, _ := written(t, o)
	if out := fstreetest.Run(t, "sbsigntool", "sbverify", "--list", path); !strings.Contains(out, "subject: /CN=test") || strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("sbverify: %s", out)
	}
	fstreetest.Run(t, "sbsigntool", "sbverify", "--cert", cert, path)
	if out := fstreetest.Run(t, "osslsigncode", "osslsigncode", "verify", "-CAfile", cert, "-in", path); !strings.Contains(out, "Succeeded") {
		t.Errorf("osslsigncode: %s", out)
	}
	_, another := signer(t)
	if sbverify(t, another, path) == nil {
		t.Error("sbverify accepts it with the certificate of another key")
	}
}

// TestAnUnsignedOneCanBeSignedElsewhere: by whoever has the key in a token.
func TestAnUnsignedOneCanBeSignedElsewhere(t *testing.T) {
	path, _ := written(t, options(t))
	dir := t.TempDir()
	key, cert := filepath.Join(dir, "key"), filepath.Join(dir, "cert")
	fstreetest.Run(t, "openssl", "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-keyout", key, "-out", cert)
	signed := filepath.Join(dir, "signed.efi")
	out := fstreetest.Run(t, "sbsigntool", "sbsign", "--key", key, "--cert", cert, "--output", signed, path)
	if strings.Contains(strings.ToLower(out), "warning") {
		t.Errorf("sbsign warns: %s", out)
	}
	fstreetest.Run(t, "sbsigntool", "sbverify", "--cert", cert, signed)
}

// TestOneChangedByteIsRefused, wherever it is.
func TestOneChangedByteIsRefused(t *testing.T) {
	o := options(t)
	var cert string
	o.Signer, cert = signer(t)
	path, m := written(t, o)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	coff := int64(binary.LittleEndian.Uint32(good[0x3c:])) + 4
	f, err := pe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := int64(f.OptionalHeader.(*pe.OptionalHeader64).DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY].VirtualAddress)
	for what, at := range map[string]int64{
		"a header": coff + 4, "the stub": int64(f.Sections[0].Offset), "os-release": m.Section(uki.OSRelease).Offset, "the command line": m.Section(uki.Cmdline).Offset + 3,
		"the initial RAM file system": m.Section(uki.Initrd).Offset + m.Section(uki.Initrd).Length - 1, "the kernel": m.Section(uki.Kernel).Offset + 4711,
		"padding": table - 1, "the signature": int64(len(good)) - 20,
	} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if sbverify(t, cert, path) == nil {
			t.Errorf("sbverify accepts a change of %s at %d", what, at)
		}
	}
}

// sbverify is nil when it accepts the program; another answer than yes and no ends
// the test.
func sbverify(t *testing.T, cert, path string) error {
	t.Helper()
	out, err := exec.Command("sbverify", "--cert", cert, path).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("verification failed")) && !bytes.Contains(out, []byte("Hash doesn't match")) {
		t.Fatalf("sbverify: %v: %s", err, out)
	}
	return err
}

// TestSignedBytes: a signature adds a table and where it is, and the same key gives
// the same bytes.
func TestSignedBytes(t *testing.T) {
	o := options(t)
	plain := content(t, image(t, o))
	o.Signer, _ = signer(t)
	signed := content(t, image(t, o))
	if !bytes.Equal(signed, content(t, image(t, o))) {
		t.Error("two programs with one key differ")
	}
	if len(signed) <= len(plain) || len(signed)%8 != 0 {
		t.Fatalf("%d bytes signed, %d unsigned", len(signed), len(plain))
	}
	at := int64(binary.LittleEndian.Uint32(plain[0x3c:])) + 24 + 144
	clear(signed[at : at+8])
	if !bytes.Equal(signed[:len(plain)], plain) {
		t.Error("a signature changes what it covers")
	}
}

func image(t testing.TB, o uki.Options) *uki.Image {
	t.Helper()
	m, err := uki.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// fixed answers with the same for every program.
type fixed struct {
	signature []byte
	err       error
}

func (f fixed) SignProgram([32]byte) ([]byte, error) { return f.signature, f.err }

func TestSigningFails(t *testing.T) {
	for _, tt := range []struct {
		signer uki.Signer
		want   string
	}{
		{fixed{err: errors.New("no token")}, "no token"},
		{fixed{}, "a signature of 0 bytes is none that firmware takes"},
		{fixed{signature: make([]byte, 1<<16)}, "a signature of 65536 bytes is none that firmware takes"},
	} {
		o := options(t)
		o.Initrd, o.Signer = fstree.Bytes("x"), tt.signer
		_, err := uki.New(o)
		if want := "putting a unified kernel image together: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}
