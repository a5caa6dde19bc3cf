package cli

import (
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/images/build"
)

// TestTheKeyIsReadWhenItSigns, and only then.
func TestTheKeyIsReadWhenItSigns(t *testing.T) {
	dir := t.TempDir()
	if err := writeKeys(filepath.Join(dir, "keys"), "test", time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), rand.Reader); err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "keys", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	block, _ := pem.Decode(read("db.crt"))
	t.Setenv("IMAGECTL_TEST_DB_KEY", string(read("db.key")))
	t.Setenv("IMAGECTL_TEST_NO_KEY", "")
	g := &globals{file: filepath.Join(dir, "cluster.yaml")}
	for _, tt := range []struct {
		name   string
		key    cluster.Secret
		set    build.Set
		signer bool
		want   string // of the error
	}{
		{"a file beside cluster.yaml", cluster.Secret{File: "keys/db.key"}, build.SetISO, true, ""},
		{"a file elsewhere", cluster.Secret{File: filepath.Join(dir, "keys/db.key")}, build.SetUKI, true, ""},
		{"the environment", cluster.Secret{Env: "IMAGECTL_TEST_DB_KEY"}, build.SetUKI, true, ""},
		{"nothing to sign", cluster.Secret{File: "keys/missing.key"}, build.SetRaw, false, ""},
		{"no file", cluster.Secret{File: "keys/missing.key"}, build.SetUKI, false, "reading boot.secureBoot.key: open " + dir + "/keys/missing.key: no such file or directory"},
		{"an empty environment", cluster.Secret{Env: "IMAGECTL_TEST_NO_KEY"}, build.SetISO, false, "reading boot.secureBoot.key: the environment variable IMAGECTL_TEST_NO_KEY is empty"},
		{"another key", cluster.Secret{File: "keys/PK.key"}, build.SetISO, false, `using boot.secureBoot: the certificate "CN=test Secure Boot db" belongs to another private key`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := build.Inputs{Sets: []build.Set{tt.set}, Medium: &build.Medium{}}
			var p plan.Plan
			p.Boot.SecureBoot = cluster.SecureBoot{Certificate: block.Bytes, Key: tt.key}
			err := g.addSigner(t.Context(), &in, p)
			if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
				t.Errorf("error %s\nwant  %s", got, tt.want)
			}
			if got := in.Medium.Signer != nil; got != tt.signer {
				t.Errorf("a signer: %v, want %v", got, tt.signer)
			}
		})
	}
}

// TestAKeyInATokenSigns: cluster.yaml names it, and its PIN is a secret.
func TestAKeyInATokenSigns(t *testing.T) {
	dir := t.TempDir()
	if err := writeKeys(filepath.Join(dir, "keys"), "test", time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC), rand.Reader); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"softhsm": "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n", "pin": "4711\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", filepath.Join(dir, "softhsm"))
	t.Setenv("IMAGECTL_TEST_PIN", "0000")
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "prod", "--so-pin", "12345678", "--pin", "4711"},
		{"--import", filepath.Join(dir, "keys/db.key"), "--token", "prod", "--label", "db", "--id", "01", "--pin", "4711"},
	} {
		if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util: %v: %s (apt-get install -y softhsm2)", err, out)
		}
	}
	pem, err := os.ReadFile(filepath.Join(dir, "keys/db.crt"))
	if err != nil {
		t.Fatal(err)
	}
	g := &globals{file: filepath.Join(dir, "cluster.yaml")}
	sign := func(pin cluster.Secret) ([]byte, error) {
		in := build.Inputs{Sets: []build.Set{build.SetUKI}, Medium: &build.Medium{}}
		var p plan.Plan
		p.Boot.SecureBoot = cluster.SecureBoot{Certificate: pem, Key: cluster.Secret{File: "pkcs11:token=prod;id=%01?module-path=/usr/lib/softhsm/libsofthsm2.so"}, PIN: pin}
		if err := g.addSigner(t.Context(), &in, p); err != nil {
			return nil, err
		}
		return in.Medium.Signer.SignProgram([32]byte{1})
	}
	if signature, err := sign(cluster.Secret{File: "pin"}); err != nil || len(signature) == 0 {
		t.Errorf("a signature of %d bytes, error %v", len(signature), err)
	}
	if _, err := sign(cluster.Secret{File: "no-pin"}); err == nil || !strings.HasPrefix(err.Error(), "using boot.secureBoot: reading its pin: open "+dir+"/no-pin: ") {
		t.Errorf("without the PIN: error %v", err)
	}
	if _, err := sign(cluster.Secret{Env: "IMAGECTL_TEST_PIN"}); err == nil || !strings.Contains(err.Error(), "running pkcs11-tool ") || !strings.Contains(err.Error(), "CKR_PIN_INCORRECT") {
		t.Errorf("with another PIN: error %v", err)
	}
}
