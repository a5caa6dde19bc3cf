package dhcp6

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/imagectl/imagectl/pxe/journal"
)

// OpenJournal opens or makes the Store in the file at path. The caller closes it.
func OpenJournal(path string) (*journal.Journal[Lease], error) {
	return journal.Open(path, leases(), live{})
}

// line is a Lease in the file.
type line struct {
	Client string     `json:"client"`
	IAID   uint32     `json:"iaid"`
	Addr   netip.Addr `json:"addr"`
	Until  time.Time  `json:"until"`
	State  State      `json:"state,omitempty"`
}

func leases() journal.Kind[Lease] {
	return journal.Kind[Lease]{
		Name: "DHCPv6 leases",
		Hint: "to start without leases, move the file away; running machines renew theirs",
		Encode: func(l Lease) ([]byte, error) {
			return json.Marshal(line{Client: l.Client, IAID: l.IAID, Addr: l.Addr, Until: l.Until.UTC(), State: l.State})
		},
		Decode: func(b []byte) (Lease, error) {
			var l line
			if err := json.Unmarshal(b, &l); err != nil {
				return Lease{}, err
			}
			if l.Client == "" || !l.Addr.Is6() || l.Addr.Is4In6() {
				return Lease{}, fmt.Errorf("%q with %s is not a client with its IPv6 address", l.Client, l.Addr)
			}
			return Lease{Key: Key{l.Client, l.IAID}, Addr: l.Addr, Until: l.Until, State: l.State}, nil
		},
	}
}

// live is what is known of each address: the last that was said of it.
type live map[netip.Addr]Lease

// Put implements journal.Live.
func (l live) Put(x Lease) { l[x.Addr] = x }

// Len implements journal.Live.
func (l live) Len() int { return len(l) }

// All implements journal.Live.
func (l live) All() []Lease {
	return slices.SortedFunc(maps.Values(l), func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
}
