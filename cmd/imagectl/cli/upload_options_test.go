package cli

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/evidence"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload/opennebula/onedtest"
)

// edit changes cluster.yaml.
func (s *uploadSite) edit(from, to string) {
	s.Helper()
	b, err := os.ReadFile(s.path("cluster.yaml"))
	if err != nil {
		s.Fatal(err)
	}
	if !strings.Contains(string(b), from) {
		s.Fatalf("cluster.yaml has no %q", from)
	}
	s.write("cluster.yaml", strings.Replace(string(b), from, to, 1))
}

// The server's CA has changed, and the image has not: machines that are made of the
// template now have to meet the new one.
func TestANewServerReachesTheTemplateOfTheSameImage(t *testing.T) {
	s := newUploadSite(t)
	img := s.build(1)
	if code, out, errs := s.upload(); code != exitDone {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	s.write("node.json", `{"cluster":"demo","ca":"new"}`)
	// base64 of that
	const node = "<IMAGECTL_NODE>eyJjbHVzdGVyIjoiZGVtbyIsImNhIjoibmV3In0=</IMAGECTL_NODE>"
	template := func() string { return s.one.Template(onedtest.Session, "lab-worker") }
	out := s.path("out")
	s.wants(exitDone, "its template has other options than cluster.yaml has now; --promote renews it", "upload", "one", "worker", "--out", out, "--dry-run")
	s.wants(exitDone, "renew its template", "upload", "one", "worker", "--out", out, "--dry-run", "--promote")
	code, said, errs := s.upload()
	if code != exitDone || !strings.Contains(errs, "--promote renews it") || strings.Contains(template(), node) {
		t.Errorf("unasked: %d\n%s%s%s", code, said, errs, template())
	}
	s.wants(exitDone, "its template has the options of now", "upload", "one", "worker", "--out", out, "--promote")
	if !strings.Contains(template(), node) {
		t.Errorf("the template starts machines of the old server:\n%s", template())
	}
	s.wants(exitDone, "no changes", "upload", "one", "worker", "--out", out, "--promote")
	s.edit(`memoryMB: "4096"`, `memoryMB: "8192"`)
	s.wants(exitDone, "is current, as before, and its template has the options of now", "upload", "promote", "one", img.Version)
	if !strings.Contains(template(), "<MEMORY>8192</MEMORY>") {
		t.Errorf("the template is\n%s", template())
	}
}

// cluster.yaml was edited after an upload broke off: what that left is named, and found
// again when cluster.yaml says what it said.
func TestCleanupNamesWhatIsLeftElsewhere(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	s.one.Hold()
	if code, out, errs := s.overtaken(); code != exitTimeout {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	s.one.Release()
	s.one.Settle()
	const before, after = "datastore: default", `datastore: "1"`
	s.edit(before, after)
	code, out, errs := s.imagectl("upload", "cleanup", "one")
	if code != exitDone || strings.Contains(out, "nothing was left\n") || !strings.Contains(errs, "type opennebula, endpoint "+s.one.URL+", datastore default") || !strings.Contains(errs, "image lab-worker-") {
		t.Errorf("with another datastore: %d\n%s%s", code, out, errs)
	}
	if all, err := filepath.Glob(s.path("state/imagectl/uploads/*.journal")); err != nil || len(all) != 1 || !strings.Contains(errs, all[0]) {
		t.Errorf("there are the journals %v, %v", all, err)
	}
	s.edit(after, before)
	code, out, errs = s.imagectl("upload", "cleanup", "one")
	if code != exitDone || !strings.Contains(out, "image lab-worker-") || strings.Contains(errs, ".journal") {
		t.Errorf("as it was: %d\n%s%s", code, out, errs)
	}
	s.wants(exitDone, "nothing was left\n", "upload", "cleanup", "one")
}

// What the provenance knows of a build is on the object.
func TestUploadLabelsWithWhatProvenanceKnows(t *testing.T) {
	s := newUploadSite(t)
	s.build(1)
	m, err := store.ReadManifest(s.path("out"))
	if err != nil {
		t.Fatal(err)
	}
	image := lock.Blob{
		ID: lock.FlatcarImage, Source: "https://example.org/image.bin.bz2", SHA256: strings.Repeat("d", 64), Size: 7,
		Signer: &lock.Signer{Primary: strings.Repeat("A", 40), Subkey: strings.Repeat("B", 40), SignedAt: "2026-11-19T08:15:00Z"},
	}
	build := provenance.Build{
		Parameters: provenance.Parameters{Cluster: m.Cluster, Flatcar: m.Flatcar, Kubernetes: m.Kubernetes}, Inputs: []lock.Blob{image},
		Version: "v0.0.0-20261122074200-d711a2875dd2+dirty",
	}
	if err := evidence.Write(s.path("out"), m, build, nil); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(s.path("out/" + store.ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	if code, out, errs := s.upload(); code != exitDone {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	got := s.one.Attributes(onedtest.Session, "lab-worker-4593.2.1-")
	for _, want := range []string{
		"<IMAGECTL_GIT>v0.0.0-20261122074200-d711a2875dd2-dirty<", "<IMAGECTL_CREATED>2026-11-19T08:15:00Z<", fmt.Sprintf("<IMAGECTL_MANIFEST>%x<", sha256.Sum256(b)),
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the image lacks %s:\n%s", want, got)
		}
	}

	// That of another build says nothing of this one.
	build.Version = "v9.9.9"
	m.Artefacts[1].SHA256 = strings.Repeat("e", 64)
	if err := evidence.Write(s.path("out"), m, build, nil); err != nil {
		t.Fatal(err)
	}
	m.Artefacts[1].SHA256 = s.build(2).SHA256
	if code, out, errs := s.upload(); code != exitDone {
		t.Fatalf("%d\n%s%s", code, out, errs)
	}
	if all := s.one.Attributes(onedtest.Session, "lab-worker-4593.2.1-"); strings.Contains(all, "v9.9.9") {
		t.Errorf("the provenance of another build is on an image:\n%s", all)
	}
	// One that cannot be read is no reason to say nothing.
	s.write("out/"+evidence.ProvenanceName, "{")
	s.build(3)
	if code, out, errs := s.upload(); code != exitUsage || !strings.Contains(errs, "run imagectl build") {
		t.Errorf("%d\n%s%s", code, out, errs)
	}
}
