package cluster

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Network is how a node is connected. The zero value is what Flatcar does by itself:
// every card asks by DHCP. So do links that are in none of the lists.
type Network struct {
	// Bonds, VLANs and Mirrors are in the order of the file, an outer level's first.
	Bonds     []Bond
	VLANs     []VLAN
	Addresses []StaticAddress
	Routes    []Route
	// DNS and NTP are asked besides, or in the place of, what DHCP says.
	DNS     []netip.Addr
	NTP     []string
	Proxy   Proxy
	Mirrors []RegistryMirror
}

// Bond is several cards as one link.
type Bond struct {
	Name string
	// Mode is one of systemd.netdev(5), 802.3ad when the file says nothing.
	Mode string
	// Cards are names, or MAC addresses in lower case with colons.
	Cards []string
	// MTU is 0 for the kernel's.
	MTU int
}

// VLAN is a tagged network on another link.
type VLAN struct {
	Name string
	// ID is 1 to 4094.
	ID int
	// Link is a bond's name, or a card's name or MAC address.
	Link string
	// MTU is 0 for that of the link.
	MTU int
}

// StaticAddress is an address with the length of its network's prefix.
type StaticAddress struct {
	// Link is the name of a bond or VLAN, or a card's name or MAC address.
	Link    string
	Address netip.Prefix
}

// Route is a way to a network.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
	// Link is where Via is; never empty in a Spec without errors.
	Link string
	// Metric is 0 for the kernel's.
	Metric int
}

// static says whether an address is one of those.
func (n Network) static(a netip.Addr) bool {
	return slices.ContainsFunc(n.Addresses, func(s StaticAddress) bool { return s.Address.Addr() == a })
}

// bondModes are the values of Mode= in systemd.netdev(5), the default first.
func bondModes() []string {
	return []string{"802.3ad", "active-backup", "balance-rr", "balance-xor", "broadcast", "balance-tlb", "balance-alb"}
}

const (
	// minMTU is what every link must carry for IPv6 (RFC 8200 section 5).
	minMTU = 1280
	// maxMTU is the largest IP packet (RFC 791).
	maxMTU = 65535
	// defaultMTU is Ethernet's (RFC 894).
	defaultMTU = 1500
)

var (
	// cardName are the names that the kernel and systemd give to cards
	// (systemd.net-naming-scheme(7)): eth0, eno1, ens3f0np0, enp1s0, enx525400123456, ib0.
	cardName = regexp.MustCompile(`^(en[opsxvcbid]|eth[0-9]|ib|usb[0-9])`)
	// takenName are links that the kernel or Kubernetes' networks make.
	takenName = regexp.MustCompile(`^(lo|all|default|bonding_masters|(cni|docker|flannel|cali|cilium|veth|kube|lxc|nodelocaldns|tunl|vxlan|wg).*)$`)
)

// once reports what the merged network of several machines would report for each.
func (c *checker) once(at place, hint, format string, args ...any) {
	before := len(*c.found)
	c.add(at.Pos, at.Path, hint, format, args...)
	last := (*c.found)[before]
	if slices.Contains((*c.found)[:before], last) {
		*c.found = (*c.found)[:before]
	}
}

// over lays one level's network over another's: what has a name replaces what has the
// same, the proxy is merged key by key, and every other list replaces the whole.
func (base rawNetwork) over(by rawNetwork) rawNetwork {
	out := base
	out.Bonds = byName(base.Bonds, by.Bonds, func(b rawBond) string { return b.Name.V })
	out.VLANs = byName(base.VLANs, by.VLANs, func(v rawVLAN) string { return v.Name.V })
	out.RegistryMirrors = byName(base.RegistryMirrors, by.RegistryMirrors, func(m rawRegistryMirror) string { return m.Name.V })
	if by.Addresses != nil {
		out.Addresses = by.Addresses
	}
	if by.Routes != nil {
		out.Routes = by.Routes
	}
	if by.DNS != nil {
		out.DNS = by.DNS
	}
	if by.NTP != nil {
		out.NTP = by.NTP
	}
	if by.Proxy.Path != "" {
		out.Proxy.place = by.Proxy.place
	}
	if by.Proxy.HTTP.Set {
		out.Proxy.HTTP = by.Proxy.HTTP
	}
	if by.Proxy.HTTPS.Set {
		out.Proxy.HTTPS = by.Proxy.HTTPS
	}
	if by.Proxy.Username.Set {
		out.Proxy.Username = by.Proxy.Username
	}
	if by.Proxy.Password.Path != "" {
		out.Proxy.Password = by.Proxy.Password
	}
	if by.Proxy.No != nil {
		out.Proxy.No = by.Proxy.No
	}
	return out
}

