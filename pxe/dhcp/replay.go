package dhcp

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Replay answers the packets of a capture one after another as a server would that
// started with an empty lease table, without a socket and without a disk. It is
// not safe for concurrent use.
type Replay struct {
	env   Env
	table *Table
}

// NewReplay takes all of an Env but Now, From, BootServer and Leases.
func NewReplay(env Env) *Replay {
	r := &Replay{env: env, table: NewTable(nil)}
	r.env.Leases = r.table
	return r
}

// Packet decides over a packet that comes at a time, from whence to where.
func (r *Replay) Packet(at time.Time, from, to netip.AddrPort, packet []byte) (*dhcpv4.DHCPv4, Decision, error) {
	req, err := dhcpv4.FromBytes(packet)
	if err != nil {
		return nil, Decision{}, fmt.Errorf("reading a DHCP packet: %w", err)
	}
	r.env.Now, r.env.From, r.env.BootServer = at, from, to.Port() == 4011
	r.table.use(r.env.Network, at)
	d := Decide(req, r.env)
	r.table.apply(d)
	return req, d, nil
}
