package dhcp

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// wire is one end of a broadcast network with two stations, in memory: any user
// can run it, and both ends may close at any time.
type wire struct {
	in, out chan []byte
	// closed is this end's; gone is closed once.
	closed chan struct{}
	once   *sync.Once

	mu       sync.Mutex
	deadline time.Time
}

func newWire() (*wire, *wire) {
	a, b := make(chan []byte, 256), make(chan []byte, 256)
	return &wire{in: a, out: b, closed: make(chan struct{}), once: &sync.Once{}}, &wire{in: b, out: a, closed: make(chan struct{}), once: &sync.Once{}}
}

func (w *wire) ReadFrom(p []byte) (int, net.Addr, error) {
	w.mu.Lock()
	deadline := w.deadline
	w.mu.Unlock()
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timeout = time.After(time.Until(deadline))
	}
	select {
	case b := <-w.in:
		return copy(p, b), &net.UDPAddr{IP: net.IPv4bcast, Port: 68}, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	case <-timeout:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (w *wire) WriteTo(p []byte, _ net.Addr) (int, error) {
	select {
	case <-w.closed:
		return 0, net.ErrClosed
	default:
	}
	select {
	case w.out <- append([]byte(nil), p...):
	default: // a full socket buffer drops
	}
	return len(p), nil
}

func (w *wire) Close() error        { w.once.Do(func() { close(w.closed) }); return nil }
func (w *wire) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4zero, Port: 67} }
func (w *wire) SetReadDeadline(t time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = t
	return nil
}
func (w *wire) SetWriteDeadline(time.Time) error { return nil }
func (w *wire) SetDeadline(t time.Time) error    { return w.SetReadDeadline(t) }

// memStore keeps leases in memory and can be made to fail.
type memStore struct {
	mu     sync.Mutex
	leases []Lease
	fail   error
	// asked is told about each call of Append; it may be nil.
	asked chan struct{}
}

func (m *memStore) Load() ([]Lease, error) { return nil, nil }

func (m *memStore) Append(l []Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked != nil {
		m.asked <- struct{}{}
	}
	if m.fail != nil {
		return m.fail
	}
	m.leases = append(m.leases, l...)
	return nil
}

type recorder struct {
	mu     sync.Mutex
	events []boot.Event
}

