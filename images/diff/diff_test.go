package diff_test

import (
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/diff"
	"github.com/imagectl/imagectl/images/sbom"
	"github.com/imagectl/imagectl/images/store"
)

// The verb's script shows every kind of change; here is what it cannot.
func TestRolesComeAndGo(t *testing.T) {
	t.Parallel()
	a := diff.Build{Manifest: store.Manifest{Cluster: "demo"}, Roles: map[string]diff.Role{"": {}, "worker": {}}}
	b := diff.Build{Manifest: store.Manifest{Cluster: "demo"}, Roles: map[string]diff.Role{"": {}, "db": {GrubCfg: []byte("set linux_append=\"x\"\n")}}}
	changes, err := diff.Compare(a, b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, c.String())
	}
	if want := "role db added; role worker removed"; strings.Join(got, "; ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOnePackageInSeveralVersions(t *testing.T) {
	t.Parallel()
	build := func(versions ...string) diff.Build {
		var d sbom.Document
		for _, v := range versions {
			d.Packages = append(d.Packages, sbom.Package{SPDXID: "SPDXRef-Go-x-" + v, Name: "x", Version: v})
		}
		return diff.Build{Roles: map[string]diff.Role{"worker": {Bill: d}}}
	}
	changes, err := diff.Compare(build("v2", "v1", "v2"), build("v2"))
	if err != nil || len(changes) != 1 {
		t.Fatalf("%v: %v", changes, err)
	}
	if got, want := changes[0].String(), "package x changed from v1, v2 to v2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	same, err := diff.Compare(build("v2", "v1"), build("v1", "v2"))
	if err != nil || len(same) > 0 {
		t.Errorf("another order is no change: %v, %v", same, err)
	}
}

func TestABrokenConfigIsNamed(t *testing.T) {
	t.Parallel()
	a := diff.Build{Roles: map[string]diff.Role{"worker": {ConfigIgn: []byte("{")}}}
	if _, err := diff.Compare(a, a); err == nil || !strings.Contains(err.Error(), "reading config.ign of worker") {
		t.Errorf("got %v", err)
	}
}
