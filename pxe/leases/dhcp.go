package leases

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/pxe/dhcp"
)

// Name is that of the rows of DHCP in a store.
const Name = "leases"

var _ dhcp.Shared = (*Leases[dhcp.Lease])(nil)

// Open reads the leases of DHCP. ready says whether the store answers now.
func Open(ctx context.Context, rows Rows, ready func() error, now func() time.Time) (*Leases[dhcp.Lease], error) {
	return load(ctx, kind4(), rows, ready, now)
}

// record is a lease in a row whose key is the address.
type record struct {
	MAC     string     `json:"mac"`
	Machine string     `json:"machine,omitempty"`
	Until   time.Time  `json:"until"`
	State   dhcp.State `json:"state,omitempty"`
}

func kind4() kind[dhcp.Lease] {
	return kind[dhcp.Lease]{
		encode: func(l dhcp.Lease) ([]byte, error) {
			return json.Marshal(record{MAC: l.MAC.String(), Machine: l.Machine, Until: l.Until.UTC(), State: l.State})
		},
		decode: decode4,
		addr:   func(l dhcp.Lease) netip.Addr { return l.Addr },
		until:  func(l dhcp.Lease) time.Time { return l.Until },
		// The same card, or an address that cluster.yaml keeps for the machine that asks.
		same: func(l, over dhcp.Lease) bool {
			return over.MAC == l.MAC && over.State != dhcp.Declined || l.Machine != ""
		},
	}
}

func decode4(a netip.Addr, value []byte) (dhcp.Lease, error) {
	if value == nil {
		return dhcp.Lease{Addr: a}, nil
	}
	var r record
	if err := json.Unmarshal(value, &r); err != nil {
		return dhcp.Lease{}, err
	}
	mac, err := net.ParseMAC(r.MAC)
	if err != nil || len(mac) != 6 || r.Until.IsZero() {
		return dhcp.Lease{}, fmt.Errorf("%q until %s is no card with its time", r.MAC, r.Until)
	}
	return dhcp.Lease{MAC: dhcp.MAC(mac), Addr: a, Machine: r.Machine, Until: r.Until, State: r.State}, nil
}
