// Package leases keeps DHCP leases where several servers share them: in rows on an etcd
// cluster, one for each address. A lease is written on condition that its row is as this
// server knew it, so that of two servers that give one address to two machines in the
// same moment one is refused, and its machine is not answered.
//
// It does not keep the leases of DHCPv6.
package leases

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// Name is that of the rows in a store.
const Name = "leases"

// patience is how long one writing may take: after that the clients have asked again.
const patience = 4 * time.Second

// Rows is the part of store.Rows that is needed.
type Rows interface {
	Load(ctx context.Context) ([]store.Row, int64, error)
	Swap(ctx context.Context, rows []store.Row) (revision int64, other []store.Row, err error)
	Follow(ctx context.Context, revision int64, changed func([]store.Row), has func() []string) error
}

// Leases implements dhcp.Shared. It is safe for concurrent use.
type Leases struct {
	rows  Rows
	ready func() error
	now   func() time.Time
	first []dhcp.Lease
	// from is the revision that first is as of.
	from int64

	mu sync.Mutex
	// known are the rows as this server knows them, by key; byMAC is where each card has
	// its address.
	known map[string]known
	byMAC map[dhcp.MAC]string
}

// known is a row; the lease of one that is gone has no end.
type known struct {
	lease    dhcp.Lease
	revision int64
}

var _ dhcp.Shared = (*Leases)(nil)

// Open reads the leases. ready says whether the store answers now.
func Open(ctx context.Context, rows Rows, ready func() error, now func() time.Time) (*Leases, error) {
	l := &Leases{rows: rows, ready: ready, now: now, known: map[string]known{}, byMAC: map[dhcp.MAC]string{}}
	all, revision, err := rows.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening leases: %w", err)
	}
	l.from = revision
	for _, row := range all {
		lease, err := decode(row)
		if err != nil {
			return nil, fmt.Errorf("opening leases: %w", err)
		}
		l.note(row.Key, known{lease, row.Revision})
		l.first = append(l.first, lease)
	}
	return l, nil
}

// record is a lease in a row whose key is the address.
type record struct {
	MAC     string     `json:"mac"`
	Machine string     `json:"machine,omitempty"`
	Until   time.Time  `json:"until"`
	State   dhcp.State `json:"state,omitempty"`
}

func encode(l dhcp.Lease) ([]byte, error) {
	return json.Marshal(record{MAC: l.MAC.String(), Machine: l.Machine, Until: l.Until.UTC(), State: l.State})
}

// decode reads a row; the lease of one that is gone has no end.
func decode(row store.Row) (dhcp.Lease, error) {
	a, err := netip.ParseAddr(row.Key)
	if err != nil || row.Value == nil {
		return dhcp.Lease{Addr: a}, err
	}
	var r record
	if err := json.Unmarshal(row.Value, &r); err != nil {
		return dhcp.Lease{}, fmt.Errorf("lease of %s: %w", row.Key, err)
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 || r.Until.IsZero() {
		return dhcp.Lease{}, fmt.Errorf("lease of %s: %q until %s is no card with its time", row.Key, r.MAC, r.Until)
	}
	return dhcp.Lease{MAC: dhcp.MAC(mac), Addr: a, Machine: r.Machine, Until: r.Until, State: r.State}, nil
}

// Load implements dhcp.Store.
func (l *Leases) Load() ([]dhcp.Lease, error) { return l.first, nil }

// Ready implements dhcp.Shared.
func (l *Leases) Ready() error { return l.ready() }

// Follow implements dhcp.Shared. It is called once.
func (l *Leases) Follow(ctx context.Context, changed func([]dhcp.Lease)) error {
	return l.rows.Follow(ctx, l.from, func(rows []store.Row) {
		var news []dhcp.Lease
		l.mu.Lock()
		for _, row := range rows {
			lease, err := decode(row)
			if err != nil || row.Revision < l.known[row.Key].revision {
				continue // nobody can read it, or it is of our own writing and there is a newer one
			}
			l.note(row.Key, known{lease, row.Revision})
			news = append(news, lease)
		}
		l.mu.Unlock()
		changed(news)
	}, l.keys)
}

// note remembers a row; mu is held.
func (l *Leases) note(key string, k known) {
	if old, ok := l.known[key]; ok && l.byMAC[old.lease.MAC] == key {
		delete(l.byMAC, old.lease.MAC)
	}
	if k.lease.Until.IsZero() {
		delete(l.known, key)
		return
	}
	l.known[key] = k
	if k.lease.State != dhcp.Declined {
		l.byMAC[k.lease.MAC] = key
	}
}

func (l *Leases) keys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.known))
}

