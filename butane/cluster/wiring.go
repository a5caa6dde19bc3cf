package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// wiring checks how the parts of one machine's network fit together, and completes
// what follows from others.
type wiring struct {
	*checker
	raw     rawNetwork
	machine rawMachine
	name    string
	spec    Spec
	net     *Network
	// owners says who else has an address; it grows by this machine's.
	owners map[netip.Addr]owner
	// made are the names of bonds and VLANs.
	made []string
}

// owner of an address. static: it is an address of network.addresses.
type owner struct {
	who    string
	static bool
}

// owners are those of addresses besides network.addresses.
func owners(s Spec) map[netip.Addr]owner {
	out := map[netip.Addr]owner{}
	for _, m := range s.Machines {
		if m.Address.IsValid() {
			out[m.Address] = owner{who: m.Name}
		}
	}
	for _, a := range append([]netip.Addr{s.Server.Address}, s.Server.Peers...) {
		if a.IsValid() {
			out[a] = owner{who: "the server"}
		}
	}
	return out
}

func (w *wiring) check() {
	w.names()
	w.members()
	w.vlans()
	w.addresses()
	w.routes()
	w.nodeAddress()
	w.dynamicMAC()
}

// names are unique over bonds and VLANs, and every reference is to one of them or to a
// card.
func (w *wiring) names() {
	seen := map[string]place{}
	for _, f := range w.definitions() {
		if !f.Set {
			continue
		}
		if first, ok := seen[f.V]; ok {
			w.once(f.place, "", "the link %s is already made by %s", f.V, first.Path)
			continue
		}
		seen[f.V] = f.place
		w.made = append(w.made, f.V)
	}
	for _, b := range w.raw.Bonds {
		for _, i := range b.Interfaces {
			w.known(i)
		}
	}
	for _, v := range w.raw.VLANs {
		w.known(v.Link)
	}
	for _, a := range w.raw.Addresses {
		w.known(a.Interface)
	}
	for _, r := range w.raw.Routes {
		w.known(r.Interface)
	}
	mirrors := map[string]place{}
	for _, m := range w.raw.RegistryMirrors {
		if first, ok := mirrors[m.Name.V]; ok && m.Name.Set {
			w.once(m.Name.place, "", "%s has mirrors already, in %s", m.Name.V, first.Path)
		}
		mirrors[m.Name.V] = m.Name.place
	}
}

func (w *wiring) definitions() []rawString {
	var out []rawString
	for _, b := range w.raw.Bonds {
		out = append(out, b.Name)
	}
	for _, v := range w.raw.VLANs {
		out = append(out, v.Name)
	}
	return out
}

// known refuses names that nothing makes: a misspelt bond would be a card that no
// machine has.
func (w *wiring) known(f rawString) {
	if !f.Set || isMAC(f.V) || !interfaceName.MatchString(f.V) || slices.Contains(w.made, f.V) || cardName.MatchString(f.V) {
		return
	}
	hint := "a card with a name of its own is named by its MAC address"
	if near, ok := nearest(f.V, w.made); ok {
		hint = "did you mean " + near + "?"
	}
	w.once(f.place, hint, "there is no bond or VLAN %s, and cards are called en…, eth… or ib…", f.V)
}

func isMAC(s string) bool { return strings.Count(s, ":") == 5 }

// members of bonds are in one bond and in nothing else.
func (w *wiring) members() {
	in := map[string]string{}
	for i, b := range w.raw.Bonds {
		for _, f := range b.Interfaces {
			card := w.link(f)
			switch {
			case card == "":
			case slices.Contains(w.made, card):
				w.once(f.place, "", "%s is a bond or a VLAN, and a bond is made of cards", card)
			case in[card] != "":
				w.once(f.place, "", "%s is in %s already", card, in[card])
			default:
				in[card] = w.net.Bonds[i].Name
			}
		}
	}
	busy := func(f rawString, what string) {
		if card := w.link(f); card != "" && in[card] != "" {
			w.once(f.place, lastKey(f.Path)+": "+in[card], "%s is in %s, so %s belongs to that", card, in[card], what)
		}
	}
	for _, v := range w.raw.VLANs {
		busy(v.Link, "a VLAN")
	}
	for _, a := range w.raw.Addresses {
		busy(a.Interface, "an address")
	}
	for _, r := range w.raw.Routes {
		busy(r.Interface, "a route")
	}
}

func (w *wiring) vlans() {
	seen := map[string]string{}
	for i, v := range w.net.VLANs {
		raw := w.raw.VLANs[i]
		if v.Link == "" || v.Name == "" {
			continue
		}
		if slices.ContainsFunc(w.net.VLANs, func(o VLAN) bool { return o.Name == v.Link }) {
			w.once(raw.Link.place, "link: the bond or card below it", "%s is a VLAN, and a VLAN in another is not supported", v.Link)
		}
		key := fmt.Sprintf("%s %d", v.Link, v.ID)
		if other := seen[key]; other != "" && raw.ID.Set {
			w.once(raw.ID.place, "", "VLAN %d of %s is %s already", v.ID, v.Link, other)
		}
		seen[key] = v.Name
		for _, b := range w.net.Bonds {
			limit := b.MTU
			if limit == 0 {
				limit = defaultMTU
			}
			if b.Name == v.Link && v.MTU > limit {
				w.once(raw.MTU.place, "set the MTU of "+b.Name+" too", "an MTU of %d does not go through %s, whose MTU is %d", v.MTU, b.Name, limit)
			}
		}
	}
}

