package platform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

const (
	networkDataFile = "openstack/latest/network_data.json"
	metaDataFile    = "openstack/latest/meta_data.json"
)

// configDrive reads OpenStack's description of the network (nova,
// doc/api_schemas/network_data.json; written by nova/virt/netutils.py and, with bonds and
// VLANs, by Ironic) and the name of the machine. A FAT label is in capitals.
func configDrive(ctx context.Context, m Machine) (Network, error) {
	for _, label := range []string{"config-2", "CONFIG-2"} {
		data, err := present(description(ctx, m, label, networkDataFile))
		if err != nil {
			return Network{}, err
		}
		meta, err := present(description(ctx, m, label, metaDataFile))
		if err != nil {
			return Network{}, err
		}
		if data == nil && meta == nil {
			continue
		}
		return openStack(label, data, meta)
	}
	return Network{}, fmt.Errorf("no config drive: %w", fs.ErrNotExist)
}

// openStack understands both files; nil is for one that is not there.
func openStack(label string, data, meta []byte) (Network, error) {
	var about struct {
		Hostname string
		// Network is where addresses lie in the form of Debian's interfaces(5), which Nova adds
		// to, and Proxmox VE writes in the place of, network_data.json.
		Network *struct {
			Path string `json:"content_path"`
		} `json:"network_config"`
	}
	if meta != nil {
		if err := json.Unmarshal(meta, &about); err != nil {
			return Network{}, fmt.Errorf("%s %s: %w", label, metaDataFile, err)
		}
	}
	name := hostname(about.Hostname)
	if data == nil {
		if about.Network != nil {
			return Network{Hostname: name}, fmt.Errorf("%s %s: the addresses are in %.60q only, in a form that is not read: Proxmox VE writes one that is with citype=nocloud", label, metaDataFile, about.Network.Path)
		}
		if name == "" {
			return Network{}, fmt.Errorf("a config drive that says nothing of the network: %w", fs.ErrNotExist)
		}
		return Network{From: label + " " + metaDataFile, Hostname: name}, nil
	}
	n, err := networkData(label+" "+networkDataFile, data)
	n.Hostname = name
	return n, err
}

type openStackLink struct {
	ID, Type string
	MAC      string `json:"ethernet_mac_address"`
	MTU      *int
	// Of a bond, in the form of Ironic and Rackspace too.
	BondLinks  []string `json:"bond_links"`
	BondMode   string   `json:"bond_mode"`
	BondMIIMon int      `json:"bond_miimon"`
	BondHash   string   `json:"bond_xmit_hash_policy"`
	VLANLink   string   `json:"vlan_link"`
	VLANID     int      `json:"vlan_id"`
	VLANMAC    string   `json:"vlan_mac_address"`
}

type openStackNetwork struct {
	ID, Link, Type string
	Address        string `json:"ip_address"`
	Netmask        string
	Routes         []struct{ Network, Netmask, Gateway string }
	Services       []openStackService
}

type openStackService struct{ Type, Address string }

// networkData understands network_data.json. The ids of links are the hypervisor's names of
// its ends of the cables, of no use inside; so cards are called by their number, and bonds
// and VLANs as people would.
func networkData(from string, data []byte) (Network, error) {
	var d struct {
		Links, Networks []json.RawMessage
		Services        []openStackService
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return Network{}, fmt.Errorf("%s: %w", from, err)
	}
	var s sheet
	links, names := make([]openStackLink, len(d.Links)), map[string]string{}
	bonds, vlans := 0, map[int]int{}
	for i, raw := range d.Links {
		l := &links[i]
		if err := json.Unmarshal(raw, l); err != nil {
			s.complain(fmt.Errorf("link %d: %w", i, err))
			continue
		}
		if _, twice := names[l.ID]; twice {
			s.complain(fmt.Errorf("link %d: there is another one of the id %.60q", i, l.ID))
			l.ID = ""
			continue
		}
		if l.ID == "" {
			s.complain(fmt.Errorf("link %d: it has no id", i))
			continue
		}
		switch l.Type {
		case "bond":
			names[l.ID] = fmt.Sprintf("bond%d", bonds)
			bonds++
		case "vlan":
			names[l.ID] = fmt.Sprintf("vlan%d", l.VLANID)
			if n := vlans[l.VLANID]; n > 0 { // the same number on another card
				names[l.ID] += fmt.Sprintf(".%d", n)
			}
			vlans[l.VLANID]++
		default:
			names[l.ID] = fmt.Sprintf("link%d", i)
		}
	}
	on := map[string][]openStackNetwork{}
	for i, raw := range d.Networks {
		var net openStackNetwork
		if err := json.Unmarshal(raw, &net); err != nil {
			s.complain(fmt.Errorf("network %d: %w", i, err))
			continue
		}
		if names[net.Link] == "" {
			s.complain(fmt.Errorf("network %d: it is for the link %.60q, which is not there", i, net.Link))
			continue
		}
		on[net.Link] = append(on[net.Link], net)
	}
	for _, l := range links {
		if names[l.ID] == "" {
			continue
		}
		c, err := l.card(names)
		for _, net := range on[l.ID] {
			if err == nil {
				err = c.openStack(net)
			}
		}
		s.add(fmt.Sprintf("link %.60q", l.ID), c, err)
	}
	for _, v := range d.Services {
		if v.Type == "dns" {
			a, err := resolver("service dns", v.Address)
			if s.complain(err); err == nil {
				s.dns = append(s.dns, a)
			}
		}
	}
	return s.network(from)
}

