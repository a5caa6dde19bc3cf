package vip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// announce tells everybody on a link that it has an address.
func announce(link *netlink.LinkAttrs, a netip.Addr) error {
	if len(link.HardwareAddr) != 6 {
		return fmt.Errorf("its hardware address %q is not Ethernet's", link.HardwareAddr)
	}
	if a.Is4() {
		return sendARP(link.Index, arpAnnouncement(link.HardwareAddr, a))
	}
	return sendNeighbour(link, a)
}

// arpAnnouncement is RFC 5227's (section 2.3): a request in which both addresses of IP are
// the one announced. Hosts that know it take the new hardware address.
func arpAnnouncement(mac net.HardwareAddr, a netip.Addr) []byte {
	const ethernet, ip4, request = 1, unix.ETH_P_IP, 1 // RFC 826
	b := binary.BigEndian.AppendUint16(nil, ethernet)
	b = binary.BigEndian.AppendUint16(b, ip4)
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, request)
	b = append(append(b, mac...), a.AsSlice()...)
	return append(append(b, make([]byte, 6)...), a.AsSlice()...)
}

// neighbourAdvertisement is RFC 4861's (section 4.4), unsolicited: it overrides what a
// neighbour knew. The kernel adds the checksum (RFC 3542 section 3.1).
func neighbourAdvertisement(mac net.HardwareAddr, a netip.Addr) []byte {
	const advertisement, override, targetLinkLayer, eightBytes = 136, 0x20, 2, 1
	b := []byte{advertisement, 0, 0, 0, override, 0, 0, 0}
	b = append(b, a.AsSlice()...)
	return append(append(b, targetLinkLayer, eightBytes), mac...)
}

func sendARP(link int, packet []byte) (err error) {
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP))
	// No protocol: it hears nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a packet socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	to := &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link, Halen: 6, Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
	return unix.Sendto(fd, packet, 0, to)
}

// sendNeighbour sends from the address itself, with the hop limit that proves a neighbour.
func sendNeighbour(link *netlink.LinkAttrs, a netip.Addr) (err error) {
	c, err := net.ListenPacket("ip6:ipv6-icmp", a.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	p := ipv6.NewPacketConn(c)
	on := &net.Interface{Index: link.Index, Name: link.Name}
	if err := errors.Join(p.SetMulticastHopLimit(255), p.SetMulticastInterface(on)); err != nil {
		return err
	}
	_, err = p.WriteTo(neighbourAdvertisement(link.HardwareAddr, a), nil, &net.IPAddr{IP: net.IPv6linklocalallnodes, Zone: link.Name})
	return err
}
