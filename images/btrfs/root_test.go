//go:build root

package btrfs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
)

func TestKernelMountsReadsAndWrites(t *testing.T) {
	for _, c := range []struct{ size, file int64 }{{128 * mib, 80*mib + 5}, {gib, 512*mib + 12345}} {
		t.Run(fmt.Sprintf("%d bytes", c.size), func(t *testing.T) {
			tree := fstreetest.Sample(t)
			add(t, tree, "sysext/big.raw", fstreetest.Noise{Seed: 1, Length: c.file})
			image := write(t, c.size, tree, options())
			// In tests of their own, so that each unmounts before the next.
			t.Run("read-only", func(t *testing.T) {
				fstreetest.Compare(t, tree, fstreetest.Mount(t, image, "btrfs", "ro"), fstreetest.Except{})
			})
			t.Run("read-write", func(t *testing.T) {
				dir := fstreetest.Mount(t, image, "btrfs", "rw")
				for i := range 2000 {
					if err := os.WriteFile(filepath.Join(dir, "many", fmt.Sprintf("new-%d", i)), []byte("new\n"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 10*mib), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(filepath.Join(dir, "equal/one")); err != nil {
					t.Fatal(err)
				}
				fstreetest.Run(t, apt, "btrfs", "filesystem", "sync", dir)
				fstreetest.Run(t, apt, "btrfs", "scrub", "start", "-B", dir)
			})
			check(t, image)
		})
	}
}
