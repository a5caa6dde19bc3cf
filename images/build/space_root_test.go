//go:build root

package build_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imagectl/imagectl/images/build"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/test/baseimage"
)

func TestAFullDiskLosesNothing(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", out, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatalf("mounting a small tmpfs: %v; this test needs root", err)
	}
	t.Cleanup(func() { syscall.Unmount(out, syscall.MNT_DETACH) })
	ctx, s := context.Background(), newSite(t, t.TempDir(), baseimage.Options{})
	in := s.inputs(out)
	if _, err := build.Run(ctx, in, nil); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(out, store.ManifestName)
	before, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	names := listing(t, out)

	// Fill it up but for a MiB, and ask for other images.
	ballast := filepath.Join(out, "ballast")
	var st syscall.Statfs_t
	if err := syscall.Statfs(out, &st); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, bytes.Repeat([]byte{1}, int(int64(st.Bavail)*st.Bsize)-1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range in.Roles {
		in.Roles[i].GrubCfg = []byte("set linux_append=\"other\"\n")
	}
	_, err = build.Run(ctx, in, nil)
	if err == nil {
		t.Fatal("a build on a full disk succeeded")
	}
	for _, want := range []string{"building " + out, "no space left on device", "MiB are needed in " + out, "nothing there was changed"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to contain %q", err, want)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(manifest); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the manifest changed: %v", err)
	}
	if got := listing(t, out); got != names {
		t.Errorf("got files %s, want %s", got, names)
	}
	if _, err := build.Run(ctx, in, nil); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
