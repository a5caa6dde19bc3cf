package build_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

func signKey(t *testing.T) *provenance.PrivateKey {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := provenance.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestABuildLeavesEvidenceOfItself(t *testing.T) {
	t.Parallel()
	ctx, s, out := context.Background(), newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.ReadFile("../sbom/testdata/base.spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	in.Agent = s.blob(lock.Agent, "bin/bootstrapd", program)
	in.Sets = []build.Set{build.SetPXE}
	in.Evidence = build.Evidence{
		Files:   []provenance.Resource{{Name: "cluster.yaml", Digest: provenance.Digest{SHA256: strings.Repeat("1", 64)}}},
		Version: "v1", Key: signKey(t), Versions: map[lock.ID]string{lock.Kubelet: "v1.36.3"},
		BaseSBOM: s.blob(lock.FlatcarSBOM, "flatcar_production_image_sbom.json", base),
	}
	res, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	public := in.Evidence.Key.Public()
	good := func(when string) {
		t.Helper()
		checks, err := evidence.Verify(ctx, out, evidence.Options{Key: &public})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range checks {
			if c.Problem != "" {
				t.Errorf("%s: %s: %s", when, c.Name, c.Problem)
			}
		}
	}
	good("built")

	b, err := os.ReadFile(filepath.Join(out, artefact(t, res.Manifest, "worker", store.SPDX).Name))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := spdxjson.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	bill, err := sbom.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := bill.Inputs()[string(lock.Agent)]; got != in.Agent.SHA256 {
		t.Errorf("the agent has digest %q in the SBOM, want %q", got, in.Agent.SHA256)
	}
	if _, ok := bill.Inputs()[string(lock.EtcdArchive)]; ok {
		t.Error("a worker's SBOM lists etcd")
	}
	software := map[string]bool{}
	for _, p := range bill.Software() {
		software[p.Name] = true
	}
	for _, want := range []string{"sys-libs/glibc", "stdlib", "github.com/imagectl/imagectl/images/build.test"} {
		if !software[want] {
			t.Errorf("the SBOM lacks %s; it has %v", want, software)
		}
	}
	ign, err := os.ReadFile(filepath.Join(out, artefact(t, res.Manifest, "worker", store.Ignition).Name))
	if err != nil || !bytes.Equal(ign, in.Roles[1].ConfigIgn) {
		t.Errorf("config.ign beside the image is not the one in it: %v", err)
	}

	// One format more: the bill names it, the signature covers it.
	in.Sets = []build.Set{build.SetPXE, build.SetRaw}
	if _, err := build.Run(ctx, in, nil); err != nil {
		t.Fatal(err)
	}
	good("raw added")

	// A lost document comes back without anything being built.
	if err := os.Remove(filepath.Join(out, artefact(t, res.Manifest, "", store.SPDX).Name)); err != nil {
		t.Fatal(err)
	}
	again, err := build.Run(ctx, in, nil)
	if err != nil || len(again.Built) > 0 {
		t.Errorf("a lost document had %v built: %v", again.Built, err)
	}
	good("a document was lost")

	// Another comment in a Butane file: the same image, and the manifest says so.
	in.Roles[1].Butane = []store.Input{{ID: "butane/a.bu", SHA256: strings.Repeat("a", 64)}}
	noted, err := build.Run(ctx, in, nil)
	if err != nil || len(noted.Built) > 0 {
		t.Errorf("another Butane file with the same result had %v built: %v", noted.Built, err)
	}
	of := artefact(t, noted.Manifest, "worker", store.Ignition).Inputs
	if len(of) != 2 || of[0] != in.Roles[1].Butane[0] || of[1].ID != "rendered/config.ign" {
		t.Errorf("config.ign is said to be of %v", of)
	}
	good("a Butane file was edited")
}
