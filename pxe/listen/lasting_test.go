//go:build linux

package listen

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// links are interfaces by name, in memory.
type links struct {
	mu  sync.Mutex
	all map[string]link
}

type link struct {
	index   int
	address string
}

func (l *links) set(name string, to link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if delete(l.all, name); to.index > 0 {
		l.all[name] = to
	}
}

func (l *links) byName(name string) (*net.Interface, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if has, ok := l.all[name]; ok {
		return &net.Interface{Name: name, Index: has.index}, nil
	}
	return nil, nil
}

func (l *links) addresses(ifi *net.Interface) ([]netip.Prefix, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.all[ifi.Name].address; a != "" {
		return []netip.Prefix{netip.MustParsePrefix(a)}, nil
	}
	return nil, nil
}

// outlives is a socket of eth0.20, with what tells of changes.
type outlives struct {
	*lasting
	on   *links
	log  bytes.Buffer
	next chan error
	// looked is sent to when all is as the interfaces are.
	looked chan struct{}
	ended  chan error
	opened []net.PacketConn
	fail   error
}

func newOutlives(t *testing.T) *outlives {
	t.Helper()
	o := &outlives{on: &links{all: map[string]link{"eth0.20": {7, "10.0.7.1/24"}}}, next: make(chan error), looked: make(chan struct{}), ended: make(chan error, 1)}
	var s Sockets
	ifi, _ := o.on.byName("eth0.20")
	conn, err := s.last(t.Context(), ifi, netip.MustParseAddr("10.0.7.1"), func(ctx context.Context, ifi *net.Interface) (net.PacketConn, error) {
		if o.fail != nil {
			return nil, o.fail
		}
		conn, err := packet(t.Context(), "127.0.0.1:0", "")
		if err != nil {
			return nil, err
		}
		o.opened = append(o.opened, from{conn, nil}) // as DHCP's is
		return o.opened[len(o.opened)-1], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	o.lasting = conn.(*lasting)
	go func() {
		next := func() error {
			o.looked <- struct{}{}
			return <-o.next
		}
		o.ended <- s.keep(t.Context(), o.on, next, slog.New(slog.NewTextHandler(&o.log, nil)))
	}()
	<-o.looked
	t.Cleanup(func() { conn.Close() })
	return o
}

// becomes makes the interface another one, and waits until the socket has followed.
func (o *outlives) becomes(to link) {
	o.on.set("eth0.20", to)
	o.next <- nil
	<-o.looked
}

func (o *outlives) sentTo(t *testing.T, conn net.PacketConn, text string) {
	t.Helper()
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestASocketOutlivesItsInterface(t *testing.T) {
	t.Parallel()
	t.Run("packet by packet", func(t *testing.T) {
		outlivesItsInterface(t, func(o *outlives) datagram.Conn { return datagram.Of(struct{ net.PacketConn }{o}) })
	})
	t.Run("in batches", func(t *testing.T) {
		outlivesItsInterface(t, func(o *outlives) datagram.Conn { return datagram.Of(o) })
	})
}

func outlivesItsInterface(t *testing.T, as func(*outlives) datagram.Conn) {
	t.Parallel()
	o := newOutlives(t)
	conn := as(o)
	heard := make(chan string)
	go func() {
		defer close(heard)
		in := datagram.New(100)
		for conn.ReadBatch(in) == nil {
			for i := range in.Len() {
				heard <- string(in.Data(i))
			}
		}
	}()
	o.sentTo(t, o.opened[0], "first")
	if got := <-heard; got != "first" {
		t.Fatalf("got %q", got)
	}
	o.becomes(link{7, "10.0.7.1/24"}) // something else has changed
	if len(o.opened) != 1 {
		t.Error("opened anew for nothing")
	}
	o.becomes(link{})
	out, failed := datagram.New(0), 0
	out.Add(netip.MustParseAddrPort("127.0.0.1:9"), true, func([]byte) []byte { return []byte("x") })
	conn.WriteBatch(out, func(i int, err error) {
		if failed++; i != 0 || !strings.Contains(err.Error(), "there is no interface eth0.20 now") {
			t.Errorf("writing packet %d without an interface: %v", i, err)
		}
	})
	if failed != 1 || out.Len() != 0 {
		t.Errorf("without an interface %d packets failed and %d are left, want 1 and none", failed, out.Len())
	}
	o.becomes(link{8, ""}) // without an address as yet
	o.becomes(link{8, "10.0.7.9/24"})
	if len(o.opened) != 1 {
		t.Error("opened where the address is not ours")
	}
	o.becomes(link{8, "10.0.7.1/24"})
	o.sentTo(t, o.opened[1], "second")
	if got := <-heard; got != "second" {
		t.Fatalf("got %q", got)
	}
	o.becomes(link{9, "10.0.7.1/24"}) // before anybody saw that it was gone
	o.sentTo(t, o.opened[2], "third")
	if got := <-heard; got != "third" {
		t.Fatalf("got %q", got)
	}
	for i, conn := range o.opened[:2] {
		if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("socket %d is still open: %v", i, err)
		}
	}
	if got := o.log.String(); strings.Count(got, "an interface is gone") != 2 || strings.Count(got, "an interface is back") != 2 || !strings.Contains(got, "interface=eth0.20") {
		t.Errorf("the log says\n%s", got)
	}
	o.Close()
	if _, ok := <-heard; ok {
		t.Error("a closed socket was read")
	}
}

func TestAClosedSocketStaysClosed(t *testing.T) {
	t.Parallel()
	o := newOutlives(t)
	o.becomes(link{})
	read := make(chan error, 1)
	go func() {
		_, _, err := o.ReadFrom(make([]byte, 1))
		read <- err
	}()
	o.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("who reads while there is no interface gets %v", err)
	}
	o.becomes(link{8, "10.0.7.1/24"})
	if _, err := o.opened[1].WriteTo(nil, o.opened[1].LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket was opened after the end: %v", err)
	}
}

func TestWhatIsInTheWayEndsTheServer(t *testing.T) {
	t.Parallel()
	o := newOutlives(t)
	o.fail = errors.New("port 67 is taken")
	o.on.set("eth0.20", link{8, "10.0.7.1/24"})
	o.next <- nil
	if err := <-o.ended; err == nil || err.Error() != "opening the socket of the interface eth0.20 anew: port 67 is taken" {
		t.Errorf("got %v", err)
	}
	o = newOutlives(t)
	o.next <- errors.New("netlink is gone")
	if err := <-o.ended; err == nil || err.Error() != "watching the network's interfaces: netlink is gone" {
		t.Errorf("got %v", err)
	}
}

// The kernel tells anybody about interfaces.
func TestKeepOpenEnds(t *testing.T) {
	t.Parallel()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	var s Sockets
	conn, err := s.last(t.Context(), lo, netip.MustParseAddr("127.0.0.1"), func(context.Context, *net.Interface) (net.PacketConn, error) {
		return net.ListenPacket("udp4", "127.0.0.1:0")
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, sockets := range []Sockets{s, {}} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- sockets.KeepOpen(ctx, slog.New(slog.DiscardHandler)) }()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
