package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/backup"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/leases"
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

// openLeases opens the DHCP leases where the state is, and brings there what is in the
// other place: the state has been moved. The caller calls the function at the end.
func openLeases(ctx context.Context, st *statestore.Store, state string) (dhcp.Store, func() error, error) {
	path := filepath.Join(state, backup.LeasesFile)
	rows := st.Rows(leases.Name)
	if !st.Shared() {
		j, err := dhcp.OpenJournal(path)
		if err != nil {
			return nil, nil, err
		}
		return j, j.Close, bringHome(ctx, rows, j)
	}
	shared, err := leases.Open(ctx, rows, st.Healthy, time.Now)
	if err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return shared, func() error { return nil }, nil
	}
	j, err := dhcp.OpenJournal(path)
	if err != nil {
		return nil, nil, err
	}
	defer j.Close()
	all, err := j.Load()
	if err != nil {
		return nil, nil, err
	}
	var taken *dhcp.TakenError // another server has given out the address since
	if err := shared.Append(all); err != nil && !errors.As(err, &taken) {
		return nil, nil, fmt.Errorf("moving leases to etcd: %w", err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		return nil, nil, err
	}
	// What was just written is read by whoever opens them next.
	shared, err = leases.Open(ctx, rows, st.Healthy, time.Now)
	return shared, func() error { return nil }, err
}

// bringHome moves leases from a state that was on etcd into the file.
func bringHome(ctx context.Context, rows *statestore.Rows, to dhcp.Store) error {
	from, err := leases.Open(ctx, rows, nil, time.Now)
	if err != nil {
		return err
	}
	all, err := from.Load()
	if err != nil || len(all) == 0 {
		return err
	}
	if err := to.Append(all); err != nil {
		return err
	}
	return rows.Clear(ctx)
}
