package upstream_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upstream"
)

var update = flag.Bool("update", false, "rewrite testdata")

// testdata/config.toml was read by containerd 1.6.20 and 2.4.2 (config dump): both
// list the four runtimes with these options.
func TestContainerdConfigOfAllRecipes(t *testing.T) {
	t.Parallel()
	var all []upstream.Runtime
	for _, name := range upstream.Names() {
		r, err := upstream.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r.Runtimes...)
	}
	got, err := upstream.ContainerdConfig(all)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/config.toml"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTwoRuntimesOfOneNameAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"gvisor", "runc"} {
		_, err := upstream.ContainerdConfig([]upstream.Runtime{{Name: name, Type: "a"}, {Name: name, Type: "b"}})
		if err == nil || !strings.Contains(err.Error(), "two runtimes called "+name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestContainerdIsToldWhereItsConfigurationIs(t *testing.T) {
	t.Parallel()
	if got, want := upstream.ContainerdDropIn(), "[Service]\nEnvironment=CONTAINERD_CONFIG=/usr/share/imagectl/containerd/config.toml\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
