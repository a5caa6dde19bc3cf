//go:build root

package server_test

import (
	"testing"

	"github.com/imagectl/imagectl/test/vm"
)

// boots6 boots a machine by IPv6 until the installer's kernel runs.
func (r *rack) boots6(t *testing.T, n int, byHTTP bool, want ...string) {
	t.Helper()
	r.startsKernel(t, vm.OVMF, n, func(c *vm.Config) { c.IPv6, c.HTTPBoot = true, byHTTP },
		append(want, "REQUEST from ipxe by IPv6: gave fd98::1", "script: discover")...)
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
