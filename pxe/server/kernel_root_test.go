//go:build root

package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/test/vm"
)

// kernelContent is the test release's kernel.
func kernelContent(t *testing.T) []byte {
	t.Helper()
	release := os.Getenv(releaseVariable)
	if release == "" {
		t.Fatal(releaseVariable + " is not set; run this through make test-root")
	}
	return readFile(t, kernelPath(release))
}

// releaseVariable names the test release's directory.
const releaseVariable = "IMAGECTL_TEST_RELEASE"

func kernelPath(release string) string {
	return filepath.Join(release, "stable", "amd64-usr", "current", "flatcar_production_pxe.vmlinuz")
}

// starts waits until a machine's kernel runs. Its initrd is none, so it does not get far.
func starts(t *testing.T, g *vm.Guest) {
	t.Helper()
	wait(t, g, `Command line: .*flatcar\.first_boot=1`)
}
