package provenance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
)

var update = flag.Bool("update", false, "rewrite testdata")

// The example of the specification (secure-systems-lab/dsse, protocol.md).
func TestPAEIsTheSpecifications(t *testing.T) {
	t.Parallel()
	got := string(provenance.PAE("http://example.com/HelloWorld", []byte("hello world")))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// Lengths are of bytes, and a payload may be empty.
	if got, want := string(provenance.PAE("é", nil)), "DSSEv1 2 é 0 "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// keyPair makes a pair with openssl and returns the paths of both halves.
func keyPair(t *testing.T, args ...string) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	private, public = filepath.Join(dir, "sign.pem"), filepath.Join(dir, "sign.pub.pem")
	openssl(t, append([]string{"genpkey", "-out", private}, args...)...)
	openssl(t, "pkey", "-in", private, "-pubout", "-out", public)
	return private, public
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func statement(t *testing.T) []byte {
	t.Helper()
	digest := func(c string) provenance.Digest { return provenance.Digest{SHA256: strings.Repeat(c, 64)} }
	b, err := provenance.Encode(provenance.Build{
		Parameters: provenance.Parameters{Cluster: "demo", Flatcar: "4593.2.5", Kubernetes: "v1.36.3"},
		Subjects:   []provenance.Resource{{Name: "z.raw", Digest: digest("a")}, {Name: "a.raw", Digest: digest("b")}},
		Files:      []provenance.Resource{{Name: "cluster.yaml", Digest: digest("c")}},
		Inputs: []lock.Blob{
			{ID: lock.Agent, Source: "../bin/bootstrapd", SHA256: strings.Repeat("d", 64)},
			{ID: lock.FlatcarImage, Source: "https://example.org/image.bin.bz2", SHA256: strings.Repeat("e", 64),
				Signer: &lock.Signer{Primary: "P", Subkey: "S", SignedAt: "2026-08-13T10:00:00Z"}},
		},
		Version: "v1.0.0", Program: strings.Repeat("f", 64),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStatementIsWhatIsReviewed(t *testing.T) {
	t.Parallel()
	if *update {
		if err := os.WriteFile("testdata/statement.json", statement(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(statement(t)), string(read(t, "testdata/statement.json"))); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
	if _, err := provenance.Parse(statement(t)); err != nil {
		t.Error(err)
	}
}

func TestOpenSSLAcceptsSignatures(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		genpkey []string
		verify  func(public, pae, sig string) []string
	}{
		"Ed25519": {[]string{"-algorithm", "ed25519"}, func(public, pae, sig string) []string {
			return []string{"pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", pae, "-sigfile", sig}
		}},
		"ECDSA P-256": {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, func(public, pae, sig string) []string {
			return []string{"dgst", "-sha256", "-verify", public, "-signature", sig, pae}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			private, public := keyPair(t, tc.genpkey...)
			key, err := provenance.ParsePrivateKey(read(t, private))
			if err != nil {
				t.Fatal(err)
			}
			pub, err := provenance.ParsePublicKey(read(t, public))
			if err != nil {
				t.Fatal(err)
			}
			wrapped, err := provenance.Wrap(statement(t), key)
			if err != nil {
				t.Fatal(err)
			}
			line, err := wrapped.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := provenance.Wrap(statement(t), key); err != nil || cmp.Diff(again, wrapped) != "" {
				t.Errorf("signing twice gives two envelopes: %v", err)
			}
			e, err := provenance.ParseEnvelope(line)
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Verify(pub); err != nil {
				t.Error(err)
			}
			// PAE by hand from the file, as somebody without our code would.
			var raw struct {
				PayloadType string
				Payload     []byte
				Signatures  []struct{ Sig []byte }
			}
			if err := json.Unmarshal(line, &raw); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			pae, sig := filepath.Join(dir, "pae"), filepath.Join(dir, "sig")
			script := `printf 'DSSEv1 28 application/vnd.in-toto+json %d ' "$(stat -c %s payload)" > pae; cat payload >> pae`
			if err := errors.Join(os.WriteFile(filepath.Join(dir, "payload"), raw.Payload, 0o600), os.WriteFile(sig, raw.Signatures[0].Sig, 0o600)); err != nil {
				t.Fatal(err)
			}
			sh := exec.Command("sh", "-c", script)
			sh.Dir = dir
			if out, err := sh.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			openssl(t, tc.verify(public, pae, sig)...)

			_, other := keyPair(t, tc.genpkey...)
			stranger, err := provenance.ParsePublicKey(read(t, other))
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Verify(stranger); !errors.Is(err, provenance.ErrSignature) {
				t.Errorf("another key: got %v", err)
			}
			e.Payload = bytes.Replace(e.Payload, []byte("aaaa"), []byte("aaab"), 1)
			if err := e.Verify(pub); !errors.Is(err, provenance.ErrSignature) {
				t.Errorf("another payload: got %v", err)
			}
		})
	}
}

func TestRefusedKeys(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		genpkey []string
		want    string
	}{
		"RSA":                 {[]string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}, "want Ed25519 or ECDSA on P-256"},
		"another curve":       {[]string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}, "its curve is P-384, want P-256"},
		"a key for agreement": {[]string{"-algorithm", "X25519"}, "cannot sign"},
		"an encrypted key":    {[]string{"-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:x"}, "it is encrypted; decrypt it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			private := filepath.Join(t.TempDir(), "key.pem")
			openssl(t, append([]string{"genpkey", "-out", private}, tc.genpkey...)...)
			if _, err := provenance.ParsePrivateKey(read(t, private)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := provenance.ParsePrivateKey([]byte("no key")); err == nil || !strings.Contains(err.Error(), "openssl genpkey") {
		t.Errorf("got %v", err)
	}
}

func TestUnsignedIsSaid(t *testing.T) {
	t.Parallel()
	_, public := keyPair(t, "-algorithm", "ed25519")
	pub, err := provenance.ParsePublicKey(read(t, public))
	if err != nil {
		t.Fatal(err)
	}
	e, err := provenance.Wrap(statement(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(pub); !errors.Is(err, provenance.ErrSignature) || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"","sig":"AA=="}]}`))
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := provenance.ParseEnvelope(b); err == nil {
			if _, err := e.Encode(); err != nil {
				t.Error(err)
			}
		}
		_, _ = provenance.Parse(b)
	})
}
