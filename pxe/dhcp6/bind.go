package dhcp6

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// solicit offers an address for each identity association, and keeps nothing: a flood
// of offers costs no memory. Preference 255 spares clients the wait for other offers.
func (q *query) solicit() Decision {
	rapid := q.msg.Options.GetOne(dhcpv6.OptionRapidCommit)
	if rapid != nil && q.Network.RapidCommit {
		return q.bind("rapid-commit", rapid)
	}
	m := q.reply(dhcpv6.MessageTypeAdvertise)
	m.AddOption(dhcpv6.OptPreference(255))
	var offered []string
	for _, ia := range q.msg.Options.IANA() {
		a, ok := q.choose(ia)
		if !ok {
			return q.exhausted()
		}
		m.AddOption(q.identity(ia, a))
		offered = append(offered, a.String())
	}
	if offered == nil {
		return silent("no-address-asked", "it asks for no address of its own (IA_NA)")
	}
	return Decision{Reply: q.wrap(m), Code: "advertise", Reason: "offered " + strings.Join(offered, " and ") + q.bootNote()}
}

// bind gives an address for each identity association. With more options it answers
// a SOLICIT.
func (q *query) bind(code string, more ...dhcpv6.Option) Decision {
	m := q.reply(dhcpv6.MessageTypeReply)
	for _, o := range more {
		m.AddOption(o)
	}
	d := Decision{Code: code}
	var given []string
	for _, ia := range q.msg.Options.IANA() {
		a, ok := q.choose(ia)
		if !ok {
			return q.exhausted()
		}
		m.AddOption(q.identity(ia, a))
		d.Changes = append(d.Changes, q.lease(ia, a))
		given = append(given, a.String())
	}
	if given == nil {
		return silent("no-address-asked", "it asks for no address of its own (IA_NA)")
	}
	d.Reply, d.Reason = q.wrap(m), fmt.Sprintf("gave %s for %s%s", strings.Join(given, " and "), q.subnet.Lease, q.bootNote())
	return d
}

// renew prolongs what the client has. What it has by a lease that was lost stays its
// own when nobody else has it; what is not of this network it shall drop at once.
func (q *query) renew() Decision {
	m := q.reply(dhcpv6.MessageTypeReply)
	d := Decision{Code: "renew"}
	var kept, dropped []string
	for _, ia := range q.msg.Options.IANA() {
		keep, drop := q.sort(ia)
		out := &dhcpv6.OptIANA{IaId: ia.IaId}
		if keep.IsValid() {
			out = q.identity(ia, keep)
			d.Changes = append(d.Changes, q.lease(ia, keep))
			kept = append(kept, keep.String())
		}
		for _, a := range drop {
			out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice()})
			dropped = append(dropped, a.String())
		}
		if len(out.Options.Options) == 0 {
			if q.msg.MessageType == dhcpv6.MessageTypeRebind {
				continue // whoever gave it answers that
			}
			out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding, StatusMessage: "ask for an address"})
		}
		m.AddOption(out)
	}
	if len(m.Options.IANA()) == 0 {
		return silent("not-leased", "it names no address that was given here")
	}
	d.Reply, d.Reason = q.wrap(m), fmt.Sprintf("prolonged %s for %s", strings.Join(kept, " and "), q.subnet.Lease)
	if kept == nil {
		d.Code, d.Reason, d.Refused = "no-binding", "it has no address to prolong here; it asks for one now", true
	}
	if dropped != nil {
		d.Reason += "; it drops " + strings.Join(dropped, " and ")
	}
	return d
}

// sort finds what a client may go on using, and what it must drop.
func (q *query) sort(ia *dhcpv6.OptIANA) (keep netip.Addr, drop []netip.Addr) {
	own, has := q.own(ia)
	for _, o := range ia.Options.Addresses() {
		switch a := addr(o.IPv6Addr); {
		case !a.IsValid():
		case !keep.IsValid() && (!has || own.Addr == a) && q.mayHave(a, q.key(ia)):
			keep = a
			q.given[a] = true
		case q.msg.MessageType == dhcpv6.MessageTypeRebind && q.subnet.Prefix.Contains(a) && !q.inRange(a):
			// Another server's: REBIND goes to all.
		default:
			drop = append(drop, a)
		}
	}
	return keep, drop
}

// confirm tells a client that may have been moved whether its addresses fit.
func (q *query) confirm() Decision {
	status, reason, asked := &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess}, "its addresses are of this network", 0
	for _, ia := range q.msg.Options.IANA() {
		for _, o := range ia.Options.Addresses() {
			asked++
			if a := addr(o.IPv6Addr); !q.subnet.Prefix.Contains(a) {
				status.StatusCode, reason = iana.StatusNotOnLink, fmt.Sprintf("%s is not of this network, %s", o.IPv6Addr, q.subnet.Prefix)
			}
		}
	}
	if asked == 0 {
		return silent("malformed", "it asks about no address")
	}
	m := q.reply(dhcpv6.MessageTypeReply)
	m.AddOption(status)
	return Decision{Reply: q.wrap(m), Code: "confirm", Reason: reason}
}

