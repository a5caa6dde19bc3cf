package cluster

import (
	"net/netip"
	"strings"
)

// Firewall is what an operator adds to a node's default-deny host firewall.
type Firewall struct {
	// Off is the reason why the node has none; empty when it has one.
	Off string
	// Allow are further openings, those for every node first.
	Allow []Allow
}

// Allow opens ports to some.
type Allow struct {
	From  []netip.Prefix
	Ports []uint16
	// UDP opens ports of UDP, otherwise of TCP.
	UDP bool
}

// firewalls gives each machine what stands at the top level, in its role and in
// itself: openings add up, and a reason anywhere switches it off.
func (c *checker) firewalls(raw rawFile, machines []Machine) {
	every := c.firewall(raw.Network.Firewall)
	roles := map[string]Firewall{}
	for _, r := range raw.Roles {
		roles[r.Key] = every.and(c.firewall(r.V.Network.Firewall))
	}
	for i, m := range raw.Machines {
		f, ok := roles[m.Role.V]
		if !ok { // reported already
			f = every
		}
		machines[i].Firewall = f.and(c.firewall(m.Network.Firewall))
	}
}

// and lays another one over f.
func (f Firewall) and(o Firewall) Firewall {
	out := Firewall{Off: f.Off, Allow: append(f.Allow[:len(f.Allow):len(f.Allow)], o.Allow...)}
	if o.Off != "" {
		out.Off = o.Off
	}
	return out
}

func (c *checker) firewall(raw rawFirewall) Firewall {
	var f Firewall
	if raw.Off.Set {
		if f.Off = strings.TrimSpace(raw.Off.V); f.Off == "" {
			c.add(raw.Off.Pos, raw.Off.Path, "off: the rack's switch filters by itself", "want the reason why nodes need no firewall")
		} else {
			c.warn(raw.Off.place, "", "anyone who reaches these nodes reaches kubelet, etcd and whatever pods open on the host (%s)", f.Off)
		}
	}
	for _, a := range raw.Allow {
		out := Allow{UDP: c.choice(a.Protocol, "tcp", []string{"tcp", "udp"}, nil) == "udp"}
		for _, p := range a.From {
			if p.Set {
				out.From = append(out.From, p.V)
			}
		}
		for _, p := range a.Ports {
			if p.Set {
				out.Ports = append(out.Ports, uint16(c.port(p, 1)))
			}
		}
		if a.Path != "" && !c.reported(a.Path) && (len(out.From) == 0 || len(out.Ports) == 0) {
			c.add(a.Pos, a.Path, "from: [10.0.0.0/24]   # 0.0.0.0/0 is anyone\nports: [9100]", "opens nothing: want from and ports, neither empty")
		}
		f.Allow = append(f.Allow, out)
	}
	return f
}
