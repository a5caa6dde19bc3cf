package limit

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := New(inner, 1, 2)
	accepted := make(chan net.Conn, 2)
	go func() {
		for range 2 {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 2 {
		c, err := net.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	if _, ok := first.(*net.TCPConn); !ok {
		t.Errorf("the connection is a %T, which costs sendfile", first)
	}
	select {
	case <-accepted:
		t.Error("a second connection is accepted beside the first")
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	l.Left(first, http.StateClosed)
	(<-accepted).Close()
}

func TestOneAddressHasItsShareOfTheConnections(t *testing.T) {
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := New(inner, 8, 1)
	accepted := make(chan net.Conn, 3)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from byte) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, from)}}
		c, err := d.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial(1)
	first := <-accepted
	if n, err := dial(1).Read(make([]byte, 1)); err == nil {
		t.Errorf("the second connection of the address is open, and sent %d bytes", n)
	}
	dial(2)
	other := <-accepted
	if from := source(other).String(); from != "127.0.0.2" {
		t.Errorf("accepted from %s", from)
	}
	l.Left(first, http.StateClosed)
	dial(1)
	again := <-accepted
	for _, c := range []net.Conn{first, other, again} {
		c.Close()
	}
}

func TestWhatCountsAsOneClient(t *testing.T) {
	t.Parallel()
	leased := netip.MustParseAddr("fd00::1000")
	single := func(a netip.Addr) bool { return a == leased }
	for _, c := range [][2]string{
		{"10.0.0.9", "10.0.0.9"}, {"::ffff:10.0.0.9", "10.0.0.9"},
		{"fd00::9", "fd00::"}, {"fd00:0:0:1::9", "fd00:0:0:1::"}, {"fd00::1000", "fd00::1000"}, {"fe80::1%eth0", "fe80::"},
	} {
		if got := Source(netip.MustParseAddr(c[0]), single).String(); got != c[1] {
			t.Errorf("%s counts as %s, want %s", c[0], got, c[1])
		}
	}
	if got := Source(netip.Addr{}, nil); got.IsValid() {
		t.Errorf("who has no address counts as %s", got)
	}
}

// Under a server that speaks TLS itself, another connection ends than was accepted.
func TestWhatEndsUnderTLSIsCounted(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := New(inner, 2, 1)
	for range 3 {
		client, err := net.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		l.Left(tls.Server(accepted, &tls.Config{}), http.StateClosed)
		client.Close()
		accepted.Close()
	}
	if len(l.by) != 0 || len(l.held) != 0 {
		t.Errorf("%v are counted still, by %v", l.by, l.held)
	}
}
