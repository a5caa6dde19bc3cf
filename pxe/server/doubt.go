package server

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/imagectl/imagectl/pxe/boot"
)

// witness knows whose addresses are. What a request by HTTP or of GRUB says about its
// sender is in the request, and anybody can write it; the address that it comes from is
// one that this server gave to a card, or saw given.
type witness struct {
	// holder is the card that has or had an address, addressOf the IPv4 address that a
	// card has.
	holder    func(netip.Addr) (net.HardwareAddr, bool)
	addressOf func(net.HardwareAddr) (netip.Addr, bool)
	source    Source
}

// doubt says why a request from an address is not of the machine that it names, which has
// that name in cluster.yaml; empty where nothing is known against it. A machine may ask by
// another of its cards than the one that booted. Addresses of IPv6 are a card's own choice
// where a router lets it, so that only those of others tell something.
func (w witness) doubt(from netip.Addr, m boot.Machine, name string) string {
	if mac, ok := w.holder(from); ok {
		if bytes.Equal(mac, m.MAC) || name != "" && w.source.Decide(boot.Machine{MAC: mac}).Name == name {
			return ""
		}
		return fmt.Sprintf("%s is the address of the card %s", from, mac)
	}
	if !from.Is4() {
		return ""
	}
	network := w.source.Network()
	switch a, has := w.addressOf(m.MAC); {
	case name != "" && network.Reserved[from] == name:
	case has:
		return fmt.Sprintf("the card %s has the address %s", m.MAC, a)
	case m.MAC == nil && name != "" && !network.Proxy && len(network.Subnets) > 0:
		return fmt.Sprintf("it names no card, and %s was given to none; iPXE always names its own", from)
	}
	return ""
}
