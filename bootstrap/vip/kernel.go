package vip

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kernel is the Link of the network namespace that this process is in. It needs
// CAP_NET_ADMIN and CAP_NET_RAW.
type Kernel struct{}

// Hold implements Link. The addresses get a prefix of one address each, so that no route
// follows from them; and they are deprecated, so that IPv6 never takes one for the source
// of a connection (RFC 4862 section 5.5.4). IPv6 does not look whether another has the
// address: the one before may, for a moment, and it would never be used then.
func (Kernel) Hold(node netip.Addr, addresses []netip.Addr, life time.Duration) error {
	link, err := linkOf(node)
	if err != nil {
		return fmt.Errorf("putting addresses of the API on this machine: %w", err)
	}
	for _, a := range addresses {
		n := &netlink.Addr{IPNet: single(a), ValidLft: int(life / time.Second)}
		if a.Is6() {
			n.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, n); err != nil {
			return fmt.Errorf("putting the API's address %s on %s: %w", a, link.Attrs().Name, err)
		}
	}
	return nil
}

// Drop implements Link.
func (Kernel) Drop(addresses []netip.Addr) error {
	all, err := list()
	if err != nil {
		return fmt.Errorf("looking for the API's address: %w", err)
	}
	var wrong []error
	for _, have := range all {
		for _, a := range addresses {
			if bits, _ := have.Mask.Size(); addressOf(have) != a || bits != a.BitLen() {
				continue // a machine's own address has a longer network
			}
			// It may be gone already: its lifetime has ended.
			if err := netlink.AddrDel(nil, &netlink.Addr{IPNet: single(a), LinkIndex: have.LinkIndex}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				wrong = append(wrong, fmt.Errorf("taking the API's address %s away: %w", a, err))
			}
		}
	}
	return errors.Join(wrong...)
}

// Announce implements Link.
func (Kernel) Announce(node netip.Addr, addresses []netip.Addr) error {
	link, err := linkOf(node)
	if err != nil {
		return fmt.Errorf("announcing the API's address: %w", err)
	}
	var wrong []error
	for _, a := range addresses {
		if err := announce(link.Attrs(), a); err != nil {
			wrong = append(wrong, fmt.Errorf("announcing the API's address %s on %s: %w", a, link.Attrs().Name, err))
		}
	}
	return errors.Join(wrong...)
}

// linkOf is the link that has the machine's own address.
func linkOf(node netip.Addr) (netlink.Link, error) {
	all, err := list()
	if err != nil {
		return nil, err
	}
	for _, have := range all {
		if addressOf(have) == node {
			return netlink.LinkByIndex(have.LinkIndex)
		}
	}
	return nil, fmt.Errorf("no link has this machine's address %s", node)
}

// list is every address, of one moment if that can be had.
func list() (all []netlink.Addr, err error) {
	for range 5 {
		if all, err = netlink.AddrList(nil, netlink.FAMILY_ALL); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func addressOf(a netlink.Addr) netip.Addr {
	out, _ := netip.AddrFromSlice(a.IP)
	return out.Unmap()
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
