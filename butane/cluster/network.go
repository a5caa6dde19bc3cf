package cluster

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// defaultLeaseSeconds is half a day: an installed node outlives a weekend
// without a boot server only because its reservation never changes.
const defaultLeaseSeconds = 12 * 60 * 60

func (c *checker) subnet(raw rawSubnet) Subnet {
	s := Subnet{Prefix: raw.CIDR.V, Interface: raw.Interface.V, First: raw.Range.First.V, Last: raw.Range.Last.V, Router: raw.Router.V, Domain: raw.Domain.V, LeaseSeconds: c.lease(raw.Lease)}
	for _, a := range raw.DNS {
		s.DNS = append(s.DNS, a.V)
	}
	for _, a := range raw.NTP {
		s.NTP = append(s.NTP, a.V)
	}
	s.MTU, s.Routes = c.mtu(raw.MTU), c.subnetRoutes(raw)
	if raw.Domain.Set && !isHostname(s.Domain) {
		c.add(raw.Domain.Pos, raw.Domain.Path, "domain: example.org", "%q is not a DNS name", s.Domain)
	}
	c.interfaceName(raw.Interface)
	if !raw.CIDR.Set {
		return s
	}
	if !s.Prefix.Addr().Is4() {
		c.add(raw.CIDR.Pos, raw.CIDR.Path, "", "boot.subnets are IPv4 networks; those of IPv6 stand in boot.dhcp6.subnets")
		return s
	}
	if s.Prefix.Bits() > 30 {
		c.add(raw.CIDR.Pos, raw.CIDR.Path, "", "%s has no room for a server and a machine", s.Prefix)
	}
	for _, f := range []rawAddr{raw.Range.First, raw.Range.Last, raw.Router} {
		if f.Set {
			c.usable(f, s.Prefix)
		}
	}
	first, last := raw.Range.First, raw.Range.Last
	if first.Set && last.Set {
		if last.V.Less(first.V) {
			c.add(last.Pos, last.Path, "", "the range ends at %s, before it begins at %s", last.V, first.V)
		}
		if raw.Router.Set && s.inRange(s.Router) {
			c.add(raw.Router.Pos, raw.Router.Path, "", "the router %s is inside the dynamic range %s to %s", s.Router, s.First, s.Last)
		}
	}
	return s
}

// maxSubnetRoutes keeps an answer small: a route has up to nine bytes, and clients need
// take no more than 576 (RFC 2131 section 2).
const maxSubnetRoutes = 16

// subnetRoutes are what the clients of a subnet are told of routers besides the default one.
func (c *checker) subnetRoutes(raw rawSubnet) (out []SubnetRoute) {
	for i, r := range raw.Routes {
		to, via := r.To, r.Via
		switch {
		case i == maxSubnetRoutes:
			c.add(r.Pos, r.Path, "", "a subnet can have %d routes", maxSubnetRoutes)
		case !to.Set || !via.Set: // said already
		case !to.V.Addr().Is4():
			c.add(to.Pos, to.Path, "", "%s is not an IPv4 network", to.V)
		case to.V.Bits() == 0:
			c.add(to.Pos, to.Path, "", "the default route is the subnet's router")
		case raw.CIDR.Set && raw.CIDR.V.Addr().Is4():
			c.usable(via, raw.CIDR.V)
		}
		out = append(out, SubnetRoute{To: to.V, Via: via.V})
	}
	return out
}

// lease is a lifetime in seconds.
func (c *checker) lease(raw rawDuration) int {
	if !raw.Set {
		return defaultLeaseSeconds
	}
	if raw.V < 2*60e9 || raw.V > 365*24*3600e9 {
		c.add(raw.Pos, raw.Path, "lease: 12h", "a lease of %s is out of range: want 2m to 8760h", raw.V)
	}
	return int(raw.V.Seconds())
}

// usable checks that an address can be a host's in a subnet.
func (c *checker) usable(f rawAddr, p netip.Prefix) {
	switch {
	case !p.Contains(f.V):
		c.add(f.Pos, f.Path, "", "%s is not inside %s", f.V, p)
	case f.V == p.Masked().Addr():
		c.add(f.Pos, f.Path, "", "%s is the network address of %s", f.V, p)
	case f.V == broadcast(p):
		c.add(f.Pos, f.Path, "", "%s is the broadcast address of %s", f.V, p)
	}
}

