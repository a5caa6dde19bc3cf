package build_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

// It has the layout of 4081, whose ROOT starts elsewhere.
func TestAnImageForARM64(t *testing.T) {
	t.Parallel()
	s, out := newSite(t, t.TempDir(), baseimage.Options{Small: true, Arch: "arm64"}), t.TempDir()
	in := s.inputs(out)
	in.Arch, in.Sets, in.Only = "arm64", []build.Set{build.SetRaw}, []string{"control-plane"}
	in.Kubelet = s.blob(lock.Kubelet, "kubelet", []byte(program(183, "kubelet")))
	res, err := build.Run(context.Background(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(out, artefact(t, res.Manifest, "control-plane", store.Raw).Name)
	root := judge(t, img)
	onlyOEMAndRootDiffer(t, s.base, img)
	if got := tool(t, "mdir", "-b", "-i", extract(t, img, "EFI-SYSTEM"), "::EFI/boot", "::flatcar"); !strings.Contains(got, "bootaa64.efi") || !strings.Contains(got, "vmlinuz-a") {
		t.Errorf("the ESP holds %s", got)
	}
	for _, x := range []string{"etcd", "images", "imagectl", "kubernetes"} {
		raw := filepath.Join(t.TempDir(), x)
		tool(t, "debugfs", "-R", "dump /opt/extensions/"+x+"/"+x+".raw "+raw, root)
		if got := tool(t, "unsquashfs", "-cat", raw, "usr/lib/extension-release.d/extension-release."+x); !strings.Contains(got, "ARCHITECTURE=arm64\n") {
			t.Errorf("extension %s says %q", x, got)
		}
	}
}

func TestWhatIsForOtherProcessorsIsRefused(t *testing.T) {
	t.Parallel()
	amd64 := newSite(t, t.TempDir(), baseimage.Options{Small: true})
	arm64 := newSite(t, t.TempDir(), baseimage.Options{Small: true, Arch: "arm64"})
	for name, tc := range map[string]struct {
		site   *site
		change func(in *build.Inputs)
		want   string
	}{
		"an image for amd64": {amd64, func(in *build.Inputs) { in.Arch = "arm64" },
			"using flatcar_production_image.bin.bz2 as base: it is for other processors: amd64, and flatcar.arch is arm64"},
		"an image for arm64": {arm64, func(*build.Inputs) {},
			"using flatcar_production_image.bin.bz2 as base: it is for other processors: arm64, and flatcar.arch is amd64"},
		"an agent for arm64": {amd64, func(in *build.Inputs) { in.Agent = amd64.blob(lock.Agent, "bootstrapd", []byte(program(183, "agent"))) },
			"using agent/bootstrapd (bootstrapd): it is for other processors: arm64, and flatcar.arch is amd64"},
		"etcd for arm64": {amd64, func(in *build.Inputs) {
			in.EtcdArchive = amd64.blob(lock.EtcdArchive, "etcd.tar.gz", amd64.archived(func(name string) string { return program(183, name) }, "etcd", "etcdctl", "etcdutl"))
		}, "unpacking x/etcd: using it: it is for other processors: arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := t.TempDir()
			in := tc.site.inputs(out)
			in.Sets = []build.Set{build.SetRaw}
			tc.change(&in)
			_, err := build.Run(context.Background(), in, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if left, _ := os.ReadDir(out); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
