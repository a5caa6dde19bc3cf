package platform

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// item is an entry of version 1 of cloud-init's description of a network.
type item struct {
	Type, Name string
	MAC        string `yaml:"mac_address"`
	MTU        int
	AcceptRA   bool `yaml:"accept-ra"`
	Subnets    []subnet
	// Of a bond and a VLAN.
	BondInterfaces []string `yaml:"bond_interfaces"`
	Params         map[string]yaml.Node
	VLANLink       string `yaml:"vlan_link"`
	VLANID         int    `yaml:"vlan_id"`
	// Of a nameserver; Interface of one of a card only.
	Address, Search words
	Interface       string
	// Of a route.
	Destination, Netmask, Gateway string
	Metric                        uint32
}

type subnet struct {
	Type, Control             string
	Address, Netmask, Gateway string
	Metric                    uint32
	Nameservers               words `yaml:"dns_nameservers"`
	Search                    words `yaml:"dns_search"`
	Routes                    []struct {
		Network, Destination, Netmask, Prefix, Gateway string
		Metric                                         uint32
		Rest                                           map[string]any `yaml:",inline"`
	}
}

// version1 reads entries; those of resolvers and routes come behind the cards.
func (s *sheet) version1(all []yaml.Node) {
	var later []item
	for i, n := range all {
		var it item
		if err := n.Decode(&it); err != nil {
			s.complain(fmt.Errorf("config %d: %w", i, err))
			continue
		}
		switch it.Type {
		case "physical", "bond", "vlan":
			c, err := it.card()
			s.add(fmt.Sprintf("%s %.60q", it.Type, it.Name), c, err)
		case "nameserver", "route":
			later = append(later, it)
		case "loopback":
		default:
			s.complain(fmt.Errorf("config %d: %.60q is not made here: want physical, bond, vlan, nameserver or route", i, it.Type))
		}
	}
	for _, it := range later {
		if it.Type == "route" {
			s.complain(s.route(it))
		} else {
			s.complain(s.nameserver(it))
		}
	}
}

func (it item) card() (Card, error) {
	c := Card{Name: it.Name}
	var err error
	if it.MAC != "" {
		if c.MAC, err = macOf("mac_address", it.MAC); err != nil {
			return c, err
		}
	}
	if c.MTU, err = mtuOf("mtu", it.MTU); err != nil {
		return c, err
	}
	switch it.Type {
	case "physical":
		if c.MAC == nil {
			c.Device = it.Name
		}
	case "bond":
		c.Bond, err = it.bond()
	case "vlan":
		c.VLAN = &VLAN{ID: it.VLANID, On: it.VLANLink}
		err = vlanOf("vlan_id", it.VLANID)
	}
	if err == nil && it.AcceptRA {
		c.Six = Auto
	}
	for _, n := range it.Subnets {
		if err == nil {
			err = c.subnet(n)
		}
	}
	return c, err
}

// bond reads the parameters, whose names have been written in three ways.
func (it item) bond() (*Bond, error) {
	params := map[string]string{}
	for k, v := range it.Params {
		k = strings.TrimPrefix(strings.ReplaceAll(k, "-", "_"), "bond_")
		params[k] = v.Value // a list has none; the few that are read are none
	}
	mode, monitor := params["mode"], 0
	if mode == "" {
		mode = bondModes()[0] // the kernel's default
	}
	if text := params["miimon"]; text != "" {
		var err error
		if monitor, err = strconv.Atoi(text); err != nil {
			return nil, fmt.Errorf("miimon %.60q is no number of milliseconds", text)
		}
	}
	return bondOf(mode, monitor, params["lacp_rate"], params["xmit_hash_policy"], it.BondInterfaces)
}

func (c *Card) subnet(n subnet) error {
	if n.Control == "manual" { // not at boot
		return nil
	}
	switch n.Type {
	case "dhcp", "dhcp4":
		c.Four = DHCP
	case "dhcp6", "ipv6_dhcpv6-stateful", "ipv6_dhcpv6-stateless":
		c.Six = DHCP
	case "ipv6_slaac":
		if c.Six != DHCP {
			c.Six = Auto
		}
	case "static", "static6":
		p, err := addressOf("address", n.Address, n.Netmask)
		if err != nil {
			return err
		}
		if p.Addr().Is4() && n.Type == "static6" {
			return fmt.Errorf("address %.60q is of another family than the subnet's type %s", n.Address, n.Type)
		}
		c.static(p)
	default:
		return fmt.Errorf("the subnet's type %.60q is none that is read: want dhcp, dhcp4, dhcp6, static, static6, ipv6_slaac, ipv6_dhcpv6-stateful or ipv6_dhcpv6-stateless", n.Type)
	}
	if n.Gateway != "" {
		r, err := routeOf("gateway", "default", "", n.Gateway, n.Metric)
		if err != nil {
			return err
		}
		c.Routes = append(c.Routes, r)
	}
	for _, r := range n.Routes {
		for k := range r.Rest {
			return fmt.Errorf("routes: %.60q is not read: want network, netmask or prefix, gateway and metric", k)
		}
		if r.Netmask+r.Prefix == "" && !strings.Contains(r.Network+r.Destination, "/") {
			return fmt.Errorf("routes: %.60q has no mask", r.Network+r.Destination) // cloud-init guesses
		}
		one, err := routeOf("routes", r.Network+r.Destination, r.Netmask+r.Prefix, r.Gateway, r.Metric)
		if err != nil {
			return err
		}
		c.Routes = append(c.Routes, one)
	}
	return c.resolvers(n.Nameservers, n.Search)
}

// nameserver is for the machine or for one card.
func (s *sheet) nameserver(it item) error {
	if it.Interface != "" {
		i := slices.IndexFunc(s.cards, func(c Card) bool { return c.Name == it.Interface })
		if i < 0 {
			return fmt.Errorf("nameserver: the card %.60q is not there", it.Interface)
		}
		return s.cards[i].resolvers(it.Address, it.Search)
	}
	var c Card
	err := c.resolvers(it.Address, it.Search)
	s.dns, s.search = append(s.dns, c.DNS...), append(s.search, c.Search...)
	return err
}

// route gives a route of the machine to the card that its router is next to.
func (s *sheet) route(it item) error {
	if it.Netmask == "" && !strings.Contains(it.Destination, "/") {
		return fmt.Errorf("route: %.60q has no mask", it.Destination)
	}
	r, err := routeOf("route", it.Destination, it.Netmask, it.Gateway, it.Metric)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.cards, func(c Card) bool { return c.reaches(r.Via) && !r.Via.IsLinkLocalUnicast() })
	if i < 0 {
		return fmt.Errorf("route: no card has an address in the network of its router %s", r.Via)
	}
	s.cards[i].Routes = append(s.cards[i].Routes, r)
	return nil
}
