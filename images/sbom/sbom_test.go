package sbom_test

import (
	"bytes"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"

	"github.com/imagectl/imagectl/images/inventory"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/sbom"
)

var update = flag.Bool("update", false, "rewrite testdata")

func image(t *testing.T) sbom.Image {
	t.Helper()
	base, err := os.ReadFile("testdata/base.spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	net := inventory.Module{Path: "golang.org/x/net", Version: "v0.40.0"}
	return sbom.Image{
		Name: "demo-worker", Version: "4593.2.5-v1.36.3", Created: time.Date(2026, 8, 13, 12, 0, 0, 0, time.FixedZone("CEST", 7200)),
		Artefacts: []sbom.Artefact{{Name: "demo-worker.raw", SHA256: strings.Repeat("a", 64)}, {Name: "demo-worker.raw.zst", SHA256: strings.Repeat("b", 64)}},
		Inputs: []sbom.Input{
			{
				Blob: lock.Blob{ID: lock.FlatcarImage, Source: "https://example.org/image.bin.bz2", SHA256: strings.Repeat("c", 64), Size: 1,
					Signer: &lock.Signer{Primary: "PRIMARY", Subkey: "SUBKEY", SignedAt: "2026-08-13T10:00:00Z"}},
				Version: "4593.2.5",
			},
			{
				Blob: lock.Blob{ID: lock.Kubelet, Source: "bin/kubelet", SHA256: strings.Repeat("d", 64), Size: 1}, Version: "v1.36.3",
				List: inventory.List{Programs: []inventory.Program{{
					Package: "k8s.io/kubernetes/cmd/kubelet", Main: inventory.Module{Path: "k8s.io/kubernetes", Version: "(devel)"}, Go: "go1.26.0 X:jsonv2",
					Modules: []inventory.Module{{Path: "github.com/Masterminds/semver", Version: "v1.5.0+incompatible"}, net},
				}}},
			},
			{
				Blob: lock.Blob{ID: lock.Agent, Source: "bin/bootstrapd", SHA256: strings.Repeat("e", 64), Size: 1},
				List: inventory.List{Programs: []inventory.Program{{Package: "github.com/imagectl/imagectl/cmd/bootstrapd", Main: inventory.Module{Path: "github.com/imagectl/imagectl"}, Go: "go1.26.0", Modules: []inventory.Module{net}}}},
			},
			{
				Blob: lock.Blob{ID: "extension/gpu", Source: "gpu.raw", SHA256: strings.Repeat("9", 64), Size: 1},
				List: inventory.List{Unread: "imagectl does not read ext4 images"},
			},
			{Blob: lock.Blob{ID: "rendered/config.ign", SHA256: strings.Repeat("f", 64)}},
		},
		Base: base,
	}
}

func TestDocumentIsWhatIsReviewed(t *testing.T) {
	t.Parallel()
	got, err := sbom.Encode(image(t))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/image.spdx.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/image.spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(got), string(want)); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}

// SPDX's own library reads and validates what we write.
func TestSPDXToolsAcceptTheDocument(t *testing.T) {
	t.Parallel()
	b, err := sbom.Encode(image(t))
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
	described, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(described) != 2 {
		t.Errorf("it describes %v, want both files: %v", described, err)
	}
	var purls []string
	for _, p := range doc.Packages {
		for _, r := range p.PackageExternalReferences {
			if r.RefType == "purl" {
				purls = append(purls, r.Locator)
			}
		}
	}
	for _, want := range []string{
		"pkg:golang/k8s.io/kubernetes@v1.36.3",
		"pkg:golang/github.com/masterminds/semver@v1.5.0%2Bincompatible",
		"pkg:golang/stdlib@1.26.0",
		"pkg:golang/golang.org/x/net@v0.40.0",
		"pkg:generic/kubernetes/kubelet@v1.36.3?checksum=sha256:" + strings.Repeat("d", 64),
		"pkg:ebuild/sys-libs/glibc@2.41-r4",
	} {
		if !slices.Contains(purls, want) {
			t.Errorf("no package has %s; there are %q", want, purls)
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(purls)))) != len(purls) {
		t.Errorf("a package is there twice: %q", purls)
	}
}

func TestOrderOfArgumentsDoesNotMatter(t *testing.T) {
	t.Parallel()
	img := image(t)
	first, err := sbom.Encode(img)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(img.Artefacts)
	slices.Reverse(img.Inputs)
	second, err := sbom.Encode(img)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error(cmp.Diff(string(first), string(second)))
	}
}

func TestReadBack(t *testing.T) {
	t.Parallel()
	b, err := sbom.Encode(image(t))
	if err != nil {
		t.Fatal(err)
	}
	d, err := sbom.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.Artefacts(), map[string]string{"demo-worker.raw": strings.Repeat("a", 64), "demo-worker.raw.zst": strings.Repeat("b", 64)}); diff != "" {
		t.Error(diff)
	}
	if got := d.Inputs()[string(lock.Kubelet)]; got != strings.Repeat("d", 64) {
		t.Errorf("kubelet has %q", got)
	}
	var names []string
	for _, p := range d.Software() {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	want := []string{"github.com/Masterminds/semver", "github.com/imagectl/imagectl/cmd/bootstrapd", "golang.org/x/net", "k8s.io/kubernetes/cmd/kubelet", "production", "stdlib", "sys-libs/glibc"}
	if diff := cmp.Diff(names, want); diff != "" {
		t.Error(diff)
	}
}

func TestRefusedBaseDocuments(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ base, want string }{
		"no JSON":       {"SPDXVersion: SPDX-2.3\n", "parsing SPDX"},
		"SPDX 3":        {`{"@context":"https://spdx.org/rdf/3.0.1/spdx-context.jsonld"}`, `it is of version "", want SPDX-2.3 or SPDX-2.2`},
		"a wrong name":  {`{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"SPDXRef-a b","name":"x"}]}`, `"SPDXRef-a b" is no SPDX identifier`},
		"a name twice":  {`{"spdxVersion":"SPDX-2.3","packages":[{"SPDXID":"SPDXRef-a"},{"SPDXID":"SPDXRef-a"}]}`, "two packages are called SPDXRef-a"},
		"two documents": {`{"spdxVersion":"SPDX-2.3"}{}`, "more than one value"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img := image(t)
			img.Base = []byte(tc.base)
			if _, err := sbom.Encode(img); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile("testdata/base.spdx.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := sbom.Parse(b); err == nil {
			d.Software()
			d.Inputs()
		}
	})
}
