package dhcp6

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// Replay answers the packets of a capture one after another as a server would that
// started with an empty lease table, without a socket and without a disk. Whatever
// server a client has chosen, it takes for itself: a capture does not say which one
// ours is. It is not safe for concurrent use.
type Replay struct {
	env   Env
	table *Table
}

// NewReplay takes all of an Env but Now, From, DUID and Leases.
func NewReplay(env Env) *Replay {
	r := &Replay{env: env, table: NewTable(nil)}
	r.env.Leases = r.table
	return r
}

// Packet decides over a packet that comes at a time, from whence.
func (r *Replay) Packet(at time.Time, from netip.Addr, packet []byte) (*dhcpv6.Message, Decision, error) {
	req, err := dhcpv6.FromBytes(packet)
	if err != nil {
		return nil, Decision{}, fmt.Errorf("reading a DHCPv6 packet: %w", err)
	}
	inner, err := req.GetInnerMessage()
	if err != nil {
		return nil, Decision{}, fmt.Errorf("reading a DHCPv6 packet: %w", err)
	}
	r.env.Now, r.env.From, r.env.DUID = at, from, inner.Options.ServerID()
	if r.env.DUID == nil {
		r.env.DUID = ServerDUID(nil)
	}
	d := Decide(req, r.env)
	for _, l := range d.Changes {
		r.table.put(l)
	}
	return inner, d, nil
}
