package dhcp

import (
	"net/netip"
	"slices"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// State says how firm a lease is.
type State string

// The states. The zero value is Bound.
const (
	Bound State = ""
	// Held: offered, not yet requested.
	Held State = "held"
	// Declined: somebody else was found to use the address.
	Declined State = "declined"
	// Seen: another server gave the address, says its client.
	Seen State = "seen"
)

// Lease gives one address to one card. A lease that has ended is remembered, so
// that the card gets the same address again.
type Lease struct {
	MAC  MAC
	Addr netip.Addr
	// Machine is the name that the address was reserved for; empty when dynamic.
	Machine string
	Until   time.Time
	State   State
}

// Table is the lease table in memory: at most one lease per address. A card may have
// several: it is in several networks (VLANs of one cable have one MAC address), and what
// it was given stays its own until that ends, whatever comes in its name. What it may be
// given besides is the decision's: see mayHave. A declined address belongs to nobody. The
// zero value is not usable; it is not safe for concurrent use.
type Table struct {
	// byMAC has the leases of each card but what it has declined.
	byMAC  map[MAC][]Lease
	byAddr map[netip.Addr]Lease
	pools  map[pool]*cursor
	// network is what the pools' cursors were worked out for, and now the time.
	network *boot.Network
	now     time.Time
}

type pool struct {
	first, last netip.Addr
	share       Share
}

// cursor makes the search for a free address cheap, also when there is none: a
// flood of requests must not scan a whole pool each time.
type cursor struct {
	// next: all before it are given out or kept free.
	next netip.Addr
	// ended are addresses whose lease had ended at the last scan, oldest first.
	ended []netip.Addr
	// fullUntil is when the next lease ends; nothing is free before.
	fullUntil time.Time
}

// NewTable is a table of the leases that a Store has kept.
func NewTable(leases []Lease) *Table {
	t := &Table{byMAC: map[MAC][]Lease{}, byAddr: map[netip.Addr]Lease{}, pools: map[pool]*cursor{}}
	for _, l := range leases {
		t.put(l)
	}
	return t
}

// ByMAC implements Leases.
func (t *Table) ByMAC(m MAC) []Lease { return t.byMAC[m] }

// ByAddr is the lease of an address, ended or not.
func (t *Table) ByAddr(a netip.Addr) (Lease, bool) { l, ok := t.byAddr[a]; return l, ok }

// Len is the number of leases, ended ones included.
func (t *Table) Len() int { return len(t.byAddr) }

// use tells the table which network the following calls are about, and when they come.
func (t *Table) use(n *boot.Network, now time.Time) {
	t.now = now
	if t.network != n {
		t.network = n
		clear(t.pools)
	}
}

// Free implements Leases.
func (t *Table) Free(first, last netip.Addr, share Share, skip func(netip.Addr) bool, now time.Time) (netip.Addr, bool) {
	p := pool{first, last, share}
	c := t.pools[p]
	if c == nil {
		c = &cursor{next: first}
		t.pools[p] = c
	}
	kept := skip
	skip = func(a netip.Addr) bool { return !share.has(first, a) || kept(a) }
	for ; c.next.IsValid() && !last.Less(c.next); c.next = c.next.Next() {
		if _, used := t.byAddr[c.next]; !used && !skip(c.next) {
			return c.next, true
		}
	}
	if a, ok := t.firstEnded(c, now); ok {
		return a, true
	}
	if now.Before(c.fullUntil) {
		return netip.Addr{}, false
	}
	c.scan(t, first, last, skip, now)
	return t.firstEnded(c, now)
}

func (t *Table) firstEnded(c *cursor, now time.Time) (netip.Addr, bool) {
	for ; len(c.ended) > 0; c.ended = c.ended[1:] {
		if l := t.byAddr[c.ended[0]]; !l.active(now) {
			return c.ended[0], true
		}
	}
	return netip.Addr{}, false
}

func (c *cursor) scan(t *Table, first, last netip.Addr, skip func(netip.Addr) bool, now time.Time) {
	var ended []Lease
	c.fullUntil = time.Time{}
	for a := first; a.IsValid() && !last.Less(a); a = a.Next() {
		l, used := t.byAddr[a]
		switch {
		case !used || skip(a):
		case !l.active(now):
			ended = append(ended, l)
		case c.fullUntil.IsZero() || l.Until.Before(c.fullUntil):
			c.fullUntil = l.Until
		}
	}
	slices.SortFunc(ended, func(a, b Lease) int { return a.Until.Compare(b.Until) })
	c.ended = nil
	for _, l := range ended {
		c.ended = append(c.ended, l.Addr)
	}
}

// apply carries out a decision and returns what must be made durable for it.
func (t *Table) apply(d Decision) []Lease {
	l := d.Lease
	switch d.Change {
	case Hold:
		// An offer must not weaken what a client has, this one or another: it may still use
		// it. Only a request takes a machine's reserved address from its other card.
		if old, ok := t.byAddr[l.Addr]; ok && old.State == Bound && old.active(t.now) && (old.MAC != l.MAC || l.Until.Before(old.Until)) {
			return nil
		}
		l.State = Held
		t.put(l)
		return nil
	case See:
		t.see(l)
		return nil
	case Bind:
		l.State = Bound
	case Decline:
		l.State = Declined
	case End:
		if l.State == Held {
			t.drop(l)
			return nil
		}
	default:
		return nil
	}
	t.put(l)
	return []Lease{l}
}

// put records a lease in place of what its address had before, and of what its card need
// not have any more.
func (t *Table) put(l Lease) {
	old, known := t.byAddr[l.Addr]
	if known && old.MAC != l.MAC {
		t.drop(old)
	}
	t.byAddr[l.Addr] = l
	own := t.byMAC[l.MAC]
	if known && old.MAC == l.MAC || t.network != nil { // not while a file is read: there may be many
		own = slices.DeleteFunc(own, func(x Lease) bool {
			if x.Addr != l.Addr && (l.State == Declined || !t.replaces(l, x)) {
				return false
			}
			if x.Addr != l.Addr {
				t.free(x.Addr)
			}
			return true
		})
	}
	if l.State != Declined {
		own = append(own, l)
	}
	t.owns(l.MAC, own)
	for p, c := range t.pools {
		if p.holds(l.Addr) && l.Until.Before(c.fullUntil) {
			c.fullUntil = l.Until
		}
	}
}

// replaces says whether a card with a lease of one network has no use for another one: it
// is offered one address there at a time, and of those that have ended it gets the last
// one again.
func (t *Table) replaces(l, old Lease) bool {
	if t.network == nil || old.State == Bound && old.active(t.now) || old.State == Seen {
		return false
	}
	s, ok := subnetOf(t.network, l.Addr)
	return ok && s.Prefix.Contains(old.Addr)
}

func (p pool) holds(a netip.Addr) bool { return !a.Less(p.first) && !p.last.Less(a) }

// drop ends a lease: its address is free.
func (t *Table) drop(l Lease) {
	t.owns(l.MAC, slices.DeleteFunc(t.byMAC[l.MAC], func(x Lease) bool { return x.Addr == l.Addr }))
	t.free(l.Addr)
}

func (t *Table) owns(m MAC, leases []Lease) {
	if len(leases) == 0 {
		delete(t.byMAC, m)
		return
	}
	t.byMAC[m] = leases
}

func (t *Table) free(a netip.Addr) {
	delete(t.byAddr, a)
	for p, c := range t.pools {
		if !a.Less(p.first) && a.Less(c.next) {
			c.next = a
		}
	}
}
