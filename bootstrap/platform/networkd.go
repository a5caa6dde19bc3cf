package platform

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// FilePrefix is how the paths of Files begin, whatever the platform. networkd takes the first file that matches a
// card: those of cluster.yaml (20-imagectl-) come before, Flatcar's own (yy-, zz-) behind.
const FilePrefix = "/etc/systemd/network/30-imagectl-context-"

// File is a file of the machine, readable by all.
type File struct {
	Path    string
	Content []byte
}

// Files are for systemd-networkd (systemd.network(5), systemd.netdev(5)): one for each card, and
// one more for each bond and VLAN. The same network gives the same bytes.
func (n Network) Files() []File {
	var out []File
	head := "# Made by imagectl from " + n.From + "; changes here do not last.\n\n"
	for _, c := range n.Cards {
		path := FilePrefix + strings.ToLower(c.Name)
		if c.made() {
			out = append(out, File{Path: path + ".netdev", Content: []byte(head + c.netdev())})
		}
		out = append(out, File{Path: path + ".network", Content: []byte(head + c.file(n))})
	}
	return out
}

// netdev is for what networkd makes.
func (c Card) netdev() string {
	var b strings.Builder
	kind := "bond"
	if c.VLAN != nil {
		kind = "vlan"
	}
	fmt.Fprintf(&b, "[NetDev]\nName=%s\nKind=%s\n", c.Name, kind)
	if c.MAC != nil {
		fmt.Fprintf(&b, "MACAddress=%s\n", c.MAC)
	}
	if c.VLAN != nil {
		fmt.Fprintf(&b, "\n[VLAN]\nId=%d\n", c.VLAN.ID)
		return b.String()
	}
	fmt.Fprintf(&b, "\n[Bond]\nMode=%s\nMIIMonitorSec=%dms\n", c.Bond.Mode, cmp.Or(c.Bond.Monitor, 100*time.Millisecond).Milliseconds())
	if c.Bond.LACPRate != "" {
		fmt.Fprintf(&b, "LACPTransmitRate=%s\n", c.Bond.LACPRate)
	}
	if c.Bond.HashPolicy != "" {
		fmt.Fprintf(&b, "TransmitHashPolicy=%s\n", c.Bond.HashPolicy)
	}
	return b.String()
}

// match finds the device.
func (c Card) match() string {
	switch {
	case c.made():
		return "Name=" + c.Name
	case c.MAC != nil:
		// By the address that it was made with: a bond above it may have taken that over.
		return "PermanentMACAddress=" + c.MAC.String()
	}
	return "Name=" + c.Device
}

func (c Card) file(n Network) string {
	var b strings.Builder
	b.WriteString("[Match]\n" + c.match() + "\n")
	var link, vlans, bond string
	if c.MTU > 0 {
		link = fmt.Sprintf("MTUBytes=%d\n", c.MTU)
	}
	for _, o := range n.Cards {
		if o.Bond != nil && slices.Contains(o.Bond.Of, c.Name) {
			bond = o.Name
		}
		if o.VLAN != nil && o.VLAN.On == c.Name {
			vlans += "VLAN=" + o.Name + "\n"
		}
	}
	switch {
	case bond != "": // a machine with a dead card is online
		link += "RequiredForOnline=no\n"
	case !c.addressed(): // it never has an address to wait for
		link += "RequiredForOnline=carrier\n"
	}
	if link != "" {
		b.WriteString("\n[Link]\n" + link)
	}
	if bond != "" {
		b.WriteString("\n[Network]\nBond=" + bond + "\n")
		return b.String()
	}
	b.WriteString("\n[Network]\n")
	for _, a := range c.Addresses {
		fmt.Fprintf(&b, "Address=%s\n", a)
	}
	switch {
	case c.Four == DHCP && c.Six == DHCP:
		b.WriteString("DHCP=yes\n")
	case c.Four == DHCP:
		b.WriteString("DHCP=ipv4\n")
	case c.Six == DHCP:
		b.WriteString("DHCP=ipv6\n")
	default:
		b.WriteString("DHCP=no\n")
	}
	// What the platform does not say, nobody on the segment adds.
	if c.Six == Auto || c.Six == DHCP {
		b.WriteString("IPv6AcceptRA=yes\n")
	} else {
		b.WriteString("IPv6AcceptRA=no\n")
	}
	if c.Six == Disable || !c.addressed() {
		b.WriteString("LinkLocalAddressing=no\n")
	}
	for _, d := range c.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", d)
	}
	if len(c.Search) > 0 {
		b.WriteString("Domains=" + strings.Join(c.Search, " ") + "\n")
	}
	b.WriteString(vlans)
	if c.Six == Auto {
		b.WriteString("\n[IPv6AcceptRA]\nDHCPv6Client=no\n")
	}
	for _, r := range c.Routes {
		fmt.Fprintf(&b, "\n[Route]\nDestination=%s\nGateway=%s\n", r.To, r.Via)
		if !c.reaches(r.Via) {
			b.WriteString("GatewayOnLink=yes\n")
		}
		if r.Metric > 0 {
			fmt.Fprintf(&b, "Metric=%d\n", r.Metric)
		}
	}
	return b.String()
}

// reaches tells whether the kernel believes that a router is next to this card: one outside
// its networks, as hosters give them to machines with a /32, it does not.
func (c Card) reaches(via netip.Addr) bool {
	return via.Is6() && via.IsLinkLocalUnicast() || slices.ContainsFunc(c.Addresses, func(p netip.Prefix) bool { return p.Contains(via) })
}
