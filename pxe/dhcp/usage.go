package dhcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// Usage is how full one subnet is.
type Usage struct {
	Subnet netip.Prefix
	// Pool is the size of the dynamic range, Leased how many of it have an owner now:
	// offered, given out, or resting after a conflict.
	Pool, Leased int
	// Reserved is how many reserved addresses have their owner now.
	Reserved int
}

// usage is safe for concurrent use. It looks at every lease, so it is for the
// pace of people and not of packets.
func (s *Server) usage() []Usage {
	network, now := s.Source.Network(), s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.usage(network, now)
}

func (t *Table) usage(network *boot.Network, now time.Time) []Usage {
	if network.Proxy {
		return nil // the addresses are another server's
	}
	out := make([]Usage, 0, len(network.Subnets))
	for _, s := range network.Subnets {
		u := Usage{Subnet: s.Prefix.Masked()}
		if s.First.IsValid() {
			u.Pool = distance(s.First, s.Last) + 1
		}
		out = append(out, u)
	}
	in := func(s boot.Subnet, a netip.Addr) bool {
		return s.First.IsValid() && pool{first: s.First, last: s.Last}.holds(a)
	}
	for a := range network.Reserved {
		for i, s := range network.Subnets {
			if in(s, a) {
				out[i].Pool--
			}
		}
	}
	for a, l := range t.byAddr {
		if !l.active(now) {
			continue
		}
		for i, s := range network.Subnets {
			switch _, reserved := network.Reserved[a]; {
			case !s.Prefix.Contains(a):
			case reserved:
				out[i].Reserved++
			case in(s, a):
				out[i].Leased++
			}
		}
	}
	return out
}

// distance is how far two IPv4 addresses are apart.
func distance(first, last netip.Addr) int {
	a, b := first.As4(), last.As4()
	return int(binary.BigEndian.Uint32(b[:])) - int(binary.BigEndian.Uint32(a[:]))
}
