//go:build root

package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
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

// startsKernel boots a machine that cluster.yaml does not list until its kernel runs, and
// looks for events on the way there. change may be nil.
func (r *rack) startsKernel(t *testing.T, fw vm.Firmware, n int, change func(*vm.Config), want ...string) {
	t.Helper()
	start := time.Now()
	g, _ := guest(t, fw, n, func(c *vm.Config) {
		if change != nil {
			change(c)
		}
	})
	g = r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
	t.Logf("script after %s", time.Since(start))
	r.waitEvent(t, n, boot.StageKernel, 1)
	starts(t, g)
	g.Stop()
	got := stages(r.Events(mac(n)))
	for _, want := range append(want, "kernel: fetches vmlinuz") {
		if !strings.Contains(got, want) {
			t.Errorf("no event %q in:\n%s", want, got)
		}
	}
	t.Logf("events:\n%s", got)
}
