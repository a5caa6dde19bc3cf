package diff_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vincent-petithory/dataurl"

	"github.com/imagectl/imagectl/images/diff"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/provenance"
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

func TestLinesAreBounded(t *testing.T) {
	t.Parallel()
	config := func(content string) diff.Build {
		b, err := json.Marshal(map[string]any{
			"ignition": map[string]any{"version": "3.4.0"},
			"storage":  map[string]any{"files": []any{map[string]any{"path": "/f", "contents": map[string]any{"source": dataurl.EncodeBytes([]byte(content))}}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		return diff.Build{Roles: map[string]diff.Role{"worker": {ConfigIgn: b}}}
	}
	for name, c := range map[string]struct {
		from, to string
		want     []string
	}{
		"one line":          {"a\nb\n", "a\nc\n", []string{"@@ -1,2 +1,2 @@", " a", "-b", "+c"}},
		"no line end":       {"a\n", "a", []string{"@@ -1,1 +1,1 @@", "-a", "+a", "\\ No newline at end of file"}},
		"a long line":       {"a\n", strings.Repeat("ä", 150) + "\n", []string{"@@ -1,1 +1,1 @@", "-a", "+" + strings.Repeat("ä", 99) + " (102 more bytes)"}},
		"not text":          {"a\n", "\xff\n", nil},
		"a terminal's code": {"a\n", "\x1b[2J\n", nil},
		"a huge text":       {"a\n", strings.Repeat("x\n", 1<<20), nil},
	} {
		changes, err := diff.Compare(config(c.from), config(c.to))
		if err != nil || len(changes) != 1 {
			t.Fatalf("%s: %v: %v", name, changes, err)
		}
		if d := cmp.Diff(c.want, changes[0].Lines); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	changes, err := diff.Compare(config("a\n"), config(strings.Repeat("x\n", 1000)))
	if err != nil || len(changes) != 1 || len(changes[0].Lines) != diff.MaxLines {
		t.Fatalf("%v: %v", changes, err)
	}
	// One line for the place and one removed, of 1002, and the note itself.
	if got, want := changes[0].Lines[diff.MaxLines-1], "@@ 963 more lines @@"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOnlyTheProgramChanged(t *testing.T) {
	t.Parallel()
	build := func(version, source, artefact string) diff.Build {
		hex := func(c string) string { return strings.Repeat(c, 64) }
		b, err := provenance.Encode(provenance.Build{
			Version: version, Program: hex(version),
			Subjects: []provenance.Resource{{Name: "x", Digest: provenance.Digest{SHA256: hex("0")}}},
			Files:    []provenance.Resource{{Name: "cluster.yaml", Digest: provenance.Digest{SHA256: hex(source)}}},
			Inputs:   []lock.Blob{{ID: "agent", Source: "bootstrapd", SHA256: hex("1")}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s, err := provenance.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		return diff.Build{Provenance: &s, Roles: map[string]diff.Role{"worker": {}}, Manifest: store.Manifest{
			Artefacts: []store.Artefact{{Name: "w.raw", Role: "worker", Format: store.Raw, SHA256: hex(artefact)}},
		}}
	}
	for name, c := range map[string]struct {
		to   diff.Build
		only bool
		want string
	}{
		"nothing":              {build("1", "a", "b"), false, ""},
		"the program":          {build("2", "a", "b"), true, "program imagectl changed from 1, sha256 1111111111111111 to 2, sha256 2222222222222222"},
		"what it builds":       {build("2", "a", "c"), true, "program imagectl changed from 1, sha256 1111111111111111 to 2, sha256 2222222222222222; artefact raw changed from w.raw, 0 bytes, sha256 bbbbbbbbbbbbbbbb to w.raw, 0 bytes, sha256 cccccccccccccccc"},
		"the cluster file":     {build("2", "b", "b"), false, "program imagectl changed from 1, sha256 1111111111111111 to 2, sha256 2222222222222222; source cluster.yaml changed from sha256 aaaaaaaaaaaaaaaa to sha256 bbbbbbbbbbbbbbbb"},
		"no provenance of one": {diff.Build{Roles: map[string]diff.Role{"worker": {}}, Manifest: build("1", "a", "b").Manifest}, false, ""},
	} {
		changes, err := diff.Compare(build("1", "a", "b"), c.to)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range changes {
			got = append(got, c.String())
		}
		if s := strings.Join(got, "; "); s != c.want || diff.OnlyProgram(changes) != c.only {
			t.Errorf("%s: got %q and %t, want %q and %t", name, s, diff.OnlyProgram(changes), c.want, c.only)
		}
	}
}
