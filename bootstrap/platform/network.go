package platform

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Network is what a platform says of a machine's network. The zero value says nothing.
type Network struct {
	// From says in words where it was found: OpenNebula's CONTEXT.
	From string
	// Hostname is one label, to go by until the cluster names the machine; empty for none.
	Hostname string
	// Cards are in the platform's order.
	Cards []Card
}

// Card is a network card that the platform has addresses for, or a bond or VLAN that it wants
// to be made.
type Card struct {
	// Name is the platform's word: ETH0. MAC finds the card, whatever it is called inside; of a
	// bond and a VLAN, whose device Name is, it is the address to give it, or nil.
	Name string
	MAC  net.HardwareAddr
	// Device finds a card whose MAC address the platform does not say: a name inside, or a
	// pattern of names as in systemd.network(5).
	Device string
	// Bond and VLAN are nil for a card that is there.
	Bond *Bond
	VLAN *VLAN
	// MTU in bytes; 0 leaves it as it is.
	MTU       int
	Four, Six Method
	// Addresses and Routes are those of static methods.
	Addresses []netip.Prefix
	Routes    []Route
	DNS       []netip.Addr
	// Search are domains.
	Search []string
}

// Bond makes one card of others.
type Bond struct {
	// Mode is the kernel's word: 802.3ad.
	Mode string
	// Of are names of other cards.
	Of []string
	// Monitor is how often the cables are looked at; 0 stands for 100 ms, for a bond that does
	// not look never notices a dead one.
	Monitor time.Duration
	// LACPRate and HashPolicy are the kernel's words; empty for its defaults.
	LACPRate, HashPolicy string
}

// VLAN is a card in a VLAN of another card.
type VLAN struct {
	ID int
	// On is the name of the other card.
	On string
}

// Method is how a card comes to its addresses of one family.
type Method string

// The methods, in OpenNebula's words. With None the card gets no addresses of the family.
const (
	None   Method = ""
	Static Method = "static"
	DHCP   Method = "dhcp"
	// Auto is IPv6's own, by router advertisements; DHCP of IPv6 is that and DHCPv6.
	Auto    Method = "auto"
	Disable Method = "disable"
)

// Route is a way to other networks.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
	// Metric is the kernel's default if it is 0.
	Metric uint32
}

// The names are OpenNebula's: for a number of a card, and for one of an alias on it
// (VirtualMachineContext.cc, parse_context_network).
var (
	cardVariable  = regexp.MustCompile(`^(ETH(?:0|[1-9][0-9]{0,3}))_`)
	aliasVariable = regexp.MustCompile(`^(ETH(?:0|[1-9][0-9]{0,3})_ALIAS(?:0|[1-9][0-9]{0,3}))_`)
	domainName    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
)

// network understands the variables that OpenNebula makes for each card (template.rst of its
// documentation, "Context Section") as its own scripts do
// (one-apps, context-linux, loc-10-network.d/functions and netcfg-networkd). A card of which
// something is wrong is left out, and the error says why.
func network(vars map[string]string) (Network, error) {
	n := Network{Hostname: hostname(cmp.Or(vars["SET_HOSTNAME"], vars["HOSTNAME"]))}
	var wrong []error
	owners := map[string]string{}
	for _, name := range numbered(vars, cardVariable) {
		c, err := card(vars, name)
		if err == nil && c.MAC != nil {
			if other := owners[c.MAC.String()]; other != "" {
				err = fmt.Errorf("%s and %s have the same MAC address %s", other, name, c.MAC)
			}
			owners[c.MAC.String()] = name
		}
		switch {
		case err != nil:
			wrong = append(wrong, err)
		case c.addressed():
			n.Cards = append(n.Cards, c)
		}
	}
	// For the machine as a whole: resolved asks those of every card.
	dns, err1 := addresses(vars, "DNS")
	search, err2 := domains(vars, "SEARCH_DOMAIN")
	wrong = append(wrong, err1, err2)
	if len(n.Cards) > 0 {
		c := &n.Cards[0]
		c.DNS, c.Search = unique(append(dns, c.DNS...)), unique(append(search, c.Search...))
	}
	return n, errors.Join(wrong...)
}

// addressed says whether the platform has addresses for the card, or a way to get them.
func (c Card) addressed() bool {
	return c.Four != None || c.Six == Static || c.Six == DHCP || c.Six == Auto
}

// hostname is the machine's name as one-context makes it of what people call their machines
// (net-15-hostname): what a name cannot have becomes a dash, and a domain goes.
func hostname(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '.' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, s)
	s, _, _ = strings.Cut(strings.Trim(s, "-"), ".")
	// RFC 1123, 2.1: a label has up to 63 characters.
	return strings.Trim(s[:min(len(s), 63)], "-")
}

