package cluster

import (
	"net/netip"
	"slices"
)

// vips checks the addresses that one control plane has at a time: at most one of each
// family, in a network that all control planes are in, and nobody else's.
func (c *checker) vips(raw rawFile, s Spec) {
	families := map[bool]place{}
	for _, f := range raw.Kubernetes.APIVIP {
		if !f.Set {
			continue
		}
		a := f.V
		if a.Zone() != "" || a.Is4In6() || !a.IsGlobalUnicast() {
			c.add(f.Pos, f.Path, "a free address in the control planes' network", "people outside the cluster cannot reach %s", a)
			continue
		}
		if first, ok := families[a.Is4()]; ok {
			c.add(f.Pos, f.Path, "at most one address of IPv4 and one of IPv6", "the API has an address of the same family already: %s", first.Path)
			continue
		}
		families[a.Is4()] = f.place
		if who := c.taken(raw, s, a); who != "" {
			c.add(f.Pos, f.Path, "choose one that nobody has", "%s is %s", a, who)
			continue
		}
		c.near(f, s)
	}
}

// taken says whose an address is already; empty for nobody's.
func (c *checker) taken(raw rawFile, s Spec, a netip.Addr) string {
	servers := append([]netip.Addr{s.Server.Address, s.Boot.DHCP6.Address}, s.Server.Peers...)
	switch {
	case slices.Contains(append(servers, s.Boot.DHCP6.Peers...), a):
		return "the address of a server"
	case slices.Contains(s.Boot.Relays, a):
		return "the address of a relay"
	case s.Kubernetes.PodCIDR.Contains(a):
		return "in the network of the pods, kubernetes.podCIDR"
	case s.Kubernetes.ServiceCIDR.Contains(a):
		return "in the network of the services, kubernetes.serviceCIDR"
	}
	for _, m := range s.Machines {
		if m.Address == a || m.Network.static(a) {
			return "an address of " + m.Name
		}
	}
	for _, sub := range s.Boot.Subnets {
		switch {
		case sub.inRange(a):
			return "inside the dynamic range " + sub.First.String() + " to " + sub.Last.String()
		case sub.Router == a:
			return "the address of the router"
		case sub.Prefix.IsValid() && sub.Prefix.Contains(a) && (a == sub.Prefix.Masked().Addr() || a == broadcast(sub.Prefix)):
			return "no host's address in " + sub.Prefix.String()
		}
	}
	for _, sub := range s.Boot.DHCP6.Subnets {
		if sub.First.IsValid() && sub.Last.IsValid() && !a.Less(sub.First) && !sub.Last.Less(a) {
			return "inside the dynamic range " + sub.First.String() + " to " + sub.Last.String()
		}
	}
	return ""
}

// near wants the address in a network that each control plane is known to be in, where
// any is known: it moves by announcements on one link.
func (c *checker) near(f rawAddr, s Spec) {
	var known []netip.Prefix
	for _, sub := range s.Boot.Subnets {
		known = append(known, sub.Prefix)
	}
	for _, sub := range s.Boot.DHCP6.Subnets {
		known = append(known, sub.Prefix)
	}
	for _, m := range s.Machines {
		if r, ok := s.role(m.Role); !ok || !r.ControlPlane {
			continue
		}
		mine := slices.Clone(known)
		for _, n := range m.Network.Addresses {
			mine = append(mine, n.Address)
		}
		mine = slices.DeleteFunc(mine, func(p netip.Prefix) bool { return !p.IsValid() || p.Addr().Is4() != f.V.Is4() })
		if len(mine) == 0 {
			if f.V.Is6() {
				c.add(f.Pos, f.Path, "boot.dhcp6.subnets, or network.addresses of each control plane", "no network of IPv6 is known that %s is in", m.Name)
				return
			}
			continue // it gets its address from somebody else
		}
		i := slices.IndexFunc(mine, func(p netip.Prefix) bool { return p.Contains(f.V) })
		switch {
		case i < 0:
			c.add(f.Pos, f.Path, "", "%s is in no network that %s is in", f.V, m.Name)
			return
		case f.V.Is4() && m.Address.Is4() && !mine[i].Contains(m.Address):
			c.add(f.Pos, f.Path, "the address moves within one network", "%s is in %s, and %s is not: its address is %s", f.V, mine[i].Masked(), m.Name, m.Address)
			return
		}
	}
}