// byName keeps a name that stands twice in one list, to be reported.
func byName[T any](base, by []T, name func(T) string) []T {
	var out []T
	for _, b := range base {
		if i := slices.IndexFunc(by, func(o T) bool { return name(o) == name(b) }); i < 0 {
			out = append(out, b)
		}
	}
	return append(out, by...)
}

// nodeNetworks gives each machine its network. What is wrong at an outer level is
// reported once, also when no machine has it.
func (c *checker) nodeNetworks(raw rawFile, s Spec) {
	c.nodeNetwork(raw.Network)
	roles := map[string]rawNetwork{}
	for _, r := range raw.Roles {
		roles[r.Key] = raw.Network.over(r.V.Network)
		c.nodeNetwork(roles[r.Key])
	}
	owners := owners(s)
	for i, m := range raw.Machines {
		base, ok := roles[m.Role.V]
		if !ok { // reported already
			base = raw.Network
		}
		merged := base.over(m.Network)
		n := c.nodeNetwork(merged)
		w := wiring{checker: c, raw: merged, machine: m, name: s.Machines[i].Name, spec: s, net: &n, owners: owners}
		w.check()
		s.Machines[i].Network = n
	}
}

// nodeNetwork is what can be said of values without the machine.
func (c *checker) nodeNetwork(raw rawNetwork) Network {
	var n Network
	for _, b := range raw.Bonds {
		n.Bonds = append(n.Bonds, c.bond(b))
	}
	for _, v := range raw.VLANs {
		c.linkName(v.Name)
		if v.ID.Set && (v.ID.V < 1 || v.ID.V > 4094) {
			c.once(v.ID.place, "", "%d is not the id of a VLAN: want 1 to 4094", v.ID.V) // IEEE 802.1Q 9.6
		}
		n.VLANs = append(n.VLANs, VLAN{Name: v.Name.V, ID: v.ID.V, Link: c.link(v.Link), MTU: c.mtu(v.MTU)})
	}
	for _, a := range raw.Addresses {
		n.Addresses = append(n.Addresses, StaticAddress{Link: c.link(a.Interface), Address: c.hostPrefix(a.Address)})
	}
	for _, r := range raw.Routes {
		out := Route{To: r.To.V, Via: r.Via.V, Link: c.link(r.Interface), Metric: r.Metric.V}
		if r.Metric.Set && r.Metric.V < 0 {
			c.once(r.Metric.place, "", "%d is not a metric: want 0 or more, and the smallest wins", r.Metric.V)
		}
		if r.To.Set && r.Via.Set && r.To.V.Addr().Is4() != r.Via.V.Is4() {
			c.once(r.Via.place, "", "%s is reached by no address like %s", r.To.V, r.Via.V)
		}
		n.Routes = append(n.Routes, out)
	}
	seen := map[string]bool{}
	for _, d := range raw.DNS {
		if d.Set && (d.V.IsUnspecified() || d.V.IsMulticast()) {
			c.once(d.place, "", "%s is no resolver's address", d.V)
		}
		if d.Set && seen[d.V.String()] {
			c.once(d.place, "remove one", "%s is there twice", d.V)
		}
		seen[d.V.String()] = true
		n.DNS = append(n.DNS, d.V)
	}
	for _, t := range raw.NTP {
		if !t.Set {
			continue
		}
		if _, err := netip.ParseAddr(t.V); err != nil && !isHostname(t.V) {
			c.once(t.place, "ntp: [time1.example.org]", "%q is neither a DNS name nor an IP address", t.V)
		}
		if seen["ntp "+t.V] {
			c.once(t.place, "remove one", "%s is there twice", t.V)
		}
		seen["ntp "+t.V] = true
		n.NTP = append(n.NTP, t.V)
	}
	n.Proxy = c.proxy(raw.Proxy)
	for _, m := range raw.RegistryMirrors {
		n.Mirrors = append(n.Mirrors, c.mirror(m))
	}
	return n
}

