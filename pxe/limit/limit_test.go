package limit

import (
	"net"
	"net/http"
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