// most is how many leases one writing has; each may end another one of its card.
const most = store.MaxSwap / 2

// Append implements dhcp.Store: when it returns nil, or a dhcp.TakenError for the others,
// the leases are on a majority of etcd's members. After another error some may be. One
// goroutine calls it at a time.
func (l *Leases) Append(leases []dhcp.Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The last word on an address counts; this server's own are in their order.
	last := map[netip.Addr]int{}
	for i, lease := range leases {
		last[lease.Addr] = i
	}
	lost := map[netip.Addr]dhcp.Lease{}
	for part := range slices.Chunk(slices.Sorted(maps.Values(last)), most) {
		todo := make([]dhcp.Lease, len(part))
		for i, n := range part {
			todo[i] = leases[n]
		}
		for len(todo) > 0 {
			var err error
			if todo, err = l.write(ctx, todo, lost); err != nil {
				return err
			}
		}
	}
	if len(lost) == 0 {
		return nil
	}
	taken := &dhcp.TakenError{Lost: map[int]bool{}, Now: slices.Collect(maps.Values(lost))}
	for i, lease := range leases {
		if _, ok := lost[lease.Addr]; ok {
			taken.Lost[i] = true
		}
	}
	return taken
}

// write tries to write leases, and returns those that have to be tried again, now that
// more is known.
func (l *Leases) write(ctx context.Context, leases []dhcp.Lease, lost map[netip.Addr]dhcp.Lease) (again []dhcp.Lease, err error) {
	rows, again, err := l.prepare(leases, lost)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	revision, other, err := l.rows.Swap(ctx, rows)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(other) == 0 {
		again, other = nil, rows
		for i := range other {
			other[i].Revision = revision
		}
	}
	for _, row := range other {
		lease, err := decode(row)
		if err != nil {
			return nil, err
		}
		if row.Revision >= l.known[row.Key].revision || row.Value == nil {
			l.note(row.Key, known{lease, row.Revision})
		}
	}
	return again, nil
}

// prepare makes the rows for leases that are nobody else's, as far as known here.
func (l *Leases) prepare(leases []dhcp.Lease, lost map[netip.Addr]dhcp.Lease) (rows []store.Row, ours []dhcp.Lease, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	writes := map[string]bool{}
	for _, lease := range leases {
		writes[lease.Addr.String()] = true
	}
	for _, lease := range leases {
		key := lease.Addr.String()
		has := l.known[key]
		if !mayTake(lease, has.lease, l.now()) {
			lost[lease.Addr] = has.lease
			continue
		}
		value, err := encode(lease)
		if err != nil {
			return nil, nil, fmt.Errorf("encoding leases: %w", err)
		}
		ours = append(ours, lease)
		rows = append(rows, store.Row{Key: key, Value: value, Revision: has.revision})
		// A card has one address: what it had is free.
		if old, ok := l.byMAC[lease.MAC]; ok && lease.State == dhcp.Bound && !writes[old] {
			writes[old] = true
			rows = append(rows, store.Row{Key: old, Revision: l.known[old].revision})
		}
	}
	return rows, ours, nil
}

// mayTake says whether a lease may be written over what is there: one that has ended, or
// of the same card, or an address that cluster.yaml keeps for the machine that asks.
func mayTake(l, over dhcp.Lease, now time.Time) bool {
	return !now.Before(over.Until) || over.MAC == l.MAC && over.State != dhcp.Declined || l.Machine != ""
}