// numbered lists the cards, or the aliases, that have a variable, by number.
func numbered(vars map[string]string, pattern *regexp.Regexp) []string {
	var out []string
	for k := range vars {
		if m := pattern.FindStringSubmatch(k); m != nil && !slices.Contains(out, m[1]) {
			out = append(out, m[1])
		}
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return out
}

// card reads one card. Without a MAC address it was taken out of the machine, and then it
// has no address either.
func card(vars map[string]string, name string) (Card, error) {
	c := Card{Name: name}
	get := func(k string) string { return strings.TrimSpace(vars[name+"_"+k]) }
	bad := func(k, why string) error { return fmt.Errorf("%s_%s %.60q %s", name, k, get(k), why) }
	mac := get("MAC")
	if mac == "" {
		for _, k := range []string{"IP", "IP6", "IPV6", "IP6_ULA"} {
			if get(k) != "" {
				return c, bad(k, "is for no card: there is no "+name+"_MAC")
			}
		}
		return c, nil
	}
	var err error
	if c.MAC, err = net.ParseMAC(mac); err != nil || len(c.MAC) != 6 || c.MAC[0]&1 != 0 {
		return c, bad("MAC", "is no card's MAC address")
	}
	if c.Four, err = method(cmp.Or(get("METHOD"), string(Static)), Static, DHCP); err != nil {
		return c, bad("METHOD", "is neither static, dhcp nor skip")
	}
	if c.Six, err = method(cmp.Or(get("IP6_METHOD"), get("METHOD"), string(Static)), Static, DHCP, Auto, Disable); err != nil {
		return c, bad("IP6_METHOD", "is neither static, auto, dhcp, disable nor skip")
	}
	// RFC 791: every IPv4 link carries 68 bytes. The kernel's field has 16 bits for Ethernet.
	if mtu := get("MTU"); mtu != "" {
		if c.MTU, err = strconv.Atoi(mtu); err != nil || c.MTU < 68 || c.MTU > 65535 {
			return c, bad("MTU", "is no MTU: want 68 to 65535")
		}
	}
	if err := c.four(vars); err != nil {
		return c, err
	}
	if err := c.six(vars); err != nil {
		return c, err
	}
	for _, alias := range numbered(vars, aliasVariable) {
		if strings.HasPrefix(alias, name+"_") {
			if err := c.alias(vars, alias); err != nil {
				return c, err
			}
		}
	}
	c.Addresses = unique(c.Addresses)
	if c.DNS, err = addresses(vars, name+"_DNS"); err != nil {
		return c, err
	}
	c.Search, err = domains(vars, name+"_SEARCH_DOMAIN")
	return c, err
}

// method is one of those; skip is None.
func method(s string, of ...Method) (Method, error) {
	if s == "skip" {
		return None, nil
	}
	if m := Method(s); slices.Contains(of, m) {
		return m, nil
	}
	return None, errors.New("unknown")
}

// four reads a static IPv4 address with what belongs to it. Without an address OpenNebula
// knows of none.
func (c *Card) four(vars map[string]string) error {
	if c.Four != Static {
		return nil
	}
	p, err := address4(vars, c.Name)
	if err != nil {
		return err
	}
	if !p.IsValid() {
		c.Four = None
		return nil
	}
	c.Addresses = append(c.Addresses, p)
	metric, err := number(vars, c.Name+"_METRIC")
	if err != nil {
		return err
	}
	via, err := hostAddress(vars, c.Name+"_GATEWAY", netip.Addr.Is4)
	if err != nil {
		return err
	}
	if via.IsValid() {
		c.Routes = append(c.Routes, Route{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: via, Metric: metric})
	}
	more, err := routes(vars, c.Name+"_ROUTES")
	c.Routes = append(c.Routes, more...)
	return err
}

// six reads static IPv6 addresses. GATEWAY6 and IPV6 are older names.
func (c *Card) six(vars map[string]string) error {
	if c.Six != Static {
		return nil
	}
	all, err := addresses6(vars, c.Name)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		c.Six = None
		return nil
	}
	c.Addresses = append(c.Addresses, all...)
	metric := c.Name + "_IP6_METRIC"
	if strings.TrimSpace(vars[metric]) == "" {
		metric = c.Name + "_METRIC"
	}
	m, err := number(vars, metric)
	if err != nil {
		return err
	}
	gateway := c.Name + "_IP6_GATEWAY"
	if strings.TrimSpace(vars[gateway]) == "" {
		gateway = c.Name + "_GATEWAY6"
	}
	via, err := hostAddress(vars, gateway, is6)
	if err != nil {
		return err
	}
	if via.IsValid() {
		c.Routes = append(c.Routes, Route{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: via, Metric: m})
	}
	return nil
}

