package dhcp6

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// sharedStore is kept by other servers as well.
type sharedStore struct {
	// taken is what another server has given away, which this one has not heard of.
	taken Lease
	told  chan []Lease
	// learnt is sent to when what was told is in the table.
	learnt chan struct{}

	mu   sync.Mutex
	sick error
}

func (s *sharedStore) Load() ([]Lease, error) { return nil, nil }

func (s *sharedStore) Append(leases []Lease) error {
	e := &TakenError{Lost: map[int]bool{}}
	for i, l := range leases {
		if l.Addr == s.taken.Addr && l.Client != s.taken.Client {
			e.Lost[i], e.Now = true, []Lease{s.taken}
		}
	}
	if len(e.Lost) > 0 {
		return e
	}
	return nil
}

func (s *sharedStore) Follow(ctx context.Context, changed func([]Lease)) error {
	for {
		select {
		case l := <-s.told:
			changed(l)
			s.learnt <- struct{}{}
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *sharedStore) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sick
}

// Of two servers that give one address away in the same moment one does not answer, and
// its client is offered another address when it asks again.
func TestWhoLosesItsAddressToAnotherServerIsNotAnswered(t *testing.T) {
	t.Parallel()
	first := solicited(t)
	store := &sharedStore{taken: Lease{Key: Key{"another", 1}, Addr: first, Until: start.Add(time.Hour)}, told: make(chan []Lease), learnt: make(chan struct{})}
	s, w, recorded := serve(t, store)
	w.in <- sent{message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1, first.String())).ToBytes(), from("eth0")}
	if e := <-recorded; e.Refusal.Code != "taken" {
		t.Errorf("got %+v", e)
	}
	solicit := message(dhcpv6.MessageTypeSolicit, client(), ia(1)).ToBytes()
	w.in <- sent{solicit, from("eth0")}
	next := offered(t, (<-w.out).packet, dhcpv6.MessageTypeAdvertise)
	if next == first {
		t.Errorf("%s, which is another's, is offered again", next)
	}
	// What another server gives away is not offered, as soon as it is told.
	store.told <- []Lease{{Key: Key{"a third", 1}, Addr: next, Until: start.Add(time.Hour)}}
	<-store.learnt
	w.in <- sent{solicit, from("eth0")}
	if got := offered(t, (<-w.out).packet, dhcpv6.MessageTypeAdvertise); got == first || got == next {
		t.Errorf("offered %s, which is another's", got)
	}
	// Nor does anybody get an answer while the store cannot be trusted.
	store.mu.Lock()
	store.sick = errors.New("no majority")
	store.mu.Unlock()
	if p := s.handle(solicit, from("eth0")); p.reply != nil {
		t.Error("it is answered out of a table that may be old")
	}
}

// solicited is what the client is offered where nobody else has anything.
func solicited(t *testing.T) netip.Addr {
	t.Helper()
	e := env()
	d := Decide(message(dhcpv6.MessageTypeSolicit, client(), ia(1)), e)
	return offered(t, d.Reply.ToBytes(), dhcpv6.MessageTypeAdvertise)
}

// offered is the address in a reply.
func offered(t *testing.T, packet []byte, want dhcpv6.MessageType) netip.Addr {
	t.Helper()
	m, err := dhcpv6.MessageFromBytes(packet)
	if err != nil || m.MessageType != want {
		t.Fatalf("got %v, %v, want %s", m, err, want)
	}
	a, ok := netip.AddrFromSlice(m.Options.OneIANA().Options.OneAddress().IPv6Addr)
	if !ok {
		t.Fatalf("no address in %s", m.Summary())
	}
	return a
}
