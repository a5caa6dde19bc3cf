package replay

import (
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Link is the address of ours that answers clients directly in a capture, in one of the
// networks that we have a further card in: dhcp.Env's Link. Our answers name it, and server
// for boot files. The zero value means that none does.
func Link(r io.Reader, server netip.Addr, links []netip.Prefix) (netip.Addr, error) {
	var found []netip.Addr
	err := read(r, func(d datagram) {
		m, err := dhcpv4.FromBytes(d.payload)
		if d.to.Port() != 68 || err != nil || m.OpCode != dhcpv4.OpcodeBootReply {
			return
		}
		from, _ := netip.AddrFromSlice(m.ServerIPAddr.To4())
		at, _ := netip.AddrFromSlice(m.ServerIdentifier().To4())
		ours := from == server && slices.ContainsFunc(links, func(p netip.Prefix) bool { return p.Contains(at) })
		if ours && !slices.Contains(found, at) {
			found = append(found, at)
		}
	})
	switch {
	case err != nil || len(found) == 0:
		return netip.Addr{}, err
	case len(found) > 1:
		return netip.Addr{}, fmt.Errorf("it has answers of this server from two networks, %s and %s: capture one interface", found[0], found[1])
	}
	return found[0], nil
}
