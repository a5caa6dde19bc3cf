package platform

import (
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

// maxCards is more than any machine has, and keeps a description from making files without end.
const maxCards = 64

var (
	// device is a name for a bond or a VLAN: IFNAMSIZ of the kernel leaves it 15 bytes. A file is
	// called by it too.
	device = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$`)
	// cardName is the same for a card that is there; descriptions call it as they like.
	cardName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	// devicePattern is what Name= of systemd.network(5) gets: no blank and no exclamation mark,
	// which have a meaning there.
	devicePattern = regexp.MustCompile(`^[A-Za-z0-9._*?-]{1,31}$`)
)

// The kernel's words for the modes of a bond, by number too (networking/bonding.rst), and for
// what spreads its packets, as far as networkd has them (systemd.netdev(5)).
func bondModes() []string {
	return []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}
}

func hashPolicies() []string {
	return []string{"layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4"}
}

// sheet gathers what a description says of cards one by one; network looks at them together.
// The zero value is empty.
type sheet struct {
	cards []Card
	wrong []error
	// dns and search are the machine's, not a card's.
	dns    []netip.Addr
	search []string
}

func (s *sheet) complain(err error) {
	if err != nil {
		s.wrong = append(s.wrong, err)
	}
}

// add takes a card; what is how the description calls it. One that something is wrong with is
// left out.
func (s *sheet) add(what string, c Card, err error) {
	pattern := cardName
	if c.Bond != nil || c.VLAN != nil {
		pattern = device
	}
	switch {
	case err != nil:
	case len(s.cards) == maxCards:
		err = fmt.Errorf("the machine has more than %d cards", maxCards)
	case !pattern.MatchString(c.Name) || c.Name == "lo" || c.Name == "all" || c.Name == "default":
		err = fmt.Errorf("%.60q is no name for it: want letters, digits, dots and dashes, up to 15 for a bond or a VLAN", c.Name)
	case c.made():
	case c.MAC == nil && c.Device == "":
		err = errors.New("it has neither a MAC address nor a name")
	case c.MAC == nil && !devicePattern.MatchString(c.Device):
		err = fmt.Errorf("%.60q is no name of a card", c.Device)
	}
	for _, o := range s.cards {
		switch {
		case err != nil:
		case strings.EqualFold(o.Name, c.Name):
			err = fmt.Errorf("there are two of the name %s", c.Name)
		case c.made() || o.made():
		case c.MAC != nil && o.MAC.String() == c.MAC.String():
			err = fmt.Errorf("%s has the same MAC address %s", o.Name, c.MAC)
		case c.MAC == nil && o.MAC == nil && c.Device == o.Device:
			err = fmt.Errorf("%s has the same name %s", o.Name, c.Device)
		}
	}
	if err != nil {
		s.complain(fmt.Errorf("%s: %w", what, err))
		return
	}
	s.cards = append(s.cards, c)
}

// made says whether the device is not there before.
func (c Card) made() bool { return c.Bond != nil || c.VLAN != nil }

// network leaves out the cards that do not go together and those that nothing is said of.
func (s *sheet) network(from string) (Network, error) {
	for again := true; again; {
		again = false
		for i, c := range s.cards {
			if err := s.fits(c); err != nil {
				s.complain(fmt.Errorf("%s: %w", c.Name, err))
				s.cards, again = slices.Delete(s.cards, i, i+1), true
				break // others may stand on it
			}
		}
	}
	n := Network{From: from}
	for _, c := range s.cards {
		if c.made() || c.addressed() || s.used(c.Name) {
			n.Cards = append(n.Cards, c)
		}
	}
	// For the machine as a whole: resolved asks those of every card.
	if i := slices.IndexFunc(n.Cards, Card.addressed); i >= 0 {
		c := &n.Cards[i]
		c.DNS, c.Search = unique(append(slices.Clone(s.dns), c.DNS...)), unique(append(slices.Clone(s.search), c.Search...))
	}
	for i, err := range s.wrong {
		s.wrong[i] = fmt.Errorf("%s: %w", from, err)
	}
	return n, errors.Join(s.wrong...)
}

func (s *sheet) card(name string) (Card, bool) {
	i := slices.IndexFunc(s.cards, func(c Card) bool { return c.Name == name })
	if i < 0 {
		return Card{}, false
	}
	return s.cards[i], true
}

// bonds counts the bonds that a card is a part of.
func (s *sheet) bonds(name string) int {
	n := 0
	for _, c := range s.cards {
		if c.Bond != nil && slices.Contains(c.Bond.Of, name) {
			n++
		}
	}
	return n
}

func (s *sheet) used(name string) bool {
	return s.bonds(name) > 0 || slices.ContainsFunc(s.cards, func(c Card) bool { return c.VLAN != nil && c.VLAN.On == name })
}

// fits says what keeps a bond or a VLAN from being made of the cards that there are.
func (s *sheet) fits(c Card) error {
	if c.Bond != nil {
		if len(c.Bond.Of) == 0 {
			return errors.New("the bond is made of no card")
		}
		for i, name := range c.Bond.Of {
			o, ok := s.card(name)
			switch {
			case !ok:
				return fmt.Errorf("the bond is made of %.60q, which is no card of use", name)
			case o.made():
				return fmt.Errorf("the bond is made of %s, which is itself made of others", name)
			case o.addressed():
				return fmt.Errorf("the bond is made of %s, which has addresses of its own", name)
			case slices.Contains(c.Bond.Of[:i], name) || s.bonds(name) > 1:
				return fmt.Errorf("%s is in bonds twice", name)
			}
		}
	}
	if c.VLAN != nil {
		o, ok := s.card(c.VLAN.On)
		switch {
		case !ok:
			return fmt.Errorf("the VLAN is on %.60q, which is no card of use", c.VLAN.On)
		case o.VLAN != nil:
			return fmt.Errorf("the VLAN is on %s, which is a VLAN itself", o.Name)
		case s.bonds(o.Name) > 0:
			return fmt.Errorf("the VLAN is on %s, which is a part of a bond", o.Name)
		}
		for _, other := range s.cards {
			if other.VLAN != nil && other.Name != c.Name && *other.VLAN == *c.VLAN {
				return fmt.Errorf("%s is VLAN %d on %s too", other.Name, c.VLAN.ID, c.VLAN.On)
			}
		}
	}
	return nil
}

// What follows reads single values; key is what the message calls them.

func macOf(key, s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00" {
		return nil, fmt.Errorf("%s %.60q is no card's MAC address", key, s)
	}
	return mac, nil
}

// mtuOf takes 0 for nothing. RFC 791: every IPv4 link carries 68 bytes. The kernel's field has
// 16 bits for Ethernet.
func mtuOf(key string, n int) (int, error) {
	if n != 0 && (n < 68 || n > 65535) {
		return 0, fmt.Errorf("%s %d is no MTU: want 68 to 65535", key, n)
	}
	return n, nil
}

// addressOf reads an address, whose length is behind a slash or in mask.
func addressOf(key, s, mask string) (netip.Prefix, error) {
	text, length, has := strings.Cut(strings.TrimSpace(s), "/")
	if !has {
		length = mask
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is4In6() || !canHave(a) {
		return netip.Prefix{}, fmt.Errorf("%s %.60q is no address that a machine can have", key, s)
	}
	bits, ok := maskOf(length, a)
	if !ok || bits == 0 {
		return netip.Prefix{}, fmt.Errorf("%s %.60q has the mask %.60q, which is none of a network", key, s, length)
	}
	return netip.PrefixFrom(a, bits), nil
}

// maskOf reads the length of a prefix, or a mask with as many bits set.
func maskOf(s string, a netip.Addr) (int, bool) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		return int(n), int(n) <= a.BitLen()
	}
	m, err := netip.ParseAddr(s)
	if err != nil || m.Zone() != "" || m.BitLen() != a.BitLen() {
		return 0, false
	}
	ones, bits := net.IPMask(m.AsSlice()).Size() // 0, 0 for a mask with holes
	return ones, bits == a.BitLen()
}

// routeOf reads a route to a network, whose length is behind a slash or in mask; without both
// it is to one machine. The word default is for all of the router's family.
func routeOf(key, to, mask, via string, metric uint32) (Route, error) {
	r := Route{Metric: metric}
	var err error
	if r.Via, err = netip.ParseAddr(strings.TrimSpace(via)); err != nil || r.Via.Zone() != "" || r.Via.Is4In6() || !canHave(r.Via) {
		return Route{}, fmt.Errorf("%s: the router %.60q is no address that a machine can have", key, via)
	}
	if to = strings.TrimSpace(to); to == "default" {
		to, mask = netip.IPv6Unspecified().String(), "0"
		if r.Via.Is4() {
			to = netip.IPv4Unspecified().String()
		}
	}
	text, length, has := strings.Cut(to, "/")
	if !has {
		length = mask
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.BitLen() != r.Via.BitLen() {
		return Route{}, fmt.Errorf("%s: %.60q is no network of the family of its router %s", key, to, r.Via)
	}
	bits := a.BitLen()
	if length != "" {
		var ok bool
		if bits, ok = maskOf(length, a); !ok {
			return Route{}, fmt.Errorf("%s: %.60q has the mask %.60q, which is none of a network", key, to, length)
		}
	}
	r.To = netip.PrefixFrom(a, bits).Masked()
	return r, nil
}

func vlanOf(key string, id int) error {
	if id < 1 || id > 4094 { // IEEE 802.1Q: 0 and 4095 are not to be used
		return fmt.Errorf("%s %d is no VLAN: want 1 to 4094", key, id)
	}
	return nil
}

// bondOf reads a mode, or its number, and what goes with it; monitor is in milliseconds.
func bondOf(mode string, monitor int, lacpRate, hashPolicy string, of []string) (*Bond, error) {
	b := &Bond{Mode: mode, Of: of, Monitor: time.Duration(monitor) * time.Millisecond, HashPolicy: hashPolicy}
	if n, err := strconv.Atoi(mode); err == nil && n >= 0 && n < len(bondModes()) {
		b.Mode = bondModes()[n]
	}
	if !slices.Contains(bondModes(), b.Mode) {
		return nil, fmt.Errorf("%.60q is no mode of a bond: want one of %s", mode, strings.Join(bondModes(), ", "))
	}
	if monitor < 0 || monitor > 60000 {
		return nil, fmt.Errorf("the bond looks at its cables every %d ms: want 0 to 60000", monitor)
	}
	switch lacpRate {
	case "", "0", "1", "slow", "fast":
	default:
		return nil, fmt.Errorf("%.60q is no rate of LACP: want slow or fast", lacpRate)
	}
	if b.Mode == "802.3ad" {
		b.LACPRate = map[string]string{"0": "slow", "1": "fast", "slow": "slow", "fast": "fast"}[lacpRate]
	}
	if hashPolicy != "" && !slices.Contains(hashPolicies(), hashPolicy) {
		return nil, fmt.Errorf("%.60q does not spread packets: want one of %s", hashPolicy, strings.Join(hashPolicies(), ", "))
	}
	return b, nil
}

// static adds an address, and makes its family's method that unless it is another already.
func (c *Card) static(p netip.Prefix) {
	method := &c.Four
	if p.Addr().Is6() {
		method = &c.Six
	}
	if *method == None || *method == Disable {
		*method = Static
	}
	c.Addresses = append(c.Addresses, p)
}