// alias adds the addresses of an alias, unless they are a router's to translate (EXTERNAL)
// or on their way out (DETACH).
func (c *Card) alias(vars map[string]string, name string) error {
	switch strings.ToLower(strings.TrimSpace(vars[name+"_EXTERNAL"])) {
	case "1", "true", "yes", "y": // is_true of one-context
		return nil
	}
	if vars[name+"_DETACH"] != "" {
		return nil
	}
	p, err := address4(vars, name)
	if err != nil {
		return err
	}
	if p.IsValid() && c.Four == Static {
		c.Addresses = append(c.Addresses, p)
	}
	all, err := addresses6(vars, name)
	if err == nil && c.Six == Static {
		c.Addresses = append(c.Addresses, all...)
	}
	return err
}

// address4 is NAME_IP with NAME_MASK, which is 255.255.255.0 when nobody says it
// (get_mask of one-context).
func address4(vars map[string]string, name string) (netip.Prefix, error) {
	ip, err := hostAddress(vars, name+"_IP", netip.Addr.Is4)
	if err != nil || !ip.IsValid() {
		return netip.Prefix{}, err
	}
	text := cmp.Or(strings.TrimSpace(vars[name+"_MASK"]), "255.255.255.0")
	mask, err := netip.ParseAddr(text)
	bits := 0
	if err == nil && mask.Is4() {
		b := mask.As4()
		bits, _ = net.IPMask(b[:]).Size() // 0 for a mask with holes
	}
	if bits < 1 {
		return netip.Prefix{}, fmt.Errorf("%s_MASK %.60q is no mask of a network", name, text)
	}
	return netip.PrefixFrom(ip, bits), nil
}

// addresses6 are NAME_IP6, or its older name, and NAME_IP6_ULA.
func addresses6(vars map[string]string, name string) ([]netip.Prefix, error) {
	first := name + "_IP6"
	if strings.TrimSpace(vars[first]) == "" {
		first = name + "_IPV6"
	}
	ip, err := hostAddress(vars, first, is6)
	if err != nil || !ip.IsValid() {
		return nil, err // one-context reads the other only beside it
	}
	length := 64
	if s := strings.TrimSpace(vars[name+"_IP6_PREFIX_LENGTH"]); s != "" {
		if length, err = strconv.Atoi(s); err != nil || length < 1 || length > 128 {
			return nil, fmt.Errorf("%s_IP6_PREFIX_LENGTH %.60q is no length of a prefix: want 1 to 128", name, s)
		}
	}
	out := []netip.Prefix{netip.PrefixFrom(ip, length)}
	ula, err := hostAddress(vars, name+"_IP6_ULA", is6)
	if err == nil && ula.IsValid() {
		out = append(out, netip.PrefixFrom(ula, 64))
	}
	return out, err
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

// hostAddress is an address that a machine or a router can have; not valid for none.
func hostAddress(vars map[string]string, name string, family func(netip.Addr) bool) (netip.Addr, error) {
	s := strings.TrimSpace(vars[name])
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !family(a) || !canHave(a) {
		return netip.Addr{}, fmt.Errorf("%s %.60q is no address that a machine can have", name, s)
	}
	return a, nil
}

// canHave says whether a machine or a router can have an address.
func canHave(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func number(vars map[string]string, name string) (uint32, error) {
	s := strings.TrimSpace(vars[name])
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s %.60q is no number of 32 bits", name, s)
	}
	return uint32(n), nil
}

// routes reads "10.1.0.0/16 via 10.0.0.1, 10.2.0.0/16 via 10.0.0.2".
func routes(vars map[string]string, name string) ([]Route, error) {
	var out []Route
	for one := range strings.SplitSeq(vars[name], ",") {
		f := strings.Fields(one)
		if len(f) == 0 {
			continue
		}
		var r Route
		err := errors.New("not three words")
		if len(f) == 3 && f[1] == "via" {
			to := f[0]
			if !strings.Contains(to, "/") {
				to += "/32"
			}
			if r.To, err = netip.ParsePrefix(to); err == nil {
				r.To = r.To.Masked()
				r.Via, err = netip.ParseAddr(f[2])
			}
		}
		if err != nil || !r.To.Addr().Is4() || !r.Via.Is4() {
			return nil, fmt.Errorf("%s %.60q is no route: want 10.1.0.0/16 via 10.0.0.1", name, strings.TrimSpace(one))
		}
		out = append(out, r)
	}
	return out, nil
}

// addresses are those of resolvers, with blanks between them.
func addresses(vars map[string]string, name string) ([]netip.Addr, error) {
	var out []netip.Addr
	for s := range strings.FieldsSeq(vars[name]) {
		a, err := resolver(name, s)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func resolver(name, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%s %.60q is no resolver's address", name, s)
	}
	return a, nil
}

func domains(vars map[string]string, name string) ([]string, error) {
	var out []string
	for s := range strings.FieldsSeq(vars[name]) {
		if err := domain(name, s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func domain(name, s string) error {
	if !domainName.MatchString(s) || len(s) > 253 {
		return fmt.Errorf("%s %.60q is no domain", name, s)
	}
	return nil
}

// unique keeps the first of each.
func unique[T comparable](list []T) []T {
	var out []T
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
