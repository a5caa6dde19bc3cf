package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// choose picks the address for a client: its reservation, what it had, what it
// asks for, any free one. The machine's name comes with a reserved address.
func (r *query) choose() (address netip.Addr, machine string, ok bool) {
	if a, name, ok := r.reservation(); ok {
		return a, name, true
	}
	candidates := []netip.Addr{addr(r.RequestedIPAddress())}
	if l, ok := r.Leases.ByMAC(r.client.MAC); ok {
		candidates = []netip.Addr{l.Addr, candidates[0]}
	}
	for _, a := range candidates {
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
	a, ok := r.Leases.Free(r.subnet.First, r.subnet.Last, r.Share, r.keptFree, r.Now)
	if !ok && r.Share != (Share{}) {
		a, ok = r.Leases.Free(r.subnet.First, r.subnet.Last, Share{}, r.keptFree, r.Now)
	}
	return a, "", ok
}

// mayHave says why the client cannot have an address, or for which machine the
// address is reserved when it can.
func (r *query) mayHave(a netip.Addr) (machine, whyNot string) {
	if !r.subnet.Prefix.Contains(a) {
		return "", fmt.Sprintf("%s is not in %s", a, r.subnet.Prefix)
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
	if !r.subnet.First.IsValid() || a.Less(r.subnet.First) || r.subnet.Last.Less(a) {
		return "", fmt.Sprintf("%s is not in the dynamic range", a)
	}
	if r.keptFree(a) {
		return "", fmt.Sprintf("%s belongs to the network itself", a)
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
		l, ok := r.Leases.ByMAC(r.client.MAC)
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

// stillHas says whether a card that holds a machine's address is still one of
// that machine's: a replaced card must not keep it from the new one.
func (r *query) stillHas(holder Lease, name string) bool {
	m := Client{MAC: holder.MAC}.machine()
	if now := r.Answer(m).Name; now != "" {
		return now == name
	}
	return holder.Machine == name && r.answer.Name == ""
}

// keptFree says which addresses of a dynamic range are not dynamic.
func (r *query) keptFree(a netip.Addr) bool {
	_, reserved := r.Network.Reserved[a]
	return reserved || a == r.Server || slices.Contains(r.Peers, a) || a == r.link() || a == r.relay.agent || a == r.subnet.Router || a == r.subnet.Prefix.Masked().Addr() || a == lastOf(r.subnet.Prefix)
}

// lastOf is a prefix's broadcast address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(b)
}

func (l Lease) active(now time.Time) bool { return now.Before(l.Until) }