func (r *recorder) Record(e boot.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func serve(t *testing.T, store Store, rec boot.Recorder) (client *wire) {
	t.Helper()
	return serveConfig(t, Config{Address: us, Files: files, Source: source(), Store: store, Recorder: rec})
}

func serveConfig(t *testing.T, cfg Config) (client *wire) {
	t.Helper()
	s, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server, client := newWire()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, Socket{Conn: server}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	return client
}

func TestForeignClientGetsAndReleasesALease(t *testing.T) {
	store, rec := &memStore{}, &recorder{}
	conn := serve(t, store, rec)
	client, err := nclient4.NewWithConn(conn, net.HardwareAddr(node1[:]), nclient4.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	lease, err := client.Request(t.Context(), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient")))
	if err != nil {
		t.Fatal(err)
	}
	if got := lease.ACK.YourIPAddr.String(); got != "10.0.0.11" {
		t.Errorf("got %s", got)
	}
	store.mu.Lock()
	kept := append([]Lease{}, store.leases...)
	store.mu.Unlock()
	if len(kept) != 1 || kept[0].Addr != netip.MustParseAddr("10.0.0.11") || kept[0].MAC != node1 || kept[0].Machine != "node1" {
		t.Errorf("acknowledged, but the store holds %v", kept)
	}
	if _, err := client.Renew(t.Context(), lease); err != nil {
		t.Errorf("renewing: %v", err)
	}
	if err := client.Release(lease); err != nil {
		t.Fatal(err)
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	want := "DISCOVER from firmware: offered 10.0.0.11, boot program undionly.kpxe; it is not armed"
	if got := rec.events[0].Detail; got != want {
		t.Errorf("the first event is %q, want %q", got, want)
	}
}

func TestNothingIsAcknowledgedThatIsNotDurable(t *testing.T) {
	store := &memStore{fail: errors.New("disk full"), asked: make(chan struct{}, 100)}
	conn := serve(t, store, nil)
	// The store is asked for one request after the other: when it is asked for the
	// second one, all that the first one brings about has been sent.
	for range 2 {
		if _, err := conn.WriteTo(request(node1, wants("10.0.0.11"), toServer("10.0.0.1")).ToBytes(), nil); err != nil {
			t.Fatal(err)
		}
		<-store.asked
	}
	if n := len(conn.in); n != 0 {
		t.Fatalf("acknowledged although the store failed: %d answers", n)
	}
	store.mu.Lock()
	store.fail = nil
	store.mu.Unlock()
	client, err := nclient4.NewWithConn(conn, net.HardwareAddr(node1[:]), nclient4.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Request(t.Context()); err != nil {
		t.Errorf("after the store works again: %v", err)
	}
}

func TestGarbageNeitherStopsNorFattensTheServer(t *testing.T) {
	conn := serve(t, &memStore{}, nil)
	r := rand.New(rand.NewPCG(1, 2))
	valid := discover(laptop, pxe(7), uuid(0x11)).ToBytes()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 50000 {
		b := append([]byte(nil), valid...)
		switch r.IntN(3) {
		case 0: // noise
			b = b[:r.IntN(len(b))]
			for i := range b {
				b[i] = byte(r.Uint32())
			}
		case 1: // a flipped packet from another card
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			b[33] = byte(r.Uint32())
			b[32] = byte(r.Uint32())
		case 2: // too long
			b = append(b, make([]byte, maxPacket)...)
		}
		conn.out <- b // waits for the server, so that it really reads all
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	for len(conn.in) > 0 {
		<-conn.in
	}
	client, err := nclient4.NewWithConn(conn, net.HardwareAddr(node1[:]), nclient4.WithTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Request(t.Context()); err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

func FuzzHandle(f *testing.F) {
	for _, m := range []*dhcpv4.DHCPv4{
		discover(node1, pxe(7), uuid(0x33), opt(61, 1, 2)), discover(laptop, ipxe, relayed("10.0.7.1"), opt(82, 1, 2, 3, 4)),
		request(node1, wants("10.0.0.11"), toServer("10.0.0.1")), request(laptop, from("10.0.0.100")),
		packet(dhcpv4.MessageTypeInform, laptop, from("10.0.0.9")), packet(dhcpv4.MessageTypeDecline, laptop, wants("10.0.0.100")),
	} {
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			p, _ := s.handle(b, Socket{}, netip.AddrPort{})
			if p.reply != nil {
				if !p.to.Addr().Is4() {
					t.Errorf("a reply to %v", p.to)
				}
				if _, err := dhcpv4.FromBytes(p.reply); err != nil || len(p.reply) < 300 {
					t.Errorf("reply of %d bytes: %v", len(p.reply), err)
				}
			}
		}
		if s.table.Len() > 2 {
			t.Errorf("one client has %d leases", s.table.Len())
		}
	})
}

// BenchmarkExchange is DISCOVER and REQUEST of 1,000 machines without the disk.
func BenchmarkExchange(b *testing.B) {
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}})
	if err != nil {
		b.Fatal(err)
	}
	d, r := discover(node1, pxe(7), uuid(1)).ToBytes(), request(node1, pxe(7), wants("10.0.0.11"), toServer("10.0.0.1")).ToBytes()
	for b.Loop() {
		s.handle(d, Socket{}, netip.AddrPort{})
		s.handle(r, Socket{}, netip.AddrPort{})
	}
}

// BenchmarkExhaustedPool is a flood of invented cards against a full pool of 64k.
func BenchmarkExhaustedPool(b *testing.B) {
	table := NewTable(nil)
	first, last := netip.MustParseAddr("10.1.0.0"), netip.MustParseAddr("10.1.255.255")
	i := uint32(0)
	for a := first; !last.Less(a); a = a.Next() {
		i++
		table.put(Lease{MAC: MAC{2, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, Addr: a, Until: noon.Add(time.Hour)})
	}
	for b.Loop() {
		if _, ok := table.Free(first, last, Share{}, func(netip.Addr) bool { return false }, noon); ok {
			b.Fatal("not full")
		}
	}
}

// iPXE sends what it says to the address of option 7; firmware does not know it.
func TestIPXEIsToldWhereToSendItsLog(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		syslog netip.Addr
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"iPXE", us, discover(laptop, ipxe), us.String()},
		{"firmware", us, discover(laptop, pxe(7)), ""},
		{"iPXE, and nobody hears", netip.Addr{}, discover(laptop, ipxe), ""},
	} {
		with := files
		with.Syslog = c.syslog
		s, err := NewServer(Config{Address: us, Files: with, Source: source(), Store: &memStore{}})
		if err != nil {
			t.Fatal(err)
		}
		p, ok := s.handle(c.packet.ToBytes(), Socket{}, netip.AddrPort{})
		if !ok {
			t.Fatalf("%s: no answer", c.name)
		}
		offer, err := dhcpv4.FromBytes(p.reply)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if b := offer.Options.Get(dhcpv4.OptionLogServer); b != nil {
			got = net.IP(b).String()
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}
