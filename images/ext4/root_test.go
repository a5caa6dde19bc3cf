//go:build root

package ext4_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

func TestKernelMountsReadsAndWrites(t *testing.T) {
	tree := fstreetest.Sample(t)
	if err := tree.AddFile("opt/extensions/kubernetes.raw", 0o644, fstreetest.Noise{Seed: 1, Length: 400*mib + 12345}); err != nil {
		t.Fatal(err)
	}
	image := write(t, 1784*mib, tree, options())
	// In a test of its own, so that it is unmounted before the next mount.
	t.Run("read-only", func(t *testing.T) {
		dir := fstreetest.Mount(t, image, "ext4", "ro")
		fstreetest.Compare(t, tree, dir, fstreetest.Except{Names: []string{"lost+found"}})
	})
	t.Run("read-write", func(t *testing.T) {
		dir := fstreetest.Mount(t, image, "ext4", "rw")
		// The first change of each kind that a node makes at its first boot.
		if err := os.MkdirAll(filepath.Join(dir, "var/lib"), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 3000 {
			if err := os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("new-%d", i)), []byte("new\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "var/lib", fmt.Sprintf("new-%d", i)), []byte("new\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(filepath.Join(dir, "sizes/noise-300000")); err != nil {
			t.Fatal(err)
		}
	})
	check(t, image)
}
