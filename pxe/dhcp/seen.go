package dhcp

import (
	"cmp"
	"maps"
	"slices"
)

const (
	// maxSeen bounds the addresses of another server that a proxy remembers.
	maxSeen = 4096
	// seenEach is how many of them one card may have: firmware and iPXE may be given
	// different ones, in each network that the card is in.
	seenEach = 4
)

// see remembers whose address it is that another server gave. Anybody may say anything, so
// there are limits, and who is not in cluster.yaml never takes the place of who is.
func (t *Table) see(l Lease) {
	l.State = Seen
	old, known := t.byAddr[l.Addr]
	if known && old.MAC != l.MAC && old.Machine != "" && l.Machine == "" && old.active(t.now) {
		return
	}
	if own := t.byMAC[l.MAC]; len(own) >= seenEach && (!known || old.MAC != l.MAC) {
		t.drop(slices.MinFunc(own, func(a, b Lease) int { return a.Until.Compare(b.Until) }))
	}
	if !known && t.Len() >= maxSeen {
		t.forgetSeen()
	}
	t.put(l)
}

// forgetSeen makes room for a quarter of what there may be: what has ended goes first,
// then strangers, then machines of cluster.yaml, of each what was seen longest ago.
func (t *Table) forgetSeen() {
	rank := func(l Lease) int {
		switch {
		case !l.active(t.now):
			return 0
		case l.Machine == "":
			return 1
		}
		return 2
	}
	all := slices.SortedFunc(maps.Values(t.byAddr), func(a, b Lease) int {
		return cmp.Or(rank(a)-rank(b), a.Until.Compare(b.Until), a.Addr.Compare(b.Addr))
	})
	for _, l := range all[:len(all)/4] {
		t.drop(l)
	}
}
