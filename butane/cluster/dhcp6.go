package cluster

import (
	"encoding/binary"
	"net/netip"
)

// maxRange6 is the size of a range of IPv6 addresses: the lease table is in memory.
const maxRange6 = 1 << 16

// dhcp6 checks all that is about IPv6 alone; networks6 the rest.
func (c *checker) dhcp6(raw rawDHCP6) DHCP6 {
	if raw.Path == "" {
		return DHCP6{}
	}
	d := DHCP6{Mode: c.choice(raw.Mode, "stateful", []string{"stateful", "stateless", "off"}, nil), Address: raw.Address.V, RapidCommit: raw.RapidCommit.V}
	seen := map[string]place{}
	for _, a := range append([]rawAddr{raw.Address}, raw.Peers...) {
		if !a.Set {
			continue
		}
		if !a.V.Is6() || a.V.Is4In6() || a.V.Zone() != "" || !a.V.IsGlobalUnicast() {
			c.add(a.Pos, a.Path, "such as fd00:10::1; ip -6 address lists them", "%s is not an IPv6 address that machines can use in a URL", a.V)
		}
		c.unique(seen, "server", a.V.String(), a.place)
	}
	for _, a := range raw.Peers {
		d.Peers = append(d.Peers, a.V)
	}
	for _, s := range raw.Subnets {
		d.Subnets = append(d.Subnets, c.subnet6(s))
	}
	return d
}

func (c *checker) subnet6(raw rawSubnet6) Subnet6 {
	s := Subnet6{Prefix: raw.CIDR.V, First: raw.Range.First.V, Last: raw.Range.Last.V, Domain: raw.Domain.V, LeaseSeconds: c.lease(raw.Lease)}
	for _, a := range raw.DNS {
		s.DNS = append(s.DNS, a.V)
		if a.Set && !a.V.Is6() {
			c.add(a.Pos, a.Path, "", "%s is not an IPv6 address", a.V)
		}
	}
	if raw.Domain.Set && !isHostname(s.Domain) {
		c.add(raw.Domain.Pos, raw.Domain.Path, "domain: example.org", "%q is not a DNS name", s.Domain)
	}
	if !raw.CIDR.Set {
		return s
	}
	if !s.Prefix.Addr().Is6() || s.Prefix.Addr().Is4In6() || s.Prefix.Bits() > 120 {
		c.add(raw.CIDR.Pos, raw.CIDR.Path, "cidr: fd00:10::/64", "%s is not an IPv6 network that machines can boot in: want a prefix of at most 120 bits, of 64 where they also configure themselves", s.Prefix)
		return s
	}
	first, last := raw.Range.First, raw.Range.Last
	for _, f := range []rawAddr{first, last} {
		if f.Set {
			c.usable(f, s.Prefix)
		}
	}
	switch {
	case !first.Set || !last.Set || !first.V.Is6() || !last.V.Is6():
	case last.V.Less(first.V):
		c.add(last.Pos, last.Path, "", "the range ends at %s, before it begins at %s", last.V, first.V)
	case wide(first.V, last.V):
		c.add(last.Pos, last.Path, "", "the range from %s has more than %d addresses", first.V, maxRange6)
	}
	return s
}

// wide says whether a range is too big.
func wide(first, last netip.Addr) bool {
	a, b := first.As16(), last.As16()
	if [8]byte(a[:8]) != [8]byte(b[:8]) {
		return true // or across a border of /64, which no network of machines is
	}
	return binary.BigEndian.Uint64(b[8:])-binary.BigEndian.Uint64(a[8:]) >= maxRange6
}

// networks6 checks what DHCPv6 needs from the rest of the boot network.
func (c *checker) networks6(raw rawBoot, d DHCP6, peers int) {
	from := raw.DHCP6
	if from.Path == "" {
		return
	}
	if !raw.Interface.Set {
		c.add(raw.Pos, "boot", "interface: eth1", "required key \"interface\" is missing: dhcp6 answers on one interface")
	}
	if d.Mode == "off" && len(d.Subnets) > 0 {
		c.add(from.Subnets[0].Pos, from.Subnets[0].Path, "", "under mode: off another server knows the subnets")
	}
	if from.RapidCommit.Set && d.Mode != "stateful" {
		c.add(from.RapidCommit.Pos, from.RapidCommit.Path, "mode: stateful", "rapidCommit is for a server that gives out addresses")
	}
	if len(d.Peers) != peers {
		c.add(from.Pos, from.Path, "peers: the IPv6 address of each of server.peers, in that order", "peers has %d addresses, and server.peers %d: each server boots machines from its own", len(d.Peers), peers)
	}
	home := false
	for i, s := range d.Subnets {
		at := from.Subnets[i]
		if !at.CIDR.Set {
			continue
		}
		home = home || s.Prefix.Contains(d.Address)
		if d.Mode == "stateful" && at.Range.Path == "" {
			c.add(at.Pos, at.Path, "range: {first: fd00:10::1000, last: fd00:10::1fff}", "required key \"range\" is missing: mode: stateful gives out addresses")
		}
		if d.Mode == "stateless" && at.Range.Path != "" {
			c.add(at.Range.Pos, at.Range.Path, "mode: stateful", "under mode: stateless another server gives out the addresses")
		}
		for _, a := range append([]rawAddr{from.Address}, from.Peers...) {
			if a.Set && s.First.Is6() && s.Last.Is6() && !a.V.Less(s.First) && !s.Last.Less(a.V) {
				c.add(a.Pos, a.Path, "", "the server's address %s is inside the range %s to %s", a.V, s.First, s.Last)
			}
		}
		for j, other := range d.Subnets[:i] {
			if from.Subnets[j].CIDR.Set && other.Prefix.Overlaps(s.Prefix) {
				c.add(at.CIDR.Pos, at.CIDR.Path, "", "%s overlaps %s", s.Prefix, other.Prefix)
			}
		}
	}
	if d.Mode == "stateful" && !home && from.Address.Set {
		c.add(from.Pos, from.Path, "subnets:\n  - cidr: fd00:10::/64\n    range: {first: fd00:10::1000, last: fd00:10::1fff}", "none of its subnets contains its address %s, so no machine beside the server gets one", d.Address)
	}
}
