package platform

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// maxDepth is more than twice what either version nests.
const maxDepth = 20

// netConfig understands cloud-init's description of a network, of version 1 and 2
// (doc/rtd/reference/network-config-format-v1.rst and -v2.rst): YAML, of which JSON is a part.
// Version 2 is netplan's, as far as cloud-init itself understands it.
func netConfig(from string, text []byte) (Network, error) {
	root, err := document(text)
	if err != nil {
		return Network{}, fmt.Errorf("%s: %w", from, err)
	}
	return netConfigOf(from, root)
}

func netConfigOf(from string, root *yaml.Node) (Network, error) {
	var d struct {
		Network yaml.Node
		Version int
		// Config is of version 1, the rest of 2.
		Config                           yaml.Node
		Ethernets, Bonds, VLANs, Bridges map[string]yaml.Node
		Wifis, Tunnels, VRFs             map[string]yaml.Node
		Dummy                            map[string]yaml.Node `yaml:"dummy-devices"`
	}
	err := root.Decode(&d)
	if err == nil && !d.Network.IsZero() { // netplan has it below a word
		below := d.Network
		err = below.Decode(&d)
	}
	if err != nil {
		return Network{}, fmt.Errorf("%s: %w", from, err)
	}
	var s sheet
	switch d.Version {
	case 1:
		if d.Config.Kind == yaml.ScalarNode && d.Config.Value == "disabled" {
			break
		}
		var all []yaml.Node
		if err := d.Config.Decode(&all); err != nil {
			return Network{}, fmt.Errorf("%s: %w", from, err)
		}
		s.version1(all)
	case 2:
		for _, kind := range []struct {
			name string
			of   map[string]yaml.Node
			read func(id string, n yaml.Node) (Card, error)
		}{{"ethernets", d.Ethernets, ethernet}, {"bonds", d.Bonds, bond2}, {"vlans", d.VLANs, vlan2}} {
			for _, id := range slices.Sorted(maps.Keys(kind.of)) {
				c, err := kind.read(id, kind.of[id])
				s.add(fmt.Sprintf("%s %.60q", kind.name, id), c, err)
			}
		}
		for _, none := range []map[string]yaml.Node{d.Bridges, d.Wifis, d.Tunnels, d.VRFs, d.Dummy} {
			for _, id := range slices.Sorted(maps.Keys(none)) {
				s.complain(fmt.Errorf("%.60q is neither an Ethernet card nor a bond nor a VLAN, and nothing else is made here", id))
			}
		}
	default:
		return Network{}, fmt.Errorf("%s: its version is %d: want 1 or 2", from, d.Version)
	}
	return s.network(from)
}

// document reads YAML without the means by which a short text stands for a long one.
func document(text []byte) (*yaml.Node, error) {
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, errors.New("it is no text in UTF-8")
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it has no names with values")
	}
	return doc.Content[0], plain(doc.Content[0], 0)
}

func plain(n *yaml.Node, depth int) error {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return fmt.Errorf("line %d: anchors and aliases are not read", n.Line)
	}
	if depth > maxDepth {
		return fmt.Errorf("line %d: it is nested more than %d deep", n.Line, maxDepth)
	}
	for _, c := range n.Content {
		if err := plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// words is a list, or one text with blanks between its words.
type words []string

// UnmarshalYAML takes both forms.
func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Tag != "!!null" {
			*w = strings.Fields(n.Value)
		}
		return nil
	}
	return n.Decode((*[]string)(w))
}

// resolvers adds what a card has to ask, and its domains.
func (c *Card) resolvers(addresses, search words) error {
	for _, a := range addresses {
		one, err := resolver("nameserver", a)
		if err != nil {
			return err
		}
		c.DNS = append(c.DNS, one)
	}
	for _, d := range search {
		if err := domain("search", d); err != nil {
			return err
		}
	}
	c.Search = append(c.Search, search...)
	return nil
}

// The rest is version 2. Version 1 is in netconfig1.go.

// common are the properties of all devices of version 2. What is not here is not read.
type common struct {
	DHCP4, DHCP6       bool
	AcceptRA           bool `yaml:"accept-ra"`
	Addresses          []yaml.Node
	Gateway4, Gateway6 string
	MTU                int
	MAC                string `yaml:"macaddress"`
	Nameservers        struct{ Search, Addresses words }
	Routes             []route2
	RoutingPolicy      []yaml.Node `yaml:"routing-policy"`
}

type route2 struct {
	To, Via string
	Metric  uint32
	// OnLink is found out.
	OnLink bool           `yaml:"on-link"`
	Rest   map[string]any `yaml:",inline"`
}

