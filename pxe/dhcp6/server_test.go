package dhcp6

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/imagectl/imagectl/pxe/boot"
)

// wire is a socket without a network: the test is on the other side.
type wire struct {
	net.PacketConn
	in     chan sent
	out    chan sent
	closed chan struct{}
	once   sync.Once
}

type sent struct {
	packet []byte
	addr   *net.UDPAddr
}

func newWire() *wire {
	return &wire{in: make(chan sent, 16), out: make(chan sent, 16), closed: make(chan struct{})}
}

func (w *wire) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case s := <-w.in:
		return copy(p, s.packet), s.addr, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	}
}

func (w *wire) WriteTo(p []byte, to net.Addr) (int, error) {
	select {
	case w.out <- sent{append([]byte(nil), p...), to.(*net.UDPAddr)}:
		return len(p), nil
	case <-w.closed:
		return 0, net.ErrClosed
	}
}

func (w *wire) Close() error { w.once.Do(func() { close(w.closed) }); return nil }

// source answers for one kind of machine.
type source struct{ answer boot.Answer }

func (s source) Decide(boot.Machine) boot.Answer     { return s.answer }
func (source) Ignition(boot.Machine) ([]byte, error) { return nil, errors.New("not here") }
func (source) Network6() *boot.Network6              { return network() }

// store keeps leases in memory once the test lets it.
type store struct {
	mu     sync.Mutex
	leases []Lease
	allow  chan error
}

func (s *store) Load() ([]Lease, error) { return nil, nil }

func (s *store) Append(l []Lease) error {
	if err := <-s.allow; err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leases = append(s.leases, l...)
	return nil
}

type events chan boot.Event

func (e events) Record(x boot.Event) { e <- x }

// serve starts a server on a wire.
func serve(t *testing.T, st Store) (*Server, *wire, events) {
	t.Helper()
	e := env()
	recorded := make(events, 64)
	s, err := NewServer(Config{Address: server, DUID: ours, Files: e.Files, Source: source{e.Answer(boot.Machine{})}, Store: st, Recorder: recorded, Now: func() time.Time { return start }})
	if err != nil {
		t.Fatal(err)
	}
	w := newWire()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, w) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, w, recorded
}

func from(zone string) *net.UDPAddr {
	return &net.UDPAddr{IP: peer.AsSlice(), Port: 40000, Zone: zone}
}

func TestReplyWaitsForTheLease(t *testing.T) {
	st := &store{allow: make(chan error, 1)}
	s, w, recorded := serve(t, st)
	request := message(dhcpv6.MessageTypeRequest, append(pxe(), client(), chosen(), ia(1))...).ToBytes()

	st.allow <- errors.New("the disk is full")
	w.in <- sent{request, from("eth0")}
	if e := <-recorded; !strings.Contains(e.Detail, "REQUEST from firmware by IPv6: gave fd00::10") {
		t.Errorf("got %q", e.Detail)
	}
	if e := <-recorded; e.Refusal.Code != "store-failed" {
		t.Errorf("got %+v", e)
	}

	w.in <- sent{request, from("eth0")}
	st.allow <- nil
	got := <-w.out
	st.mu.Lock()
	kept := len(st.leases)
	st.mu.Unlock()
	if kept != 1 {
		t.Errorf("answered with %d leases kept, want 1", kept)
	}
	if got.addr.Port != dhcpv6.DefaultClientPort || got.addr.Zone != "eth0" || !got.addr.IP.Equal(peer.AsSlice()) {
		t.Errorf("the answer went to %s", got.addr)
	}
	reply, err := dhcpv6.MessageFromBytes(got.packet)
	if err != nil || reply.MessageType != dhcpv6.MessageTypeReply {
		t.Fatalf("got %v, %v", reply, err)
	}
	if a, ok := netip.AddrFromSlice(reply.Options.OneIANA().Options.OneAddress().IPv6Addr); !ok {
		t.Error("no address")
	} else if mac, ok := s.Card(a); !ok || mac.String() != "52:54:00:98:00:01" {
		t.Errorf("%s is said to be of %s", a, mac)
	}
}

func TestOfferDoesNotWait(t *testing.T) {
	_, w, _ := serve(t, &store{})
	solicit := message(dhcpv6.MessageTypeSolicit, client(), ia(1))
	w.in <- sent{[]byte{1, 2}, from("eth0")} // too short: ignored
	w.in <- sent{solicit.ToBytes(), from("eth0")}
	if got := <-w.out; got.packet[0] != byte(dhcpv6.MessageTypeAdvertise) {
		t.Errorf("got %x", got.packet)
	}
	relay := &net.UDPAddr{IP: net.ParseIP("fd01::1"), Port: 547}
	w.in <- sent{forward(solicit, 0, "fd01::1", peer.String()).ToBytes(), relay}
	if got := <-w.out; got.packet[0] != byte(dhcpv6.MessageTypeRelayReply) || got.addr.Port != dhcpv6.DefaultServerPort || !got.addr.IP.Equal(relay.IP) {
		t.Errorf("got %x to %s", got.packet, got.addr)
	}
}
