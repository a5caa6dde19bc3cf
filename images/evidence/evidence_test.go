package evidence_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// pair makes a key pair from a seed.
func pair(t *testing.T, seed byte) (*provenance.PrivateKey, provenance.PublicKey) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := provenance.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return key, key.Public()
}

// output makes a small output directory with everything in it.
func output(t *testing.T, key *provenance.PrivateKey) (dir string, m store.Manifest) {
	t.Helper()
	dir = t.TempDir()
	agent := lock.Blob{ID: lock.Agent, Source: "bin/bootstrapd", SHA256: strings.Repeat("d", 64), Size: 7}
	inputs := []store.Input{{ID: agent.ID, SHA256: agent.SHA256}}
	m = store.Manifest{Version: 1, Cluster: "demo", Flatcar: "4593.2.5", Kubernetes: "v1.36.3"}
	add := func(name string, format store.Format, content []byte, in []store.Input) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		m.Artefacts = append(m.Artefacts, store.Artefact{Name: name, Role: "worker", Format: format, Size: int64(len(content)), SHA256: digest(content), Inputs: in})
	}
	image := []byte("an image of a disk")
	add("demo-worker.raw", store.Raw, image, inputs)
	bill, err := sbom.Encode(sbom.Image{
		Name: "demo-worker", Version: "1",
		Artefacts: []sbom.Artefact{{Name: "demo-worker.raw", SHA256: digest(image)}}, Inputs: []sbom.Input{{Blob: agent}},
	})
	if err != nil {
		t.Fatal(err)
	}
	add("demo-worker.spdx.json", store.SPDX, bill, []store.Input{})
	add("demo-worker.grub.cfg", store.GrubCfg, []byte("set linux_append=\"\"\n"), []store.Input{})
	build := provenance.Build{
		Parameters: provenance.Parameters{Cluster: "demo", Flatcar: "4593.2.5", Kubernetes: "v1.36.3"}, Inputs: []lock.Blob{agent}, Version: "v1",
	}
	if err := evidence.Write(dir, m, build, key); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
	return dir, m
}

func verify(t *testing.T, dir string, key *provenance.PublicKey) (bad map[string]string, notes map[string]string) {
	t.Helper()
	checks, err := evidence.Verify(context.Background(), dir, evidence.Options{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	bad, notes = map[string]string{}, map[string]string{}
	for _, c := range checks {
		if c.Problem != "" {
			bad[c.Name] = c.Problem
		}
		notes[c.Name] = c.Note
	}
	return bad, notes
}

func TestGoodOutputIsGood(t *testing.T) {
	t.Parallel()
	key, public := pair(t, 1)
	dir, _ := output(t, key)
	bad, notes := verify(t, dir, &public)
	if len(bad) > 0 || len(notes) != 6 || notes[evidence.ProvenanceName] != "signed by key "+public.ID() {
		t.Errorf("bad %v, notes %v", bad, notes)
	}
	_, notes = verify(t, dir, nil)
	if got := notes[evidence.ProvenanceName]; got != "its signature was not checked; give --key" {
		t.Errorf("got %q", got)
	}
	sums := exec.Command("sha256sum", "--check", "--strict", evidence.SumsName)
	sums.Dir = dir
	if out, err := sums.CombinedOutput(); err != nil || strings.Count(string(out), ": OK\n") != 5 {
		t.Errorf("sha256sum --check: %v\n%s", err, out)
	}
}

func TestAFlippedByteIsToldByItsFile(t *testing.T) {
	t.Parallel()
	key, public := pair(t, 1)
	for name, key := range map[string]*provenance.PrivateKey{"signed": key, "unsigned": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := output(t, key)
			var want *provenance.PublicKey
			if key != nil {
				want = &public
			}
			files, err := os.ReadDir(dir)
			if err != nil || len(files) != 6 {
				t.Fatalf("%v: %v", files, err)
			}
			for _, f := range files {
				path := filepath.Join(dir, f.Name())
				good, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				// Every seventh byte: of a digest, a name, a signature, a number, a bracket.
				for i := 0; i < len(good); i += 7 {
					b := slices.Clone(good)
					b[i] ^= 1
					if err := os.WriteFile(path, b, 0o644); err != nil {
						t.Fatal(err)
					}
					checks, err := evidence.Verify(context.Background(), dir, evidence.Options{Key: want})
					named := err != nil && strings.Contains(err.Error(), f.Name())
					for _, c := range checks {
						named = named || c.Name == f.Name() && c.Problem != ""
					}
					if !named {
						t.Fatalf("byte %d of %s flipped: got %+v, %v", i, f.Name(), checks, err)
					}
				}
				for _, b := range [][]byte{nil, good[:len(good)-1], append(slices.Clone(good), '\n')} {
					if err := os.WriteFile(path, b, 0o644); err != nil {
						t.Fatal(err)
					}
					checks, err := evidence.Verify(context.Background(), dir, evidence.Options{Key: want})
					named := err != nil && strings.Contains(err.Error(), f.Name())
					for _, c := range checks {
						named = named || c.Name == f.Name() && c.Problem != ""
					}
					if !named {
						t.Fatalf("%s with %d instead of %d bytes: got %+v, %v", f.Name(), len(b), len(good), checks, err)
					}
				}
				if err := os.WriteFile(path, good, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if bad, _ := verify(t, dir, want); len(bad) > 0 {
				t.Errorf("restored, and yet %v", bad)
			}
		})
	}
}

// Somebody changes an image and writes all evidence anew: only the key tells.
func TestForgedEvidence(t *testing.T) {
	t.Parallel()
	_, public := pair(t, 1)
	forger, _ := pair(t, 2)
	for name, tc := range map[string]struct {
		key  *provenance.PrivateKey
		want string
	}{
		"another key": {forger, "the signature does not hold: it is signed by key"},
		"no key":      {nil, "the signature does not hold: it is not signed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _ := output(t, tc.key)
			bad, _ := verify(t, dir, &public)
			if len(bad) != 1 || !strings.HasPrefix(bad[evidence.ProvenanceName], tc.want) {
				t.Errorf("got %v, want %q", bad, tc.want)
			}
		})
	}
}

func TestMissingFilesAreNamed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{evidence.SumsName, evidence.ProvenanceName, "demo-worker.raw", "demo-worker.spdx.json"} {
		dir, _ := output(t, nil)
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if bad, _ := verify(t, dir, nil); !strings.HasPrefix(bad[name], "it is missing") {
			t.Errorf("%s: got %v", name, bad)
		}
	}
}

