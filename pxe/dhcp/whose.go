package dhcp

import (
	"net"
	"net/netip"
)

// Holder is the network card that was given an address last, also when its time is over:
// iPXE does not renew what it has. It is safe for concurrent use.
func (s *Server) Holder(a netip.Addr) (net.HardwareAddr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.table.ByAddr(a)
	if !ok || l.State != Bound && l.State != Seen {
		return nil, false
	}
	return net.HardwareAddr(l.MAC[:]), true
}

// AddressOf is the address that a network card has now; of several, the one that lasts longest. It is safe for concurrent use.
func (s *Server) AddressOf(mac net.HardwareAddr) (netip.Addr, bool) {
	if len(mac) != len(MAC{}) {
		return netip.Addr{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := latest(s.table.ByMAC(MAC(mac)), func(l Lease) bool {
		return (l.State == Bound || l.State == Seen) && l.active(s.Now())
	})
	if !ok {
		return netip.Addr{}, false
	}
	return l.Addr, true
}
