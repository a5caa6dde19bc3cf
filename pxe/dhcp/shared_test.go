package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/imagectl/imagectl/pxe/boot"
)

var peer = netip.MustParseAddr("10.0.0.2")

func TestAPeerIsNoStrangeServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.peers = []netip.Addr{peer}
	if got := l.offered(discover(laptop)); got != "10.0.0.100" {
		t.Fatalf("offered %s", got)
	}
	d := l.send(request(laptop, wants("10.0.0.102"), toServer("10.0.0.2")))
	if d.Code != "peer-server" || d.Reply != nil || d.Refused || d.Change != End {
		t.Errorf("got %+v", d)
	}
	if len(l.table.ByMAC(laptop)) > 0 {
		t.Error("the address that it did not take is kept for it")
	}
	if d := l.send(request(laptop, wants("10.0.0.102"), toServer("10.0.0.3"))); d.Code != "other-server" {
		t.Errorf("a server that is none of ours: %s", d.Code)
	}
}

func TestServersOfferTheirOwnPartOfThePoolFirst(t *testing.T) {
	t.Parallel()
	// 10.0.0.101 is reserved: the parts are 100 and 102, and nothing.
	for _, test := range []struct {
		share Share
		want  []string
	}{
		{Share{}, []string{"10.0.0.100", "10.0.0.102", "silence: pool-exhausted"}},
		{Share{0, 2}, []string{"10.0.0.100", "10.0.0.102", "silence: pool-exhausted"}},
		{Share{1, 2}, []string{"10.0.0.100", "10.0.0.102", "silence: pool-exhausted"}},
		{Share{2, 3}, []string{"10.0.0.102", "10.0.0.100", "silence: pool-exhausted"}},
	} {
		l := newLab(t)
		l.share = test.share
		for i, want := range test.want {
			if got := l.offered(discover(MAC{2, 0, 0, 0, 0, byte(i)})); got != want {
				t.Errorf("%+v, machine %d: offered %s, want %s", test.share, i, got, want)
			}
		}
	}
}

func TestNobodyIsOfferedTheAddressOfAPeer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.peers = []netip.Addr{netip.MustParseAddr("10.0.0.100")}
	if got := l.offered(discover(laptop)); got != "10.0.0.102" {
		t.Errorf("offered %s", got)
	}
}

// sharedStore is a memStore that others write to as well.
type sharedStore struct {
	memStore
	mu    sync.Mutex
	taken map[netip.Addr]Lease
	sick  error
	told  chan []Lease
}

func (s *sharedStore) Append(leases []Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &TakenError{Lost: map[int]bool{}}
	for i, l := range leases {
		if now, ok := s.taken[l.Addr]; ok && now.MAC != l.MAC {
			e.Lost[i] = true
			e.Now = append(e.Now, now)
		}
	}
	if len(e.Lost) > 0 {
		return e
	}
	return s.memStore.Append(leases)
}

func (s *sharedStore) Follow(ctx context.Context, changed func([]Lease)) error {
	for {
		select {
		case l := <-s.told:
			changed(l)
			s.told <- nil // it is in the table now
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

func TestWhoLosesItsAddressToAnotherServerIsNotAnswered(t *testing.T) {
	t.Parallel()
	store := &sharedStore{taken: map[netip.Addr]Lease{}, told: make(chan []Lease)}
	first := netip.MustParseAddr("10.0.0.100")
	store.taken[first] = Lease{MAC: node2, Addr: first, Until: time.Now().Add(time.Hour)}
	rec := refusals{make(chan boot.Event, 16)}
	conn := serve(t, store, rec)
	exchange := func(m *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		if _, err := conn.WriteTo(m.ToBytes(), nil); err != nil {
			t.Fatal(err)
		}
		reply, err := dhcpv4.FromBytes(<-conn.in)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if offer := exchange(discover(laptop)); offer.YourIPAddr.String() != "10.0.0.100" {
		t.Fatalf("offered %s", offer.YourIPAddr)
	}
	if _, err := conn.WriteTo(request(laptop, wants("10.0.0.100"), toServer("10.0.0.1")).ToBytes(), nil); err != nil {
		t.Fatal(err)
	}
	for e := range rec.refused {
		if e.Refusal.Code == "taken" {
			break
		}
	}
	// It has learnt of it.
	offer := exchange(discover(laptop))
	if offer.MessageType() != dhcpv4.MessageTypeOffer || offer.YourIPAddr.String() != "10.0.0.102" {
		t.Errorf("got %s of %s, want an offer of another address", offer.MessageType(), offer.YourIPAddr)
	}
}

// refusals is a recorder of machines that are stopped.
type refusals struct{ refused chan boot.Event }

func (r refusals) Record(e boot.Event) {
	if e.Refusal.Code != "" {
		r.refused <- e
	}
}

func TestTheTableFollowsOtherServers(t *testing.T) {
	t.Parallel()
	store := &sharedStore{told: make(chan []Lease)}
	conn := serve(t, store, nil)
	tell := func(l Lease) {
		store.told <- []Lease{l}
		<-store.told
	}
	client, err := nclient4.NewWithConn(conn, net.HardwareAddr(laptop[:]), nclient4.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	offered := func(want string) {
		t.Helper()
		offer, err := client.DiscoverOffer(t.Context())
		if err != nil || offer.YourIPAddr.String() != want {
			t.Errorf("offered %v, %v; want %s", offer, err, want)
		}
	}
	first := netip.MustParseAddr("10.0.0.100")
	tell(Lease{MAC: node2, Addr: first, Until: time.Now().Add(time.Hour)})
	offered("10.0.0.102")
	// The card gets the same address from every server.
	tell(Lease{MAC: laptop, Addr: first, Until: time.Now().Add(time.Hour)})
	offered("10.0.0.100")
}

func TestAServerThatIsCutOffIsSilent(t *testing.T) {
	t.Parallel()
	store := &sharedStore{told: make(chan []Lease), sick: errors.New("etcd does not answer")}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: store})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range []*dhcpv4.DHCPv4{discover(laptop), request(laptop, wants("10.9.9.9"))} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			if _, ok := s.handle(p.ToBytes(), Socket{}, netip.AddrPort{}); ok {
				t.Error("it answers by what it last knew")
			}
		})
	}
}