// An SBOM of another image, listed in the manifest and in all evidence.
func TestAnSBOMOfAnotherImageIsTold(t *testing.T) {
	t.Parallel()
	dir, m := output(t, nil)
	other, err := sbom.Encode(sbom.Image{Name: "demo-worker", Artefacts: []sbom.Artefact{{Name: "demo-worker.raw", SHA256: strings.Repeat("0", 64)}}})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(m.Artefacts, func(a store.Artefact) bool { return a.Format == store.SPDX })
	m.Artefacts[i].SHA256, m.Artefacts[i].Size = digest(other), int64(len(other))
	if err := os.WriteFile(filepath.Join(dir, m.Artefacts[i].Name), other, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := evidence.Write(dir, m, provenance.Build{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
	bad, _ := verify(t, dir, nil)
	if got, want := bad["demo-worker.spdx.json"], "the files it describes and the files here differ in demo-worker.raw"; got != want || len(bad) != 1 {
		t.Errorf("got %v, want %q", bad, want)
	}
}

func TestASignatureIsKeptWhileItsStatementIsTrue(t *testing.T) {
	t.Parallel()
	key, public := pair(t, 1)
	dir, m := output(t, key)
	agent := lock.Blob{ID: lock.Agent, Source: "bin/bootstrapd", SHA256: strings.Repeat("d", 64), Size: 7}
	build := provenance.Build{
		Parameters: provenance.Parameters{Cluster: "demo", Flatcar: "4593.2.5", Kubernetes: "v1.36.3"}, Inputs: []lock.Blob{agent}, Version: "v1",
	}
	if err := evidence.Write(dir, m, build, nil); err != nil {
		t.Fatal(err)
	}
	if bad, _ := verify(t, dir, &public); len(bad) > 0 {
		t.Errorf("the same build without a key: %v", bad)
	}
	build.Version = "v2"
	if err := evidence.Write(dir, m, build, nil); err != nil {
		t.Fatal(err)
	}
	if bad, notes := verify(t, dir, nil); len(bad) > 0 || !strings.HasPrefix(notes[evidence.ProvenanceName], "not signed") {
		t.Errorf("another build without a key: %v, %v", bad, notes)
	}
}

func TestSums(t *testing.T) {
	t.Parallel()
	line := strings.Repeat("a", 64) + "  x\n"
	for name, tc := range map[string]struct{ in, want string }{
		"cut":           {strings.TrimSuffix(line, "\n"), "the last line is cut"},
		"twice":         {line + line, "line 2 names x again"},
		"a directory":   {strings.Replace(line, "x", "../x", 1), "line 1 is no digest"},
		"binary marker": {strings.Replace(line, "  x", " *x", 1), "line 1 is no digest"},
		"an empty line": {line + "\n", "line 2 is no digest"},
	} {
		if _, err := evidence.ParseSums([]byte(tc.in)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
