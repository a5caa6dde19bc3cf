package dhcp

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
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
	MAC     string     `json:"mac"`
	Addr    netip.Addr `json:"addr"`
	Machine string     `json:"machine,omitempty"`
	Until   time.Time  `json:"until"`
	State   State      `json:"state,omitempty"`
}

func leases() journal.Kind[Lease] {
	return journal.Kind[Lease]{
		Name:   "leases",
		Hint:   "to start without leases, move the file away; running machines renew theirs",
		Encode: encodeLease,
		Decode: func(b []byte) (Lease, error) {
			var l line
			if err := json.Unmarshal(b, &l); err != nil {
				return Lease{}, err
			}
			mac, err := net.ParseMAC(l.MAC)
			if err != nil || len(mac) != 6 || !l.Addr.Is4() {
				return Lease{}, fmt.Errorf("%q with %s is not a card with its IPv4 address", l.MAC, l.Addr)
			}
			return Lease{MAC: MAC(mac), Addr: l.Addr, Machine: l.Machine, Until: l.Until, State: l.State}, nil
		},
	}
}

// encodeLease makes a line. It does by hand what json.Marshal would do: there is one for every
// address that is given.
func encodeLease(l Lease) ([]byte, error) {
	b := make([]byte, 0, 160)
	b = append(append(b, `{"mac":"`...), l.MAC.String()...)
	b = l.Addr.AppendTo(append(b, `","addr":"`...))
	b = append(b, '"')
	if l.Machine != "" {
		name, err := json.Marshal(l.Machine)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"machine":`...), name...)
	}
	b = l.Until.UTC().AppendFormat(append(b, `,"until":"`...), time.RFC3339Nano)
	b = append(b, '"')
	if l.State != Bound {
		b = append(append(append(b, `,"state":"`...), l.State...), '"') // one of our words
	}
	return append(b, '}'), nil
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