func (c *checker) bond(raw rawBond) Bond {
	c.linkName(raw.Name)
	b := Bond{Name: raw.Name.V, Mode: bondModes()[0], MTU: c.mtu(raw.MTU)}
	if m := raw.Mode; m.Set {
		b.Mode = m.V
		if !slices.Contains(bondModes(), m.V) {
			hint := ""
			if near, ok := nearest(m.V, bondModes()); ok {
				hint = "mode: " + near
			}
			c.once(m.place, hint, "%q is not one of %s", m.V, strings.Join(bondModes(), ", "))
		}
	}
	for _, i := range raw.Interfaces {
		if card := c.link(i); card != "" {
			b.Cards = append(b.Cards, card)
		}
	}
	if raw.place.Path != "" && len(raw.Interfaces) == 0 && !c.reported(raw.place.Path) {
		c.once(raw.place, "interfaces: [eno1, eno2]", "a bond of no card")
	}
	return b
}

// link is a reference to a link, by name or MAC address.
func (c *checker) link(f rawString) string {
	if !f.Set {
		return ""
	}
	if mac, err := net.ParseMAC(f.V); err == nil && len(mac) == 6 {
		if mac[0]&1 != 0 {
			c.once(f.place, "", "%s is a group address, no network card has it", mac)
		}
		return mac.String()
	}
	if !interfaceName.MatchString(f.V) {
		c.once(f.place, "such as eno1, bond0 or 52:54:00:12:34:56", "%q is neither the name of a network interface nor a MAC address", f.V)
		return ""
	}
	return f.V
}

// linkName is the name that a bond or VLAN is given.
func (c *checker) linkName(f rawString) {
	switch {
	case !f.Set:
	case !interfaceName.MatchString(f.V) || f.V == "." || f.V == "..":
		c.once(f.place, "name: bond0", "%q is not the name of a network interface: want 1 to 15 letters, digits, _ . or -", f.V)
	case cardName.MatchString(f.V):
		c.once(f.place, "name: bond0", "%s is how the kernel names cards", f.V)
	case takenName.MatchString(f.V):
		c.once(f.place, "name: bond0", "%s is a name that the kernel or Kubernetes' network takes", f.V)
	}
}

func (c *checker) mtu(f rawInt) int {
	if f.Set && (f.V < minMTU || f.V > maxMTU) {
		c.once(f.place, "mtu: 9000", "an MTU of %d is out of range: want %d to %d", f.V, minMTU, maxMTU)
		return 0
	}
	return f.V
}

// hostPrefix is an address with the length of its network's prefix.
func (c *checker) hostPrefix(f rawString) netip.Prefix {
	if !f.Set {
		return netip.Prefix{}
	}
	p, err := netip.ParsePrefix(f.V)
	a := p.Addr()
	switch {
	case err != nil || a.Is4In6():
		hint := "such as 10.0.0.11/24"
		if _, err := netip.ParseAddr(f.V); err == nil {
			hint = "address: " + f.V + "/24"
		}
		c.once(f.place, hint, "%q is not an address with the length of its network's prefix", f.V)
		return netip.Prefix{}
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		c.once(f.place, "", "%s is no address for a node", a)
	case p.Bits() < a.BitLen()-1 && a == p.Masked().Addr():
		c.once(f.place, "", "%s is the network address of %s", a, p.Masked())
	case p.Bits() < a.BitLen()-1 && a == broadcast(p):
		c.once(f.place, "", "%s is the broadcast address of %s", a, p.Masked())
	}
	return p
}
