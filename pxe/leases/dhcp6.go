package leases

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/pxe/dhcp6"
)

// Name6 is that of the rows of DHCPv6 in a store.
const Name6 = "leases6"

var _ dhcp6.Shared = (*Leases[dhcp6.Lease])(nil)

// Open6 reads the leases of DHCPv6. ready says whether the store answers now.
func Open6(ctx context.Context, rows Rows, ready func() error, now func() time.Time) (*Leases[dhcp6.Lease], error) {
	return load(ctx, kind6(), rows, ready, now)
}

// record6 is a lease in a row whose key is the address.
type record6 struct {
	Client string      `json:"client"`
	IAID   uint32      `json:"iaid"`
	Until  time.Time   `json:"until"`
	State  dhcp6.State `json:"state,omitempty"`
}

func kind6() kind[dhcp6.Lease] {
	return kind[dhcp6.Lease]{
		encode: func(l dhcp6.Lease) ([]byte, error) {
			return json.Marshal(record6{Client: l.Client, IAID: l.IAID, Until: l.Until.UTC(), State: l.State})
		},
		decode: decode6,
		addr:   func(l dhcp6.Lease) netip.Addr { return l.Addr },
		until:  func(l dhcp6.Lease) time.Time { return l.Until },
		// Of its own addresses a client that has many gets the oldest for a new
		// association.
		same: func(l, over dhcp6.Lease) bool { return over.Client == l.Client && over.State != dhcp6.Declined },
	}
}

func decode6(a netip.Addr, value []byte) (dhcp6.Lease, error) {
	if value == nil {
		return dhcp6.Lease{Addr: a}, nil
	}
	var r record6
	if err := json.Unmarshal(value, &r); err != nil {
		return dhcp6.Lease{}, err
	}
	if r.Client == "" || r.Until.IsZero() || !a.Is6() || a.Is4In6() {
		return dhcp6.Lease{}, fmt.Errorf("%q until %s is no client with its time", r.Client, r.Until)
	}
	return dhcp6.Lease{Key: dhcp6.Key{Client: r.Client, IAID: r.IAID}, Addr: a, Until: r.Until, State: r.State}, nil
}