// broadcast is the last address of an IPv4 prefix, and no address for any other.
func broadcast(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() {
		return netip.Addr{}
	}
	a := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | uint32(uint64(1)<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

func (s Subnet) inRange(a netip.Addr) bool {
	return s.First.IsValid() && s.Last.IsValid() && !a.Less(s.First) && !s.Last.Less(a)
}

// networks checks everything that is about more than one address.
func (c *checker) networks(raw rawFile, s Spec) {
	c.overlaps(raw, s)
	server := raw.Server.Address
	if server.Set && !server.V.Is4() {
		c.add(server.Pos, server.Path, "", "IPv6 is not supported yet")
		server.Set = false
	}
	authoritative := s.Boot.DHCP == "authoritative"
	if (authoritative || s.Boot.DHCP == "proxy") && !raw.Boot.Interface.Set && raw.Boot.Path != "" {
		c.add(raw.Boot.Pos, "boot", "interface: eth1", "required key \"interface\" is missing: dhcp: %s answers on one interface", s.Boot.DHCP)
	}
	if authoritative {
		if len(raw.Boot.Subnets) == 0 && raw.Boot.Path != "" {
			c.add(raw.Boot.Pos, "boot", "subnets:\n  - cidr: 10.0.0.0/24", "required key \"subnets\" is missing: dhcp: authoritative gives out addresses")
		}
	}
	if server.Set && len(s.Boot.Subnets) > 0 {
		if sub, ok := subnetOf(s.Boot.Subnets, server.V); ok {
			// It may be the router as well: one box in a lab.
			c.usable(server, sub.Prefix)
			if sub.inRange(server.V) {
				c.add(server.Pos, server.Path, "", "the server's address %s is inside the dynamic range %s to %s", server.V, sub.First, sub.Last)
			}
		} else if authoritative && len(raw.Boot.Relays) == 0 {
			c.add(server.Pos, server.Path, "name the relays that send it requests: boot.relays: [10.0.0.254]",
				"the server's address %s is in none of boot.subnets, so no machine reaches it without a relay", server.V)
		}
	}
	c.peers(raw, s)
	c.networks6(raw.Boot, s.Boot.DHCP6, len(s.Server.Peers))
	c.links(raw, s)
	c.relays(raw, s)
	c.neighbours(raw, s)
	seen := map[string]place{}
	for i, m := range raw.Machines {
		a := m.Address
		if !a.Set {
			if authoritative && m.Path != "" && m.Name.Set {
				c.add(m.Pos, m.Path, "address: 10.0.0.11", "required key \"address\" is missing: under dhcp: authoritative every machine has a reserved address")
			}
			continue
		}
		c.unique(seen, "address", a.V.String(), a.place)
		if !a.V.Is4() {
			c.add(a.Pos, a.Path, "", "IPv6 is not supported yet")
			continue
		}
		if server.Set && a.V == server.V {
			c.add(a.Pos, a.Path, "", "%s is the server's own address", a.V)
		}
		sub, ok := subnetOf(s.Boot.Subnets, a.V)
		switch {
		case !ok && len(s.Boot.Subnets) > 0 && s.Machines[i].Network.static(a.V):
			// Installed, it has this address without DHCP; before, one out of a range.
			if authoritative && !slices.ContainsFunc(s.Boot.Subnets, func(s Subnet) bool { return s.First.IsValid() }) {
				c.add(a.Pos, a.Path, "boot: {subnets: [{range: {first: ..., last: ...}}]}", "%s of %s is in none of boot.subnets, and none of them has a range for its installer", a.V, s.Machines[i].Name)
			}
		case !ok && len(s.Boot.Subnets) > 0:
			c.add(a.Pos, a.Path, "", "%s of %s is in none of boot.subnets", a.V, s.Machines[i].Name)
		case !ok:
		case sub.inRange(a.V):
			c.add(a.Pos, a.Path, "choose one outside, or make the range smaller", "%s is inside the dynamic range %s to %s, where another machine may get it", a.V, sub.First, sub.Last)
		case a.V == sub.Router:
			c.add(a.Pos, a.Path, "", "%s is the router's address", a.V)
		default:
			c.usable(a, sub.Prefix)
		}
	}
}

// links checks how machines and the server reach each other.
func (c *checker) links(raw rawFile, s Spec) {
	server, seen := raw.Server.Address, map[string]place{}
	for i, sub := range raw.Boot.Subnets {
		home := server.Set && s.Boot.Subnets[i].Prefix.Contains(server.V)
		switch on := sub.Interface; {
		case !on.Set:
		case home && on.V != s.Boot.Interface:
			c.add(on.Pos, on.Path, "interface: "+s.Boot.Interface, "%s is the subnet of server.address, which is on boot.interface %s", s.Boot.Subnets[i].Prefix, s.Boot.Interface)
		case !home && on.V == s.Boot.Interface:
			c.add(on.Pos, on.Path, "", "boot.interface %s is for the subnet of server.address; another subnet needs another interface, or a relay", on.V)
		default:
			c.unique(seen, "interface", on.V, on.place)
		}
		if s.Boot.DHCP == "authoritative" && server.Set && sub.CIDR.Set && !home && !sub.Router.Set && s.Boot.Subnets[i].Prefix.Addr().Is4() {
			c.add(sub.Pos, sub.Path, "router: its default gateway", "the machines of %s cannot reach the server %s without a router", s.Boot.Subnets[i].Prefix, server.V)
		}
	}
}

// peers are servers as server.address is.
func (c *checker) peers(raw rawFile, s Spec) {
	for _, p := range raw.Server.Peers {
		if !p.Set {
			continue
		}
		if !p.V.Is4() {
			c.add(p.Pos, p.Path, "", "IPv6 is not supported yet")
			continue
		}
		if sub, ok := subnetOf(s.Boot.Subnets, p.V); ok {
			if c.usable(p, sub.Prefix); sub.inRange(p.V) {
				c.add(p.Pos, p.Path, "", "the server's address %s is inside the dynamic range %s to %s", p.V, sub.First, sub.Last)
			}
		}
		for _, m := range s.Machines {
			if m.Address == p.V {
				c.add(p.Pos, p.Path, "", "the server %s has the address of %s", p.V, m.Name)
			}
		}
	}
}

// relays have addresses that nobody else may have.
func (c *checker) relays(raw rawFile, s Spec) {
	seen := map[string]place{}
	for _, r := range raw.Boot.Relays {
		if !r.Set {
			continue
		}
		if !r.V.Is4() {
			c.add(r.Pos, r.Path, "", "IPv6 is not supported yet")
			continue
		}
		c.unique(seen, "relay", r.V.String(), r.place)
		if sub, ok := subnetOf(s.Boot.Subnets, r.V); ok {
			if c.usable(r, sub.Prefix); sub.inRange(r.V) {
				c.add(r.Pos, r.Path, "", "the relay %s is inside the dynamic range %s to %s", r.V, sub.First, sub.Last)
			}
		}
		for _, m := range s.Machines {
			if m.Address == r.V {
				c.add(r.Pos, r.Path, "", "the relay %s has the address of %s", r.V, m.Name)
			}
		}
	}
}

func subnetOf(subnets []Subnet, a netip.Addr) (Subnet, bool) {
	for _, s := range subnets {
		if s.Prefix.IsValid() && s.Prefix.Contains(a) {
			return s, true
		}
	}
	return Subnet{}, false
}

// overlaps compares the networks of pods, services and booting pairwise.
func (c *checker) overlaps(raw rawFile, s Spec) {
	type network struct {
		name   string
		at     place
		prefix netip.Prefix
	}
	var all []network
	for _, n := range []network{
		{"kubernetes.podCIDR", raw.Kubernetes.PodCIDR.place, s.Kubernetes.PodCIDR},
		{"kubernetes.serviceCIDR", raw.Kubernetes.ServiceCIDR.place, s.Kubernetes.ServiceCIDR},
	} {
		if n.at.Path == "" { // a default: point at the section
			n.at = raw.Kubernetes.place
		}
		if !n.prefix.Addr().Is4() {
			c.add(n.at.Pos, n.name, "", "IPv6 is not supported yet")
			continue
		}
		all = append(all, n)
	}
	if p := s.Kubernetes.PodCIDR; p.Addr().Is4() {
		// kube-controller-manager gives each node a /24.
		if room := nodesIn(p); len(s.Machines) > room || room == 0 {
			c.add(all[0].at.Pos, "kubernetes.podCIDR", "podCIDR: 10.244.0.0/16", "%s has room for %d nodes of a /24 each, and there are %d machines", p, room, len(s.Machines))
		}
	}
	if p := s.Kubernetes.ServiceCIDR; p.Addr().Is4() && (p.Bits() < 12 || p.Bits() > 28) {
		c.add(raw.Kubernetes.ServiceCIDR.Pos, "kubernetes.serviceCIDR", "serviceCIDR: 10.96.0.0/12", "a service network of /%d is out of range: want /12 to /28", p.Bits())
	}
	for i, sub := range raw.Boot.Subnets {
		if sub.CIDR.Set && sub.CIDR.V.Addr().Is4() {
			all = append(all, network{fmt.Sprintf("boot.subnets[%d]", i), sub.CIDR.place, sub.CIDR.V})
		}
	}
	for i, b := range all {
		for _, a := range all[:i] {
			if a.prefix.Overlaps(b.prefix) {
				c.add(b.at.Pos, b.at.Path, "", "%s %s overlaps %s %s", b.name, b.prefix, a.name, a.prefix)
			}
		}
	}
}

func nodesIn(p netip.Prefix) int {
	if p.Bits() < 0 || p.Bits() > 24 {
		return 0
	}
	return 1 << (24 - p.Bits())
}
