package build_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// A role with diskless machines has each of its extensions by itself besides, with the name
// under which the machine needs it; others have none.
func TestARoleOfDisklessMachinesHasItsExtensionsByThemselves(t *testing.T) {
	t.Parallel()
	ctx, s, out := context.Background(), newSite(t, t.TempDir(), baseimage.Options{}), t.TempDir()
	in := s.inputs(out)
	in.Roles[1].Diskless = true
	mine := s.extension("mine", "usr/bin/x")
	in.Roles[1].Extensions = []build.Extension{{Name: "mine", Blob: mine}}
	first, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range first.Manifest.Artefacts {
		if a.Format != store.Extension {
			continue
		}
		var inputs []lock.ID
		for _, i := range a.Inputs {
			inputs = append(inputs, i.ID)
		}
		got = append(got, fmt.Sprintf("%s %s %s %v", a.Role, a.Extension, a.Name, inputs))
		b, err := os.ReadFile(filepath.Join(out, a.Name))
		if err != nil || int64(len(b)) != a.Size {
			t.Errorf("%s: %d bytes of %d: %v", a.Name, len(b), a.Size, err)
		}
		if a.Extension == "mine" && a.SHA256 != mine.SHA256 {
			t.Error("the user's extension is another")
		}
		// The kernel of another would not merge it (systemd-sysext(8)).
		tool(t, "unsquashfs", "-n", "-d", filepath.Join(t.TempDir(), "x"), filepath.Join(out, a.Name), "usr/lib/extension-release.d/extension-release."+a.Extension)
	}
	const name = "demo-worker-4593.2.5-v1.36.3."
	want := []string{
		"worker imagectl " + name + "imagectl.raw [agent/bootstrapd]",
		"worker images " + name + "images.raw [images/kubernetes]",
		"worker kubernetes " + name + "kubernetes.raw [cni/archive kubernetes/kubeadm kubernetes/kubectl kubernetes/kubelet]",
		"worker mine " + name + "mine.raw [extensions/mine]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	again, err := build.Run(ctx, in, nil)
	if err != nil || len(again.Built) != 0 {
		t.Errorf("a second build made %v: %v", again.Built, err)
	}
	in.Roles[1].Diskless = false
	third, err := build.Run(ctx, in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := third.Manifest.Find("worker", store.Extension); ok {
		t.Error("a role without diskless machines has extensions by themselves")
	}
}