// giveUp takes back what a client has, and nothing else: nobody can use up the range
// by declining it.
func (q *query) giveUp(code, what string, ended func(Lease) Lease) Decision {
	m := q.reply(dhcpv6.MessageTypeReply)
	m.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
	d := Decision{Code: code, Refused: code == "decline"}
	var gone []string
	for _, ia := range q.msg.Options.IANA() {
		had := q.named(ia)
		if len(had) == 0 {
			none := &dhcpv6.OptIANA{IaId: ia.IaId}
			none.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoBinding})
			m.AddOption(none)
			continue
		}
		for _, l := range had {
			d.Changes = append(d.Changes, ended(l))
			gone = append(gone, l.Addr.String())
		}
	}
	d.Reply, d.Reason = q.wrap(m), what+" "+strings.Join(gone, " and ")
	if gone == nil {
		d.Code, d.Reason, d.Refused = "not-leased", "it gives up what it does not have", false
	}
	return d
}

// own is the lease of an identity association in this subnet.
func (q *query) own(ia *dhcpv6.OptIANA) (Lease, bool) {
	if !q.subnet.First.IsValid() {
		return Lease{}, false
	}
	return q.Leases.ByKey(q.key(ia), q.subnet.First, q.subnet.Last)
}

// named are the leases that go on of those that an identity association names.
func (q *query) named(ia *dhcpv6.OptIANA) (out []Lease) {
	for _, o := range ia.Options.Addresses() {
		l, ok := q.Leases.ByAddr(addr(o.IPv6Addr))
		if ok && l.Key == q.key(ia) && l.State != Declined && l.active(q.Now) && !q.given[l.Addr] {
			q.given[l.Addr] = true
			out = append(out, l)
		}
	}
	return out
}

func (q *query) exhausted() Decision {
	return silent("pool-exhausted", "no address of %s is free: the range %s to %s is used up or not set", q.subnet.Prefix, q.subnet.First, q.subnet.Last).refused()
}

func (q *query) key(ia *dhcpv6.OptIANA) Key {
	return Key{Client: q.client.Key, IAID: binary.BigEndian.Uint32(ia.IaId[:])}
}

func (q *query) lease(ia *dhcpv6.OptIANA, a netip.Addr) Lease {
	return Lease{Key: q.key(ia), Addr: a, Until: q.Now.Add(q.subnet.Lease)}
}

// identity is what a client is told about its address. Times of renewal are RFC
// 8415's recommendation (section 21.4).
func (q *query) identity(ia *dhcpv6.OptIANA, a netip.Addr) *dhcpv6.OptIANA {
	life := q.subnet.Lease
	out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: seconds(life / 2), T2: seconds(life / 5 * 4)}
	out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: life, ValidLifetime: life})
	return out
}

func seconds(d time.Duration) time.Duration { return d.Truncate(time.Second) }

// choose picks an address: what the client had, what it asks for, any free one. UEFI
// makes up another IAID at each start, so a client that has many gets its oldest.
func (q *query) choose(ia *dhcpv6.OptIANA) (netip.Addr, bool) {
	key := q.key(ia)
	a, ok := q.preferred(ia, key)
	if !ok && q.subnet.First.IsValid() {
		if a, ok = q.Leases.Oldest(key.Client, q.subnet.First, q.subnet.Last); !ok || q.given[a] {
			a, ok = q.Leases.Free(q.subnet.First, q.subnet.Last, seed(key), q.keptFree, q.Now)
		}
	}
	if ok {
		q.given[a] = true
	}
	return a, ok
}

func (q *query) preferred(ia *dhcpv6.OptIANA, key Key) (netip.Addr, bool) {
	if l, ok := q.own(ia); ok && q.mayHave(l.Addr, key) {
		return l.Addr, true
	}
	for _, o := range ia.Options.Addresses() {
		if a := addr(o.IPv6Addr); a.IsValid() && q.mayHave(a, key) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// mayHave says whether an address can be the client's.
func (q *query) mayHave(a netip.Addr, key Key) bool {
	if !q.inRange(a) || q.keptFree(a) {
		return false
	}
	l, ok := q.Leases.ByAddr(a)
	return !ok || !l.active(q.Now) || (l.Key == key && l.State != Declined)
}

func (q *query) inRange(a netip.Addr) bool {
	s := q.subnet
	return s.First.IsValid() && !a.Less(s.First) && !s.Last.Less(a)
}

// keptFree says which addresses of the range are not given out (again).
func (q *query) keptFree(a netip.Addr) bool {
	// The first address of a prefix is any router's (RFC 4291 section 2.6.1).
	return a == q.Server || a == q.subnet.Prefix.Masked().Addr() || a == q.link() || q.given[a]
}

// seed spreads clients over a range, so that an offer that nobody keeps comes out the
// same again and is seldom another client's too.
func seed(k Key) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %d", k.Client, k.IAID)
	return h.Sum64()
}
