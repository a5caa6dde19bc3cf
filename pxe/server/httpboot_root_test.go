//go:build root

package server_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/test/vm"
)

func byHTTP(c *vm.Config) { c.HTTPBoot = true }

// OVMF without PXE loads iPXE by HTTP, which then does as it does after PXE.
func TestUEFIBootsByHTTP(t *testing.T) {
	const n = 31
	r := startRack(t, nil, nil)
	g, _ := guest(t, vm.OVMF, n, byHTTP)
	bootsByHTTP(t, r, g, n, "UEFI HTTP boot")
}

func bootsByHTTP(t *testing.T, r *rack, g *vm.Guest, n int, way string) *vm.Guest {
	t.Helper()
	start := time.Now()
	g = r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
	t.Logf("script after %s", time.Since(start))
	r.waitEvent(t, n, boot.StageKernel, 1)
	starts(t, g)
	got := stages(r.Events(mac(n)))
	for _, want := range []string{"DISCOVER from http-boot", "nbp: fetches snponly.efi by " + way, "DISCOVER from ipxe", "script: discover", "kernel: fetches vmlinuz"} {
		if !strings.Contains(got, want) {
			t.Errorf("no event %q in:\n%s", want, got)
		}
	}
	if strings.Contains(got, "TFTP") {
		t.Errorf("it used TFTP:\n%s", got)
	}
	return g
}

// A machine that is not armed is refused by HTTP, and OVMF goes on. What follows is
// HTTP boot over IPv6, for more than a minute, and then the disk, which the tests of
// package efiboot wait for.
func TestUnarmedMachineIsRefusedByHTTP(t *testing.T) {
	const n = 33
	r := startRack(t, []plan.Machine{{Name: "node1", MACs: []net.HardwareAddr{mac(n)}, Address: netip.MustParseAddr("10.98.0.11"), LocalBoot: "exit"}},
		states{"node1": machine.Approved})
	g, _ := guest(t, vm.OVMF, n, byHTTP)
	r.waitEvent(t, n, boot.StageDHCP, 1)
	asked := time.Now()
	g = r.asksForScript(t, g, n)
	refused := time.Now()
	t.Logf("refused %s after the first DHCP request", refused.Sub(asked))
	wait(t, g, `BdsDxe: failed to load Boot[0-9A-F]{4} "UEFI HTTPv4.*: Not Found`)
	t.Logf("given up %s later", time.Since(refused))
	if got := stages(r.Events(mac(n))); strings.Contains(got, "fetches") {
		t.Errorf("it fetched something:\n%s", got)
	}
}
