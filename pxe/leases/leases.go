// Package leases keeps DHCP leases where several servers share them: in rows on an etcd
// cluster, one for each address. A lease is written on condition that its row is as this
// server knew it, so that of two servers that give one address to two machines in the
// same moment one is refused, and its machine is not answered.
//
// The leases of DHCP and of DHCPv6 are in rows of two names; kind is all that tells them
// apart.
package leases

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/pxe/journal"
)

// patience is how long one writing may take: after that the clients have asked again.
const patience = 4 * time.Second

// Rows is the part of store.Rows that is needed.
type Rows interface {
	Load(ctx context.Context) ([]store.Row, int64, error)
	Swap(ctx context.Context, rows []store.Row) (revision int64, other []store.Row, err error)
	Follow(ctx context.Context, revision int64, changed func([]store.Row), has func() []string) error
}

// kind is what a protocol's leases are.
type kind[L any] struct {
	encode func(L) ([]byte, error)
	// decode reads what is kept of an address; of nothing it makes one that is gone.
	decode func(a netip.Addr, value []byte) (L, error)
	addr   func(L) netip.Addr
	until  func(L) time.Time
	// same says whether one client may write a lease over another one that goes on.
	same func(l, over L) bool
}

// Leases implements journal.Shared. It is safe for concurrent use.
type Leases[L any] struct {
	kind[L]
	rows  Rows
	ready func() error
	now   func() time.Time
	first []L
	// from is the revision that first is as of.
	from int64

	mu sync.Mutex
	// known are the rows as this server knows them, by key.
	known map[string]known[L]
}

// known is a row; the lease of one that is gone has no end.
type known[L any] struct {
	lease    L
	revision int64
}

// load reads the leases. ready says whether the store answers now.
func load[L any](ctx context.Context, k kind[L], rows Rows, ready func() error, now func() time.Time) (*Leases[L], error) {
	l := &Leases[L]{kind: k, rows: rows, ready: ready, now: now, known: map[string]known[L]{}}
	all, revision, err := rows.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("opening leases: %w", err)
	}
	l.from = revision
	for _, row := range all {
		lease, err := l.read(row)
		if err != nil {
			return nil, fmt.Errorf("opening leases: %w", err)
		}
		l.note(row.Key, known[L]{lease, row.Revision})
		l.first = append(l.first, lease)
	}
	return l, nil
}

// read is the lease of a row, whose key is the address.
func (l *Leases[L]) read(row store.Row) (L, error) {
	a, err := netip.ParseAddr(row.Key)
	if err != nil {
		var none L
		return none, err
	}
	lease, err := l.decode(a, row.Value)
	if err != nil {
		return lease, fmt.Errorf("lease of %s: %w", row.Key, err)
	}
	return lease, nil
}

// Load implements journal.Shared.
func (l *Leases[L]) Load() ([]L, error) { return l.first, nil }

// Ready implements journal.Shared.
func (l *Leases[L]) Ready() error { return l.ready() }

// Follow implements journal.Shared. It is called once.
func (l *Leases[L]) Follow(ctx context.Context, changed func([]L)) error {
	return l.rows.Follow(ctx, l.from, func(rows []store.Row) {
		var news []L
		l.mu.Lock()
		for _, row := range rows {
			lease, err := l.read(row)
			if err != nil || row.Revision < l.known[row.Key].revision {
				continue // nobody can read it, or it is of our own writing and there is a newer one
			}
			l.note(row.Key, known[L]{lease, row.Revision})
			news = append(news, lease)
		}
		l.mu.Unlock()
		changed(news)
	}, l.keys)
}

// note remembers a row; mu is held.
func (l *Leases[L]) note(key string, k known[L]) {
	if l.until(k.lease).IsZero() {
		delete(l.known, key)
		return
	}
	l.known[key] = k
}

func (l *Leases[L]) keys() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.known))
}

// Append implements journal.Shared: when it returns nil, or a TakenError for the others,
// the leases are on a majority of etcd's members. After another error some may be. One
// goroutine calls it at a time.
func (l *Leases[L]) Append(leases []L) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The last word on an address counts; this server's own are in their order.
	last := map[netip.Addr]int{}
	for i, lease := range leases {
		last[l.addr(lease)] = i
	}
	lost := map[netip.Addr]L{}
	for part := range slices.Chunk(slices.Sorted(maps.Values(last)), store.MaxSwap) {
		todo := make([]L, len(part))
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
	taken := &journal.TakenError[L]{Lost: map[int]bool{}, Now: slices.Collect(maps.Values(lost))}
	for i, lease := range leases {
		if _, ok := lost[l.addr(lease)]; ok {
			taken.Lost[i] = true
		}
	}
	return taken
}

// write tries to write leases, and returns those that have to be tried again, now that
// more is known.
func (l *Leases[L]) write(ctx context.Context, leases []L, lost map[netip.Addr]L) (again []L, err error) {
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
		lease, err := l.read(row)
		if err != nil {
			return nil, err
		}
		if row.Revision >= l.known[row.Key].revision || row.Value == nil {
			l.note(row.Key, known[L]{lease, row.Revision})
		}
	}
	return again, nil
}

// prepare makes the rows for leases that are nobody else's, as far as known here.
func (l *Leases[L]) prepare(leases []L, lost map[netip.Addr]L) (rows []store.Row, ours []L, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, lease := range leases {
		key := l.addr(lease).String()
		has := l.known[key]
		// One that has ended is anybody's.
		if l.now().Before(l.until(has.lease)) && !l.same(lease, has.lease) {
			lost[l.addr(lease)] = has.lease
			continue
		}
		value, err := l.encode(lease)
		if err != nil {
			return nil, nil, fmt.Errorf("encoding leases: %w", err)
		}
		ours = append(ours, lease)
		rows = append(rows, store.Row{Key: key, Value: value, Revision: has.revision})
	}
	return rows, ours, nil
}
