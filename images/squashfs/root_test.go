//go:build root

package squashfs_test

import (
	"testing"

	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/squashfs"
)

// The kernel is the judge that counts: go-diskfs' images satisfy unsquashfs and
// no kernel.
func TestKernelMountsTheImage(t *testing.T) {
	tree := fstreetest.Sample(t)
	if err := tree.AddFile("usr/bin/kubelet", 0o755, fstreetest.Noise{Seed: 1, Length: 160<<20 + 12345}); err != nil {
		t.Fatal(err)
	}
	if err := tree.AddFile("usr/bin/zeros", 0o755, fstreetest.Zeros(160<<20+12345)); err != nil {
		t.Fatal(err)
	}
	image := write(t, tree, squashfs.Options{ModTime: fstreetest.Time})
	fstreetest.Compare(t, tree, fstreetest.Mount(t, image, "squashfs", "ro"), fstreetest.Except{})
}

func TestKernelMountsSmallBlocks(t *testing.T) {
	tree := fstreetest.Sample(t)
	image := write(t, tree, squashfs.Options{ModTime: fstreetest.Time, BlockSize: 4096})
	fstreetest.Compare(t, tree, fstreetest.Mount(t, image, "squashfs", "ro"), fstreetest.Except{})
}
