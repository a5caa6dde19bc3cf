//go:build root

package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/test/vm"
)

// boots6 boots a machine by IPv6 until it loads the installer's kernel.
func (r *rack) boots6(t *testing.T, n int, byHTTP bool, want ...string) {
	t.Helper()
	start := time.Now()
	g, _ := guest(t, vm.OVMF, n, func(c *vm.Config) { c.IPv6, c.HTTPBoot = true, byHTTP })
	g = r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
	t.Logf("script after %s", time.Since(start))
	r.waitEvent(t, n, boot.StageKernel, 1)
	starts(t, g)
	g.Stop()
	got := stages(r.Events(mac(n)))
	for _, want := range append(want, "REQUEST from ipxe by IPv6: gave fd98::1", "script: discover", "kernel: fetches vmlinuz") {
		if !strings.Contains(got, want) {
			t.Errorf("no event %q in:\n%s", want, got)
		}
	}
	t.Logf("events:\n%s", got)
}

// There is no IPv4 in this rack, and the router advertises itself.
func TestUEFIBootsByIPv6(t *testing.T) {
	r := startRack(t, nil, nil, onlyIPv6)
	router(t, bridge)
	t.Run("PXE", func(t *testing.T) {
		r.boots6(t, 61, false, "SOLICIT from firmware by IPv6: offered fd98::1", "REQUEST from firmware by IPv6: gave fd98::1", "nbp: fetches snponly.efi by TFTP")
	})
	t.Run("HTTP", func(t *testing.T) {
		r.boots6(t, 62, true, "SOLICIT from http-boot by IPv6: offered fd98::1", "REQUEST from http-boot by IPv6: gave fd98::1", "nbp: fetches snponly.efi by UEFI HTTP boot")
	})
}
