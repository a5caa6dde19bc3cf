package cluster

import (
	"net"
	"net/netip"
)

// Neighbour is the imagectl serve of another cluster that answers machines of its own on our
// boot network.
type Neighbour struct {
	// Address is its server.address.
	Address netip.Addr
	// Machines are the network cards of its machines.
	Machines []net.HardwareAddr
}

func neighbour(raw rawNeighbour) Neighbour {
	n := Neighbour{Address: raw.Address.V}
	for _, m := range raw.Machines {
		n.Machines = append(n.Machines, m.V)
	}
	return n
}

// neighbours have addresses and machines that are not ours.
func (c *checker) neighbours(raw rawFile, s Spec) {
	addresses, cards := map[string]place{}, map[string]place{}
	for _, a := range append([]rawAddr{raw.Server.Address}, raw.Server.Peers...) {
		if a.Set {
			addresses[a.V.String()] = a.place
		}
	}
	for _, m := range raw.Machines {
		for _, mac := range m.Match.MAC {
			if mac.Set {
				cards[mac.V.String()] = mac.place
			}
		}
	}
	for _, n := range raw.Boot.Neighbours {
		c.neighbourAddress(n.Address, addresses, s)
		for _, mac := range n.Machines {
			if mac.Set && mac.V[0]&1 != 0 {
				c.add(mac.Pos, mac.Path, "", "%s is a group address, no network card has it", mac.V)
			}
			if mac.Set {
				c.unique(cards, "MAC", mac.V.String(), mac.place)
			}
		}
	}
	if n := raw.Boot.Neighbours; len(n) > 0 && s.Boot.DHCP6.Mode != "" && s.Boot.DHCP6.Mode != "off" {
		c.add(n[0].Pos, n[0].Path, "dhcp6: {mode: off}", "neighbours share DHCP and not DHCPv6: two servers of different clusters cannot both answer it on one network yet")
	}
}

func (c *checker) neighbourAddress(a rawAddr, seen map[string]place, s Spec) {
	if !a.Set {
		return
	}
	if !a.V.Is4() {
		c.add(a.Pos, a.Path, "its server.address", "%s is not an IPv4 address", a.V)
		return
	}
	c.unique(seen, "server", a.V.String(), a.place)
	if sub, ok := subnetOf(s.Boot.Subnets, a.V); ok {
		if c.usable(a, sub.Prefix); sub.inRange(a.V) {
			c.add(a.Pos, a.Path, "", "the server %s is inside the dynamic range %s to %s", a.V, sub.First, sub.Last)
		}
	}
	for _, m := range s.Machines {
		if m.Address == a.V {
			c.add(a.Pos, a.Path, "", "the server %s has the address of %s", a.V, m.Name)
		}
	}
}