func (w *wiring) addresses() {
	k := w.spec.Kubernetes
	for i, a := range w.net.Addresses {
		f := w.raw.Addresses[i].Address
		if !a.Address.IsValid() || a.Link == "" {
			continue
		}
		addr := a.Address.Addr()
		for _, n := range []struct {
			what   string
			prefix netip.Prefix
		}{{"pods", k.PodCIDR}, {"services", k.ServiceCIDR}} {
			if n.prefix.IsValid() && a.Address.Masked().Overlaps(n.prefix) {
				w.once(f.place, "", "%s is in a network that overlaps that of the %s, %s", a.Address, n.what, n.prefix)
			}
		}
		switch o, taken := w.owners[addr]; {
		case taken && (o.who != w.name || o.static):
			w.once(f.place, "", "%s of %s is %s's already", addr, w.name, o.who)
		default:
			w.owners[addr] = owner{who: w.name, static: true}
		}
		if sub, ok := subnetOf(w.spec.Boot.Subnets, addr); ok && sub.inRange(addr) {
			w.once(f.place, "choose one outside, or make the range smaller", "%s is inside the dynamic range %s to %s, where another machine may get it", addr, sub.First, sub.Last)
		}
	}
}

// routes have a gateway that an address of this machine is next to.
func (w *wiring) routes() {
	type way struct {
		to     netip.Prefix
		metric int
	}
	seen := map[way]bool{}
	for i, r := range w.net.Routes {
		raw := w.raw.Routes[i]
		if !raw.To.Set || !raw.Via.Set {
			continue
		}
		if key := (way{r.To, r.Metric}); seen[key] {
			w.once(raw.To.place, "metric: 200   # for the second", "there is a route to %s with this metric already", r.To)
		} else {
			seen[key] = true
		}
		var on []StaticAddress // of the route's link, or of all
		found := ""
		for _, a := range w.net.Addresses {
			if !a.Address.IsValid() || r.Link != "" && a.Link != r.Link {
				continue
			}
			if on = append(on, a); a.Address.Contains(r.Via) && found == "" {
				found = a.Link
			}
			if a.Address.Addr() == r.Via {
				w.once(raw.Via.place, "", "%s is this machine's own address", r.Via)
			}
		}
		switch {
		case found != "":
			w.net.Routes[i].Link = found
		case r.Link == "":
			w.once(raw.Via.place, "name the interface, when its address comes by DHCP", "the gateway %s of %s is in the network of none of its addresses", r.Via, w.name)
		case len(on) > 0:
			w.once(raw.Via.place, "", "the gateway %s is not in the network of %s on %s", r.Via, on[0].Address, r.Link)
		}
	}
}

// nodeAddress: the address that others know the node by has to be on one of its links.
func (w *wiring) nodeAddress() {
	own := w.machine.Address
	var four []StaticAddress
	for _, a := range w.net.Addresses {
		if a.Address.IsValid() && a.Address.Addr().Is4() {
			four = append(four, a)
		}
	}
	if len(four) == 0 {
		return
	}
	at := w.raw.Addresses[0].place
	switch {
	case !own.Set && w.spec.Boot.DHCP == "authoritative": // reported already
	case !own.Set:
		w.once(w.machine.place, "address: "+four[0].Address.Addr().String(), "%s has static addresses, and address does not say which one others know it by", w.name)
	case !w.net.static(own.V):
		w.once(own.place, "add it to network.addresses", "%s of %s is not among its static addresses (%s)", own.V, w.name, four[0].Address)
	}
	// Only a warning: a card that is not named may reach the server by DHCP.
	server := w.spec.Server.Address
	reached := !server.IsValid() || slices.ContainsFunc(four, func(a StaticAddress) bool { return a.Address.Contains(server) }) ||
		slices.ContainsFunc(w.net.Routes, func(r Route) bool { return r.To.IsValid() && r.To.Contains(server) })
	if !reached && !w.reported(at.Path) {
		w.warn(at, "routes: [{to: 0.0.0.0/0, via: ...}]", "no address or route of %s leads to the server %s", w.name, server)
	}
}

// dynamicMAC: a bond that asks by DHCP has the MAC address of its first card only when
// that is named by it.
func (w *wiring) dynamicMAC() {
	for i, b := range w.net.Bonds {
		if w.reported(w.raw.Bonds[i].place.Path) || len(b.Cards) == 0 || isMAC(b.Cards[0]) || !w.machine.Address.Set || w.net.static(w.machine.Address.V) || !w.net.Dynamic(b.Name) {
			continue
		}
		w.warn(w.raw.Bonds[i].place, "interfaces: [52:54:00:12:34:56, ...]   # the first is the bond's",
			"%s of %s asks by DHCP with a MAC address that it makes up, so the reservation of %s is not for it", b.Name, w.name, w.machine.Address.V)
	}
}

// Dynamic says whether a link asks for its address by DHCP: it has none here, and no
// VLAN stands on it.
func (n Network) Dynamic(link string) bool {
	return !slices.ContainsFunc(n.Addresses, func(a StaticAddress) bool { return a.Link == link }) &&
		!slices.ContainsFunc(n.VLANs, func(v VLAN) bool { return v.Link == link })
}