// card is a link without its addresses. Whatever is neither a bond nor a VLAN is a card inside,
// also what is called a bridge: the type says how the hypervisor plugs it in.
func (l openStackLink) card(names map[string]string) (Card, error) {
	c := Card{Name: names[l.ID]}
	key, mac := "ethernet_mac_address", l.MAC
	if l.Type == "vlan" {
		key, mac = "vlan_mac_address", l.VLANMAC
	}
	var err error
	if mac != "" || l.Type != "bond" && l.Type != "vlan" {
		if c.MAC, err = macOf(key, mac); err != nil {
			return c, err
		}
	}
	if l.MTU != nil {
		if c.MTU, err = mtuOf("mtu", *l.MTU); err != nil {
			return c, err
		}
	}
	switch l.Type {
	case "bond":
		var of []string
		for _, id := range l.BondLinks {
			if names[id] == "" {
				return c, fmt.Errorf("the bond is made of the link %.60q, which is not there", id)
			}
			of = append(of, names[id])
		}
		c.Bond, err = bondOf(l.BondMode, l.BondMIIMon, "", l.BondHash, of)
	case "vlan":
		if names[l.VLANLink] == "" {
			return c, fmt.Errorf("the VLAN is on the link %.60q, which is not there", l.VLANLink)
		}
		c.VLAN = &VLAN{ID: l.VLANID, On: names[l.VLANLink]}
		err = vlanOf("vlan_id", l.VLANID)
	}
	return c, err
}

// openStack adds what a network says. Nova knows three types of each family; the longer ones
// are Neutron's modes, which cloud-init reads too (sources/helpers/openstack.py).
func (c *Card) openStack(n openStackNetwork) error {
	switch n.Type {
	case "ipv4_dhcp":
		c.Four = DHCP
	case "ipv6_dhcp", "ipv6_dhcpv6-stateful", "ipv6_dhcpv6-stateless":
		c.Six = DHCP
	case "ipv6_slaac":
		if c.Six != DHCP {
			c.Six = Auto
		}
	case "ipv4", "ipv6":
		p, err := addressOf("ip_address", n.Address, n.Netmask)
		if err != nil {
			return err
		}
		if p.Addr().Is4() != (n.Type == "ipv4") {
			return fmt.Errorf("ip_address %.60q is of another family than the network's type %s", n.Address, n.Type)
		}
		c.static(p)
	default:
		return fmt.Errorf("the network's type %.60q is none that is read: want ipv4, ipv4_dhcp, ipv6, ipv6_dhcp, ipv6_slaac, ipv6_dhcpv6-stateful or ipv6_dhcpv6-stateless", n.Type)
	}
	for _, r := range n.Routes {
		if strings.TrimSpace(r.Netmask) == "" && !strings.Contains(r.Network, "/") {
			return errors.New("routes: one has no netmask")
		}
		one, err := routeOf("routes", r.Network, r.Netmask, r.Gateway, 0)
		if err != nil {
			return err
		}
		c.Routes = append(c.Routes, one)
	}
	for _, v := range n.Services {
		if v.Type == "dns" {
			a, err := resolver("service dns", v.Address)
			if err != nil {
				return err
			}
			c.DNS = append(c.DNS, a)
		}
	}
	return nil
}