func ethernet(id string, n yaml.Node) (Card, error) {
	var d struct {
		common `yaml:",inline"`
		Match  *struct {
			Name words
			MAC  string         `yaml:"macaddress"`
			Rest map[string]any `yaml:",inline"`
		}
	}
	c := Card{Name: id, Device: id}
	if err := n.Decode(&d); err != nil {
		return c, err
	}
	if d.Match != nil {
		for k := range d.Match.Rest {
			return c, fmt.Errorf("match: %.60q is not read: want macaddress or name", k)
		}
		c.Device = ""
		switch {
		case d.Match.MAC != "":
			var err error
			if c.MAC, err = macOf("match: macaddress", d.Match.MAC); err != nil {
				return c, err
			}
		case len(d.Match.Name) == 1:
			c.Device = d.Match.Name[0]
		default:
			return c, errors.New("match: want macaddress or one name")
		}
	}
	return c, c.common(d.common)
}

func bond2(id string, n yaml.Node) (Card, error) {
	var d struct {
		common     `yaml:",inline"`
		Interfaces []string
		Parameters struct {
			Mode       string
			LACPRate   string `yaml:"lacp-rate"`
			Monitor    int    `yaml:"mii-monitor-interval"`
			HashPolicy string `yaml:"transmit-hash-policy"`
		}
	}
	c := Card{Name: id}
	if err := n.Decode(&d); err != nil {
		return c, err
	}
	p := d.Parameters
	if p.Mode == "" {
		p.Mode = bondModes()[0] // netplan's default
	}
	var err error
	if c.Bond, err = bondOf(p.Mode, p.Monitor, p.LACPRate, p.HashPolicy, d.Interfaces); err != nil {
		return c, err
	}
	return c, c.madeOf(d.common)
}

func vlan2(id string, n yaml.Node) (Card, error) {
	var d struct {
		common `yaml:",inline"`
		ID     int
		Link   string
	}
	c := Card{Name: id, VLAN: &VLAN{}}
	if err := n.Decode(&d); err != nil {
		return c, err
	}
	c.VLAN = &VLAN{ID: d.ID, On: d.Link}
	if err := vlanOf("id", d.ID); err != nil {
		return c, err
	}
	return c, c.madeOf(d.common)
}

// madeOf is for a device that gets a MAC address.
func (c *Card) madeOf(d common) error {
	if d.MAC != "" {
		var err error
		if c.MAC, err = macOf("macaddress", d.MAC); err != nil {
			return err
		}
	}
	return c.common(d)
}

func (c *Card) common(d common) error {
	if len(d.RoutingPolicy) > 0 {
		return errors.New("routing-policy is not read")
	}
	if d.DHCP4 {
		c.Four = DHCP
	}
	switch {
	case d.DHCP6:
		c.Six = DHCP
	case d.AcceptRA:
		c.Six = Auto
	}
	var err error
	if c.MTU, err = mtuOf("mtu", d.MTU); err != nil {
		return err
	}
	for _, n := range d.Addresses {
		if n.Kind == yaml.MappingNode && len(n.Content) == 2 { // netplan: with a label or lifetime
			n = *n.Content[0]
		}
		if n.Kind != yaml.ScalarNode {
			return fmt.Errorf("addresses: line %d is no address", n.Line)
		}
		if !strings.Contains(n.Value, "/") {
			return fmt.Errorf("addresses: %.60q has no length of its network behind a slash", n.Value)
		}
		p, err := addressOf("addresses:", n.Value, "")
		if err != nil {
			return err
		}
		c.static(p)
	}
	for _, g := range []struct{ key, via string }{{"gateway4", d.Gateway4}, {"gateway6", d.Gateway6}} {
		if g.via == "" {
			continue
		}
		r, err := routeOf(g.key, "default", "", g.via, 0)
		if err != nil {
			return err
		}
		if r.Via.Is4() != (g.key == "gateway4") {
			return fmt.Errorf("%s: %s is of the other family", g.key, r.Via)
		}
		c.Routes = append(c.Routes, r)
	}
	for _, r := range d.Routes {
		for k := range r.Rest {
			return fmt.Errorf("routes: %.60q is not read: want to, via and metric", k)
		}
		one, err := routeOf("routes", r.To, "", r.Via, r.Metric)
		if err != nil {
			return err
		}
		c.Routes = append(c.Routes, one)
	}
	return c.resolvers(d.Nameservers.Addresses, d.Nameservers.Search)
}
