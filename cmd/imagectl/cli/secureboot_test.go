package cli

import (
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
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
			err := g.addSigner(&in, p)
			if got := fmt.Sprint(err); got != tt.want && (err != nil || tt.want != "") {
				t.Errorf("error %s\nwant  %s", got, tt.want)
			}
			if got := in.Medium.Signer != nil; got != tt.signer {
				t.Errorf("a signer: %v, want %v", got, tt.signer)
			}
		})
	}
}
