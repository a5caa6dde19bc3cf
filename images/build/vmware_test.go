package build_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

func TestVirtualApplianceHasANameThatVSphereTakes(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Cluster, in.Flatcar = strings.Repeat("c", 63), "4593.2.5+nightly-2026"
	in.Only, in.Sets = []string{"worker"}, []build.Set{"ova"}
	res, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := artefact(t, res.Manifest, "worker", store.OVA)
	name := strings.Repeat("c", 63) + "-worker-4593.2.5-"
	want := name + ".ovf\n" + name + ".mf\n" + name + "-disk1.vmdk\n"
	if got := tool(t, "tar", "-tf", filepath.Join(out, a.Name)); got != want {
		t.Errorf("got members\n%s\nwant\n%s", got, want)
	}
	if got := tool(t, "tar", "-xOf", filepath.Join(out, a.Name), name+".ovf"); !strings.Contains(got, "<Version>4593.2.5+nightly-2026</Version>") {
		t.Errorf("the envelope has no version: %s", got)
	}
}

func TestVirtualApplianceIsForAMD64(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true}), t.TempDir()
	in := s.inputs(out)
	in.Arch, in.Sets = "arm64", []build.Set{build.SetRaw, "ova"}
	if _, err := build.Run(context.Background(), in, nil); err == nil || err.Error() != "building ova for arm64: vSphere runs amd64; leave out --format ova" {
		t.Errorf("got %v", err)
	}
}
