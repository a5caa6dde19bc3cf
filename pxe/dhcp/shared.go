package dhcp

import (
	"context"
	"net/netip"

	"github.com/imagectl/imagectl/pxe/journal"
)

// Shared is a Store that other servers of the same network write to at the same time. A
// lease of an address whose Until is zero is gone.
type Shared = journal.Shared[Lease]

// TakenError is what Append of a Shared returns when it kept all but some leases.
type TakenError = journal.TakenError[Lease]

// Share is a part of each pool: the addresses whose distance from the first, divided by
// Of, leaves Index. The zero value is all of it. Servers that offer out of their own part
// first do not offer one address to two machines, of which one would have to begin again;
// that none gets it twice is the Store's doing.
type Share struct{ Index, Of int }

func (s Share) has(first, a netip.Addr) bool {
	return s.Of == 0 || distance(first, a)%s.Of == s.Index
}

// follow keeps the table as other servers change it, until ctx ends.
func (s *Server) follow(ctx context.Context, shared Shared) error {
	return shared.Follow(ctx, func(changed []Lease) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.table.Learn(changed)
	})
}

// Learn takes over leases as they are on record.
func (t *Table) Learn(leases []Lease) {
	for _, l := range leases {
		if l.Until.IsZero() {
			if old, ok := t.byAddr[l.Addr]; ok {
				t.drop(old)
			}
			continue
		}
		t.put(l)
	}
}

// notReady says why this server must not answer now; nil when it may.
func (s *Server) notReady() error {
	if shared, ok := s.Store.(Shared); ok {
		return shared.Ready()
	}
	return nil
}
