package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// choose picks the address for a client: its reservation, what it had, what it
// asks for, any free one. The machine's name comes with a reserved address.
func (r *query) choose() (address netip.Addr, machine string, ok bool) {
	if a, name, ok := r.reservation(); ok {
		return a, name, true
	}
	own, _ := r.last()
	for _, a := range []netip.Addr{own.Addr, r.requested} {
		if !a.IsValid() {
			continue
		}
		if name, why := r.mayHave(a); why == "" {
			return a, name, true
		}
	}
	if !r.subnet.First.IsValid() {
		return netip.Addr{}, "", false
	}
	a, ok := r.Leases.Free(r.subnet.First, r.subnet.Last, r.Share, r.keptFree(), r.Now)
	if !ok && r.Share != (Share{}) {
		a, ok = r.Leases.Free(r.subnet.First, r.subnet.Last, Share{}, r.keptFree(), r.Now)
	}
	return a, "", ok
}

// mayHave says why the client cannot have an address, or for which machine the
// address is reserved when it can.
func (r *query) mayHave(a netip.Addr) (machine, whyNot string) {
	if !r.subnet.Prefix.Contains(a) {
		return "", fmt.Sprintf("%s is not in %s", a, r.subnet.Prefix)
	}
	// A system that renews shows less than its firmware did: the lease says whose it is.
	if l, ok := r.has(a); ok && l.holds(r.Network, r.Now) && (r.answer.Name == "" || r.answer.Name == l.Machine) {
		return l.Machine, ""
	}
	own, name, reserved := r.reservation()
	if reserved {
		if a != own {
			return "", fmt.Sprintf("%s has the reservation %s", name, own)
		}
		return name, ""
	}
	if name := r.Network.Reserved[a]; name != "" {
		return "", fmt.Sprintf("%s is reserved for %s", a, name)
	}
	if !r.inRange(a) {
		return "", fmt.Sprintf("%s is not in the dynamic range", a)
	}
	if r.keptFree()(a) {
		return "", fmt.Sprintf("%s belongs to the network itself", a)
	}
	if l, ok := r.last(); ok && l.Addr != a && l.State == Bound && l.active(r.Now) {
		return "", fmt.Sprintf("%s has %s in this network", r.client.MAC, l.Addr)
	}
	if l, ok := r.Leases.ByAddr(a); ok && l.active(r.Now) && (l.MAC != r.client.MAC || l.State == Declined) {
		return "", fmt.Sprintf("%s is in use", a)
	}
	return "", ""
}

// reservation is the address that cluster.yaml reserves for the client in this
// subnet. A system does not send its UUID, so a machine that is known by UUID
// only is recognised by the lease its firmware took.
//
// A machine may have several cards but has one address. The card that netboots
// takes it: the machine has just started, so no other card of it uses it any
// more. A system's other card gets one from the dynamic range.
func (r *query) reservation() (address netip.Addr, name string, ok bool) {
	address, name = r.answer.Address, r.answer.Name
	if name == "" {
		l, ok := latest(r.own, func(l Lease) bool { return r.subnet.Prefix.Contains(l.Addr) })
		if !ok || l.Machine == "" || r.Network.Reserved[l.Addr] != l.Machine {
			return netip.Addr{}, "", false
		}
		address, name = l.Addr, l.Machine
	}
	if !address.IsValid() || !r.subnet.Prefix.Contains(address) {
		return netip.Addr{}, "", false
	}
	if r.client.boots() {
		return address, name, true
	}
	holder, held := r.Leases.ByAddr(address)
	if held && holder.MAC != r.client.MAC && holder.active(r.Now) && r.stillHas(holder, name) {
		return netip.Addr{}, "", false
	}
	return address, name, true
}

// has is the client's lease of an address, ended or not.
func (r *query) has(a netip.Addr) (Lease, bool) {
	l, ok := r.Leases.ByAddr(a)
	return l, ok && l.MAC == r.client.MAC && l.State != Declined
}

// held is the address that the client is offered here.
func (r *query) held() (Lease, bool) {
	return latest(r.own, func(l Lease) bool { return l.State == Held && r.subnet.Prefix.Contains(l.Addr) })
}

// last is the client's lease of a dynamic address of this subnet: the one that goes on, or
// else the one that it had last. It is given no second one beside the first, so that one
// card cannot use up the range.
func (r *query) last() (Lease, bool) {
	keptFree := r.keptFree()
	dynamic := func(l Lease) bool { return r.inRange(l.Addr) && !keptFree(l.Addr) }
	if l, ok := latest(r.own, func(l Lease) bool { return l.State == Bound && l.active(r.Now) && dynamic(l) }); ok {
		return l, true
	}
	return latest(r.own, dynamic)
}

// latest is the lease that ends last of those that count.
func latest(all []Lease, counts func(Lease) bool) (out Lease, ok bool) {
	for _, l := range all {
		if counts(l) && (!ok || l.Until.After(out.Until)) {
			out, ok = l, true
		}
	}
	return out, ok
}

// holds says whether a lease gives its card the address of a machine now.
func (l Lease) holds(n *boot.Network, now time.Time) bool {
	return l.State == Bound && l.Machine != "" && n.Reserved[l.Addr] == l.Machine && l.active(now)
}

// holds are the machines whose addresses a card has by leases that go on.
func holds(all []Lease, n *boot.Network, now time.Time) (machines []string) {
	for _, l := range all {
		if l.holds(n, now) {
			machines = append(machines, l.Machine)
		}
	}
	return machines
}

// stillHas says whether a card that holds a machine's address is still one of
// that machine's: a replaced card must not keep it from the new one.
func (r *query) stillHas(holder Lease, name string) bool {
	m := Client{MAC: holder.MAC}.machine()
	if now := r.Answer(m).Name; now != "" {
		return now == name
	}
	return holder.Machine == name && r.answer.Name == ""
}

func (r *query) inRange(a netip.Addr) bool {
	return r.subnet.First.IsValid() && !a.Less(r.subnet.First) && !r.subnet.Last.Less(a)
}

// keptFree says which addresses of a dynamic range are not dynamic. It does not hold the
// query, which so needs no memory of its own for each packet.
func (r *query) keptFree() func(netip.Addr) bool {
	reserved, peers, s := r.Network.Reserved, r.Peers, r.subnet
	kept := [...]netip.Addr{r.Server, r.link(), r.relay.agent, s.Router, s.Prefix.Masked().Addr(), lastOf(s.Prefix)}
	return func(a netip.Addr) bool {
		_, named := reserved[a]
		return named || slices.Contains(kept[:], a) || slices.Contains(peers, a)
	}
}

// lastOf is a prefix's broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|^uint32(0)>>p.Bits())
	return netip.AddrFrom4(b)
}

func (l Lease) active(now time.Time) bool { return now.Before(l.Until) }
