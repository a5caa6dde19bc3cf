//go:build root

package server_test

import (
	"testing"

	"github.com/imagectl/imagectl/test/vm"
)

// UEFI's own PXE, and its HTTP boot, with the relay as router to us.
func TestUEFIBehindARelay(t *testing.T) {
	r := startRack(t, nil, nil)
	relay := relayed(t)
	t.Run("PXE", func(t *testing.T) {
		r.bootsBehind(t, relay, vm.OVMF, 42, false, "DISCOVER from firmware", "nbp: fetches snponly.efi by TFTP", "DISCOVER from ipxe")
	})
	t.Run("HTTP", func(t *testing.T) {
		r.bootsBehind(t, relay, vm.OVMF, 43, true, "DISCOVER from http-boot", "nbp: fetches snponly.efi by UEFI HTTP boot", "DISCOVER from ipxe")
	})
}
