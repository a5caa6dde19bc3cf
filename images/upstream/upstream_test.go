package upstream_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/upstream"
)

func TestEveryRecipeIsComplete(t *testing.T) {
	t.Parallel()
	names := upstream.Names()
	if want := []string{"gvisor", "nvidia", "tree", "wasmedge"}; !slices.Equal(names, want) {
		t.Errorf("got recipes %v, want %v", names, want)
	}
	for _, name := range names {
		r, err := upstream.Find(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if r.Name != name {
			t.Errorf("got name %s, want %s", r.Name, name)
		}
		for _, i := range r.Inputs {
			if i.About == "" {
				t.Errorf("%s: input %s does not say what it is", name, i.Name)
			}
		}
		for _, rt := range r.Runtimes {
			// containerd finds io.containerd.NAME.VERSION as containerd-shim-NAME-VERSION.
			shim := "containerd-shim-" + strings.ReplaceAll(strings.TrimPrefix(rt.Type, "io.containerd."), ".", "-")
			there := slices.ContainsFunc(r.Inputs, func(i upstream.Input) bool {
				return slices.Contains(i.Take, upstream.Take{Member: shim, To: "usr/bin"})
			})
			if !there && rt.Type != "io.containerd.runc.v2" {
				t.Errorf("%s: nothing brings %s for runtime %s", name, shim, rt.Name)
			}
		}
	}
	_, err := upstream.Find("gvisors")
	if err == nil || err.Error() != `recipe "gvisors" is not known; known are gvisor, nvidia, tree, wasmedge` {
		t.Errorf("got %v", err)
	}
}
