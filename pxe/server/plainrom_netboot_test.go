//go:build root && netboot

package server_test

import "testing"

// The ROM takes its address from the other server and its program from us.
func TestBIOSLoadsIPXEBesideDnsmasq(t *testing.T) {
	rom := &plainROM{n: 52}
	r := startRack(t, nil, nil, asProxy, rom.plug)
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	startDnsmasq(t, other)
	rom.loadsIPXE(t, r, "DISCOVER from firmware", "nbp: fetches undionly.kpxe by TFTP",
		"DISCOVER from ipxe", "script: discover", "kernel: fetches vmlinuz")
}
