package platform

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// FilePrefix is how the paths of Files begin. networkd takes the first file that matches a
// card: those of cluster.yaml (20-imagectl-) come before, Flatcar's own (yy-, zz-) behind.
const FilePrefix = "/etc/systemd/network/30-imagectl-context-"

// File is a file of the machine, readable by all.
type File struct {
	Path    string
	Content []byte
}

// Files are for systemd-networkd (systemd.network(5)), one for each card. The same network
// gives the same bytes.
func (n Network) Files() []File {
	var out []File
	for _, c := range n.Cards {
		out = append(out, File{Path: FilePrefix + strings.ToLower(c.Name) + ".network", Content: []byte(c.file())})
	}
	return out
}

func (c Card) file() string {
	var b strings.Builder
	// By the address that it was made with: a bond above it may have taken that over.
	fmt.Fprintf(&b, "# Made by imagectl from OpenNebula's CONTEXT; changes here do not last.\n\n[Match]\nPermanentMACAddress=%s\n", c.MAC)
	if c.MTU > 0 {
		fmt.Fprintf(&b, "\n[Link]\nMTUBytes=%d\n", c.MTU)
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
	if c.Six == Disable {
		b.WriteString("LinkLocalAddressing=no\n")
	}
	for _, d := range c.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", d)
	}
	if len(c.Search) > 0 {
		b.WriteString("Domains=" + strings.Join(c.Search, " ") + "\n")
	}
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
