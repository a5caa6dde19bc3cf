package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/imagectl/imagectl/bootstrap/backup"
	statestore "github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/journal"
	"github.com/imagectl/imagectl/pxe/leases"
)

// keeping is how the leases of DHCP or of DHCPv6 are kept: in a file, or in rows where
// the state is on etcd.
type keeping[L any] struct {
	file, rows string
	journal    func(path string) (*journal.Journal[L], error)
	shared     func(ctx context.Context, rows leases.Rows, ready func() error, now func() time.Time) (*leases.Leases[L], error)
}

func keeping4() keeping[dhcp.Lease] {
	return keeping[dhcp.Lease]{backup.LeasesFile, leases.Name, dhcp.OpenJournal, leases.Open}
}

func keeping6() keeping[dhcp6.Lease] {
	return keeping[dhcp6.Lease]{backup.Leases6File, leases.Name6, dhcp6.OpenJournal, leases.Open6}
}

// keeper is a dhcp.Store or a dhcp6.Store.
type keeper[L any] interface {
	Load() ([]L, error)
	Append([]L) error
}

// open opens the leases where the state is, and brings there what is in the other place:
// the state has been moved. The caller calls the function at the end.
func (k keeping[L]) open(ctx context.Context, st *statestore.Store, state string) (keeper[L], func() error, error) {
	path := filepath.Join(state, k.file)
	rows := st.Rows(k.rows)
	if !st.Shared() {
		j, err := k.journal(path)
		if err != nil {
			return nil, nil, err
		}
		return j, j.Close, k.bringHome(ctx, rows, j)
	}
	shared, err := k.shared(ctx, rows, st.Healthy, time.Now)
	if err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return shared, func() error { return nil }, nil
	}
	j, err := k.journal(path)
	if err != nil {
		return nil, nil, err
	}
	defer j.Close()
	all, err := j.Load()
	if err != nil {
		return nil, nil, err
	}
	var taken *journal.TakenError[L] // another server has given out the address since
	if err := shared.Append(all); err != nil && !errors.As(err, &taken) {
		return nil, nil, fmt.Errorf("moving leases to etcd: %w", err)
	}
	if err := os.Rename(path, path+".moved"); err != nil {
		return nil, nil, err
	}
	// What was just written is read by whoever opens them next.
	shared, err = k.shared(ctx, rows, st.Healthy, time.Now)
	return shared, func() error { return nil }, err
}

// bringHome moves leases from a state that was on etcd into the file.
func (k keeping[L]) bringHome(ctx context.Context, rows *statestore.Rows, to keeper[L]) error {
	from, err := k.shared(ctx, rows, nil, time.Now)
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

// openLeases opens the leases of DHCP, and those of DHCPv6; nil where it gives out no
// addresses. The caller calls the function at the end.
func openLeases(ctx context.Context, p plan.Plan, st *statestore.Store, state string) (four dhcp.Store, six dhcp6.Store, end func() error, err error) {
	var ends []func() error
	end = func() error {
		var errs []error
		for _, e := range ends {
			errs = append(errs, e())
		}
		return errors.Join(errs...)
	}
	if p.Boot.DHCP == plan.DHCPAuthoritative {
		opened, e, err := keeping4().open(ctx, st, state)
		if err != nil {
			return nil, nil, nil, err
		}
		four, ends = opened, append(ends, e)
	}
	if p.Boot.DHCP6.Mode == plan.DHCP6Stateful {
		opened, e, err := keeping6().open(ctx, st, state)
		if err != nil {
			return nil, nil, nil, errors.Join(err, end())
		}
		six, ends = opened, append(ends, e)
	}
	return four, six, end, nil
}

// serverDUIDs are the name of this server in DHCPv6, and those of its peers. One that is
// alone keeps the name that it had before there were peers.
func serverDUIDs(p plan.Plan, ca []byte) (own dhcpv6.DUID, peers []dhcpv6.DUID) {
	if len(p.Boot.DHCP6.Peers) == 0 {
		return dhcp6.ServerDUID(ca), nil
	}
	name := func(a netip.Addr) dhcpv6.DUID { return dhcp6.ServerDUID(append(slices.Clip(ca), a.String()...)) }
	for _, a := range p.Boot.DHCP6.Peers {
		peers = append(peers, name(a))
	}
	return name(p.Boot.DHCP6.Address), peers
}
