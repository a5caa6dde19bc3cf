//go:build vm

package release_test

import (
	"os"
	"path/filepath"
	"testing"
)

// imagectl run has to boot a disk on either firmware with the console on its
// standard output, and to leave the disk as it was.
func TestImagectlRunShowsTheConsoleAndChangesNothing(t *testing.T) {
	t.Parallel()
	if *binDir == "" {
		t.Fatal("which imagectl? go test -tags vm ./test/release -bin DIR")
	}
	imagectl, err := filepath.Abs(filepath.Join(*binDir, "imagectl"))
	if err != nil {
		t.Fatal(err)
	}
	path := image(t)
	withOEM(t, path, map[string]string{"grub.cfg": serialLast})
	raw := filepath.Join(t.TempDir(), "try.raw")
	if err := os.Rename(path, raw); err != nil {
		t.Fatal(err)
	}
	// A run that wrote to the disk would fail; the comparison is for root, whom no
	// mode keeps from it.
	if err := os.Chmod(raw, 0o444); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(t.TempDir(), "before.raw")
	run(t, "cp", "--sparse=always", raw, before)
	for _, firmware := range []string{"bios", "uefi"} {
		g := watch(t, imagectl, "run", raw, "--firmware", firmware, "--accel", "tcg", "--cpus", "1")
		g.wait(`Linux version \d+\.`)
		g.wait(`Ignition: `) // the initrd, which writes to the disk
		g.stop()
	}
	// Unlike a digest, this does not read eight gigabytes of holes.
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", before, raw)
}
