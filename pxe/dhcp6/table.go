package dhcp6

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// State says how firm a lease is.
type State string

// The states. The zero value is Bound.
const (
	Bound State = ""
	// Declined: somebody else was found to use the address.
	Declined State = "declined"
)

// Key is whose a lease is: one of a client's identity associations.
type Key struct {
	Client string
	IAID   uint32
}

// Lease gives one address to one identity association. A lease that has ended is
// remembered, so that the same address is given again.
type Lease struct {
	Key
	Addr  netip.Addr
	Until time.Time
	State State
}

func (l Lease) active(now time.Time) bool { return now.Before(l.Until) }

// Leases is the view of the lease table that a decision needs.
type Leases interface {
	// ByKey is the lease of an identity association, from first to last, that ends last;
	// not what was declined.
	ByKey(k Key, first, last netip.Addr) (Lease, bool)
	ByAddr(netip.Addr) (Lease, bool)
	// Oldest is the address, from first to last, of the client's lease that ends first,
	// if it has as many as a client may have.
	Oldest(client string, first, last netip.Addr) (netip.Addr, bool)
	// Free names an address from first to last that nobody has and skip does not reject,
	// preferring those that were never given out, then the one whose lease ended first.
	// The search begins where seed says.
	Free(first, last netip.Addr, seed uint64, skip func(netip.Addr) bool, now time.Time) (netip.Addr, bool)
}

const (
	// maxPerClient is how many leases a client may have. UEFI takes two at each start.
	maxPerClient = 16
	// maxSearch bounds what one request may cost when a range is nearly used up.
	maxSearch = 1024
)

// Table is the lease table in memory: at most one lease per address. An identity
// association may have several, one in each network: a machine that is in two VLANs of one
// cable uses the same names in both, and what it was given stays its own until that ends,
// whatever comes in its name. A declined address belongs to nobody. The zero value is not
// usable; it is not safe for concurrent use.
type Table struct {
	byAddr map[netip.Addr]Lease
	// byClient are the addresses of each client but what it has declined.
	byClient map[string]map[netip.Addr]bool
}

// NewTable is a table of the leases that a Store has kept.
func NewTable(leases []Lease) *Table {
	t := &Table{byAddr: map[netip.Addr]Lease{}, byClient: map[string]map[netip.Addr]bool{}}
	for _, l := range leases {
		t.put(l)
	}
	return t
}

// ByKey implements Leases.
func (t *Table) ByKey(k Key, first, last netip.Addr) (out Lease, ok bool) {
	for a := range t.byClient[k.Client] {
		l := t.byAddr[a]
		if l.Key != k || a.Less(first) || last.Less(a) {
			continue
		}
		if !ok || l.Until.After(out.Until) || l.Until.Equal(out.Until) && a.Less(out.Addr) {
			out, ok = l, true
		}
	}
	return out, ok
}

// ByAddr is the lease of an address, ended or not.
func (t *Table) ByAddr(a netip.Addr) (Lease, bool) { l, ok := t.byAddr[a]; return l, ok }

// Len is the number of leases, ended ones included.
func (t *Table) Len() int { return len(t.byAddr) }

// Oldest implements Leases.
func (t *Table) Oldest(client string, first, last netip.Addr) (netip.Addr, bool) {
	has := t.byClient[client]
	if len(has) < maxPerClient {
		return netip.Addr{}, false
	}
	var oldest Lease
	for a := range has {
		l := t.byAddr[a]
		in := !a.Less(first) && !last.Less(a)
		if in && (!oldest.Addr.IsValid() || l.Until.Before(oldest.Until) || l.Until.Equal(oldest.Until) && a.Less(oldest.Addr)) {
			oldest = l
		}
	}
	return oldest.Addr, oldest.Addr.IsValid()
}

// Free implements Leases.
func (t *Table) Free(first, last netip.Addr, seed uint64, skip func(netip.Addr) bool, now time.Time) (netip.Addr, bool) {
	more := distance(first, last) // one less than the size, which may not fit
	at := seed
	if more != ^uint64(0) {
		at %= more + 1
	}
	var ended Lease
	for range min(more, maxSearch-1) + 1 {
		a := advance(first, at)
		l, used := t.byAddr[a]
		switch {
		case skip(a):
		case !used:
			return a, true
		case !l.active(now) && (!ended.Addr.IsValid() || l.Until.Before(ended.Until)):
			ended = l
		}
		if at == more {
			at = 0
		} else {
			at++
		}
	}
	return ended.Addr, ended.Addr.IsValid()
}

// put records a lease in place of what its address had before.
func (t *Table) put(l Lease) {
	if old, ok := t.byAddr[l.Addr]; ok {
		t.drop(old)
	}
	t.byAddr[l.Addr] = l
	if l.State == Declined {
		return
	}
	if t.byClient[l.Client] == nil {
		t.byClient[l.Client] = map[netip.Addr]bool{}
	}
	t.byClient[l.Client][l.Addr] = true
}

func (t *Table) drop(l Lease) {
	delete(t.byAddr, l.Addr)
	if delete(t.byClient[l.Client], l.Addr); len(t.byClient[l.Client]) == 0 {
		delete(t.byClient, l.Client)
	}
}

// distance is how far two addresses are apart, at most 2⁶⁴-1.
func distance(first, last netip.Addr) uint64 {
	a, b := first.As16(), last.As16()
	low, borrow := bits.Sub64(binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(a[8:]), 0)
	if high, _ := bits.Sub64(binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(a[:8]), borrow); high != 0 {
		return ^uint64(0)
	}
	return low
}

// advance is the address so much further on.
func advance(a netip.Addr, by uint64) netip.Addr {
	b := a.As16()
	low, carry := bits.Add64(binary.BigEndian.Uint64(b[8:]), by, 0)
	binary.BigEndian.PutUint64(b[8:], low)
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+carry)
	return netip.AddrFrom16(b)
}
