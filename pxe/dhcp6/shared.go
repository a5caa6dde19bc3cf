package dhcp6

import (
	"context"

	"github.com/imagectl/imagectl/pxe/journal"
)

// Shared is a Store that other servers of the same network write to at the same time. A
// lease of an address whose Until is zero is gone.
type Shared = journal.Shared[Lease]

// TakenError is what Append of a Shared returns when it kept all but some leases.
type TakenError = journal.TakenError[Lease]

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

// yield takes over what other servers gave away. Who is not answered asks again, and is
// offered another address.
func (s *Server) yield(lost []pending, now []Lease) {
	s.mu.Lock()
	s.table.Learn(now)
	s.mu.Unlock()
	for _, p := range lost {
		s.refuse(p, "taken", "no answer: another server gave its address to another machine in this moment; it asks again")
	}
}
