package cli

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// ownPlan is the plan as the server of this machine sees it: its own address is
// Server.Address, all others are peers. address is what a flag says; without one it is
// that of cluster.yaml's addresses which this machine has.
func ownPlan(p plan.Plan, address string, has []netip.Addr) (plan.Plan, error) {
	all := append([]netip.Addr{p.Server.Address}, p.Server.Peers...)
	own := p.Server.Address
	switch {
	case address != "":
		a, err := netip.ParseAddr(address)
		if err != nil || !slices.Contains(all, a) {
			return p, usageError{fmt.Errorf("--address %s is none of server.address and server.peers in cluster.yaml (%v)", address, all)}
		}
		own = a
	case len(all) > 1:
		mine := slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return !slices.Contains(has, a) })
		if len(mine) != 1 {
			return p, usageError{fmt.Errorf("this machine has %d of the addresses of server.address and server.peers (%v); give it one, or say --address", len(mine), all)}
		}
		own = mine[0]
	}
	if six := append([]netip.Addr{p.Boot.DHCP6.Address}, p.Boot.DHCP6.Peers...); p.Boot.DHCP6.Address.IsValid() {
		i := slices.Index(all, own)
		p.Boot.DHCP6.Address = six[i]
		p.Boot.DHCP6.Peers = slices.Delete(six, i, i+1)
	}
	p.Server.Address = own
	p.Server.Peers = slices.DeleteFunc(all, func(a netip.Addr) bool { return a == own })
	return p, nil
}

// localAddresses are those of this machine.
func localAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing this machine's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

// checkPeers refuses servers that do not know of each other's state.
func checkPeers(p plan.Plan, st *statestore.Store, state string) error {
	if len(p.Server.Peers) > 0 && !st.Shared() {
		return fmt.Errorf("cluster.yaml names further servers (server.peers), but the state is in %s, where they do not see it: imagectl server move --to-etcd brings it to an etcd cluster", state)
	}
	return nil
}

// share is the part of each pool that this server offers first.
func share(p plan.Plan) dhcp.Share {
	if len(p.Server.Peers) == 0 {
		return dhcp.Share{}
	}
	all := append([]netip.Addr{p.Server.Address}, p.Server.Peers...)
	slices.SortFunc(all, netip.Addr.Compare)
	return dhcp.Share{Index: slices.Index(all, p.Server.Address), Of: len(all)}
}
