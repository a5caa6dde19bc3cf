package inspect

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// Protocols are what a capture may be narrowed to.
func Protocols() []string { return []string{"tcp", "udp", "icmp", "arp", "ip", "ip6"} }

// filter says which frames are wanted. tcpdump's language would take libpcap, which is C; this
// is what finds one conversation.
type filter struct {
	protocol string
	host     netip.Addr
	port     uint16
	own      [2]netip.AddrPort
	ethernet bool
}

func newFilter(req *api.CaptureRequest, own [2]netip.AddrPort, ethernet bool) (filter, error) {
	f := filter{protocol: req.GetProtocol(), port: uint16(req.GetPort()), ethernet: ethernet}
	for i, a := range own {
		f.own[i] = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	if f.protocol != "" && !slices.Contains(Protocols(), f.protocol) {
		return f, fmt.Errorf("protocol %q is not known; these are: %v", f.protocol, Protocols())
	}
	if req.GetPort() > 65535 {
		return f, fmt.Errorf("port %d is above 65535", req.GetPort())
	}
	if h := req.GetHost(); h != "" {
		a, err := netip.ParseAddr(h)
		if err != nil {
			return f, fmt.Errorf("host %q is no IP address", h)
		}
		f.host = a.Unmap().WithZone("")
	}
	return f, nil
}

// head is what a filter looks at.
type head struct {
	ether    uint16 // ETH_P_IP ...
	protocol uint8  // IPPROTO_TCP ...
	from, to netip.AddrPort
	ports    bool
}

// fits says whether a frame is wanted. One that cannot be read fits only a filter that wants
// everything.
func (f filter) fits(b []byte) bool {
	h := f.head(b)
	if f.own[0].IsValid() && h.ports && h.protocol == unix.IPPROTO_TCP &&
		(h.from == f.own[0] && h.to == f.own[1] || h.from == f.own[1] && h.to == f.own[0]) {
		return false
	}
	switch f.protocol {
	case "tcp":
		if h.protocol != unix.IPPROTO_TCP {
			return false
		}
	case "udp":
		if h.protocol != unix.IPPROTO_UDP {
			return false
		}
	case "icmp":
		if h.protocol != unix.IPPROTO_ICMP && h.protocol != unix.IPPROTO_ICMPV6 {
			return false
		}
	case "arp":
		if h.ether != unix.ETH_P_ARP {
			return false
		}
	case "ip":
		if h.ether != unix.ETH_P_IP {
			return false
		}
	case "ip6":
		if h.ether != unix.ETH_P_IPV6 {
			return false
		}
	}
	if f.host.IsValid() && h.from.Addr() != f.host && h.to.Addr() != f.host {
		return false
	}
	return f.port == 0 || h.ports && (h.from.Port() == f.port || h.to.Port() == f.port)
}

func (f filter) head(b []byte) head {
	var h head
	if f.ethernet {
		if len(b) < 14 {
			return h
		}
		h.ether, b = binary.BigEndian.Uint16(b[12:]), b[14:]
		for range 2 { // a tag of the provider's may be before the VLAN's
			if h.ether != unix.ETH_P_8021Q && h.ether != unix.ETH_P_8021AD || len(b) < 4 {
				break
			}
			h.ether, b = binary.BigEndian.Uint16(b[2:]), b[4:]
		}
	} else if len(b) > 0 {
		h.ether = unix.ETH_P_IP
		if b[0]>>4 == 6 {
			h.ether = unix.ETH_P_IPV6
		}
	}
	switch h.ether {
	case unix.ETH_P_IP:
		return h.ip4(b)
	case unix.ETH_P_IPV6:
		return h.ip6(b)
	case unix.ETH_P_ARP:
		// RFC 826: two hardware addresses of 6 bytes and two of 4, behind 8 bytes.
		if len(b) >= 28 && b[4] == 6 && b[5] == 4 {
			h.from, h.to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[14:18])), 0), netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[24:28])), 0)
		}
	}
	return h
}

func (h head) ip4(b []byte) head {
	if len(b) < 20 || b[0]>>4 != 4 || int(b[0]&15)*4 < 20 {
		return h
	}
	h.protocol = b[9]
	from, to := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	rest := b[min(len(b), int(b[0]&15)*4):]
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		rest = nil // a later fragment has no ports
	}
	return h.transport(from, to, rest)
}

func (h head) ip6(b []byte) head {
	if len(b) < 40 || b[0]>>4 != 6 {
		return h
	}
	from, to := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	h.protocol, b = b[6], b[40:]
	// Extension headers before it: RFC 8200, section 4.
	for range 8 {
		switch h.protocol {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < 8 {
				return h.transport(from, to, nil)
			}
			h.protocol, b = b[0], b[min(len(b), 8*(int(b[1])+1)):]
			continue
		case unix.IPPROTO_FRAGMENT:
			if len(b) < 8 {
				return h.transport(from, to, nil)
			}
			later := binary.BigEndian.Uint16(b[2:])&0xfff8 != 0
			if h.protocol, b = b[0], b[8:]; later {
				return h.transport(from, to, nil)
			}
			continue
		}
		break
	}
	return h.transport(from, to, b)
}

func (h head) transport(from, to netip.Addr, b []byte) head {
	var a, z uint16
	if (h.protocol == unix.IPPROTO_TCP || h.protocol == unix.IPPROTO_UDP) && len(b) >= 4 {
		a, z, h.ports = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), true
	}
	h.from, h.to = netip.AddrPortFrom(from, a), netip.AddrPortFrom(to, z)
	return h
}
