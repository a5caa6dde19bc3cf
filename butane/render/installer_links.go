package render

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
)

// InstallerLinks returns what an installer needs to know of machines' bonds, VLANs, addresses
// and routes (nodeconf.Links): the same files as their installed systems have. It is nil when
// no machine has any that could be told by its hardware.
func InstallerLinks(machines []plan.Machine) ([]byte, error) {
	var all nodeconf.Links
	for _, m := range machines {
		files := links(m.Network)
		own := nodeconf.MachineLinks{Machine: m.Name, UUID: m.UUID, Serial: m.Serial, Own: ownAddresses(m.Network)}
		for _, mac := range m.MACs {
			own.MACs = append(own.MACs, mac.String())
		}
		own.MACs = append(own.MACs, macsIn(m.Network)...)
		slices.Sort(own.MACs)
		own.MACs = slices.Compact(own.MACs)
		if len(files) == 0 || len(own.MACs) == 0 && own.UUID == "" && own.Serial == "" {
			continue
		}
		for _, b := range m.Network.Bonds {
			own.Made = append(own.Made, b.Name)
		}
		for _, v := range m.Network.VLANs {
			own.Made = append(own.Made, v.Name)
		}
		for _, f := range files {
			own.Files = append(own.Files, nodeconf.LinkFile{Path: f.Path, Content: string(f.Content)})
		}
		all.Machines = append(all.Machines, own)
	}
	if len(all.Machines) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("writing the links of machines: %w", err)
	}
	return append(b, '\n'), nil
}

// ownAddresses are those of links that do not ask by DHCP.
func ownAddresses(n cluster.Network) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, b := range n.Bonds {
		for _, card := range b.Cards {
			out[card] = nil
		}
	}
	for _, v := range n.VLANs {
		if !n.Dynamic(v.Link) {
			out[v.Link] = nil
		}
	}
	for _, a := range n.Addresses {
		out[a.Link] = append(out[a.Link], a.Address.Addr())
	}
	return out
}

// macsIn are cards that a network names by their MAC address: no other machine has them.
func macsIn(n cluster.Network) []string {
	var names, out []string
	for _, b := range n.Bonds {
		names = append(names, b.Cards...)
	}
	for _, v := range n.VLANs {
		names = append(names, v.Link)
	}
	for _, a := range n.Addresses {
		names = append(names, a.Link)
	}
	for _, name := range names {
		if isMAC(name) {
			out = append(out, name)
		}
	}
	return out
}
