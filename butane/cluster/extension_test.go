package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/upstream"
)

func TestTheExampleOfAnExtensionIsValid(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/extensions.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(b), "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	files := fake{"base.yaml": string(Minimal), "cluster.yaml": "version: 1\nextends: base.yaml\n" + example}
	spec, found := Parse(files.read, "cluster.yaml")
	for _, f := range found {
		t.Errorf("%s", f)
	}
	asks(t, spec, "extensions/gvisor/release", "https://storage.googleapis.com/gvisor/releases/release/20260914.0/x86_64/gvisor.tar.zstd")
}

func TestSourcesOfExtensionsAreForTheArchitecture(t *testing.T) {
	t.Parallel()
	files := fake{"base.yaml": string(Minimal), "cluster.yaml": `version: 1
extends: base.yaml
flatcar: {arch: arm64}
roles:
  worker:
    extensions:
      - {name: a, source: "a-{arch}.raw"}
      - {name: b, recipe: tree, inputs: {content: "b-{arch}.tar"}}
`}
	spec, found := Parse(files.read, "cluster.yaml")
	if err := found.Err(); err != nil {
		t.Error(err)
	}
	asks(t, spec, "extensions/a", "a-arm64.raw")
	asks(t, spec, "extensions/b/content", "b-arm64.tar")
}

// asks looks for an input among what is to be locked.
func asks(t *testing.T, spec Spec, id lock.ID, source string) {
	t.Helper()
	for _, w := range spec.Wants() {
		if w.ID == id && w.Source == source {
			return
		}
	}
	t.Errorf("got %v, want %s from %s among them", spec.Wants(), id, source)
}

func TestTheExamplesOfRuntimeClassesNameHandlersOfRecipes(t *testing.T) {
	t.Parallel()
	var handlers []string
	for _, name := range upstream.Names() {
		r, err := upstream.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, rt := range r.Runtimes {
			handlers = append(handlers, rt.Name)
		}
	}
	examples, err := filepath.Glob("../../docs/examples/*-runtimeclass.yaml")
	if err != nil || len(examples) != 2 {
		t.Fatalf("got %q, %v", examples, err)
	}
	for _, file := range examples {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var class struct{ APIVersion, Kind, Handler string }
		if err := yaml.Unmarshal([]byte(strings.Replace(string(b), "apiVersion", "apiversion", 1)), &class); err != nil {
			t.Fatal(err)
		}
		if class.APIVersion != "node.k8s.io/v1" || class.Kind != "RuntimeClass" || !slices.Contains(handlers, class.Handler) {
			t.Errorf("%s: got %+v, want a RuntimeClass for one of %q", file, class, handlers)
		}
	}
}
