//go:build root

package sysext_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/sysext"
)

func TestKernelMountsAnExtensionOfAnyTree(t *testing.T) {
	tree := &fstree.Tree{}
	for _, e := range []fstree.Entry{
		{Path: "usr/bin/runsc", Type: fstree.File, Mode: 0o755, Content: fstreetest.Noise{Seed: 1, Length: 5<<20 + 1}},
		{Path: "usr/bin/nvidia-modprobe", Type: fstree.File, Mode: 0o4755, Content: fstree.Bytes("set-uid")},
		{Path: "usr/lib64/libcuda.so", Type: fstree.Symlink, Mode: 0o777, Link: "libcuda.so.1"},
		{Path: "usr/lib/systemd/system/a.service", Type: fstree.File, Mode: 0o644, Content: fstree.Bytes("[Service]\n")},
	} {
		if err := tree.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	e, err := sysext.FromTree("gvisor", tree, []string{"a.service", "b.service"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "gvisor.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := sysext.Write(f, e, "amd64", time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	dir := fstreetest.Mount(t, path, "squashfs", "ro")
	for name, want := range map[string]string{
		"usr/bin/nvidia-modprobe":                                   "set-uid",
		"usr/lib/extension-release.d/extension-release.gvisor":      "ID=_any\nARCHITECTURE=x86-64\nEXTENSION_RELOAD_MANAGER=1\n",
		"usr/lib/systemd/system/multi-user.target.d/10-gvisor.conf": "[Unit]\nUpholds=a.service b.service\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "usr/bin/nvidia-modprobe")); err != nil || st.Mode() != 0o755|os.ModeSetuid {
		t.Errorf("got mode %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "usr/bin/runsc")); err != nil || st.Size() != 5<<20+1 {
		t.Errorf("runsc: got %v, %v", st, err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "usr/lib64/libcuda.so")); err != nil || target != "libcuda.so.1" {
		t.Errorf("got link %q, %v", target, err)
	}
}
