package balancer

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server greets every connection with its name and repeats what it was told.
func server(t *testing.T, name string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Write([]byte(name + ":"))
				// Everything until the client's FIN, then the answer: only a balancer
				// that passes half-closes on gets it.
				if said, err := io.ReadAll(c); err == nil {
					_, _ = c.Write(said)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func start(t *testing.T, backends ...string) (*Balancer, string) {
	t.Helper()
	// These servers speak no TLS: the second check would find them ill.
	b := &Balancer{Log: slog.New(slog.DiscardHandler), every: time.Hour, within: time.Hour}
	b.SetBackends(backends)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return b, ln.Addr().String()
}

func ask(t *testing.T, address, what string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(what)); err != nil {
		return "closed"
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "closed"
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return "closed"
	}
	return string(got)
}

func TestConnectionsAreSpreadAndHalfClosed(t *testing.T) {
	t.Parallel()
	_, at := start(t, server(t, "a"), server(t, "b"))
	got := []string{ask(t, at, "1"), ask(t, at, "1"), ask(t, at, "1"), ask(t, at, "1")}
	slices.Sort(got)
	if want := []string{"a:1", "a:1", "b:1", "b:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestADeadBackendIsPassedOver(t *testing.T) {
	t.Parallel()
	dead := refusing(t)
	_, at := start(t, dead, server(t, "b"))
	for range 4 {
		if got := ask(t, at, "x"); got != "b:x" {
			t.Fatalf("got %q", got)
		}
	}
	_, none := start(t, dead)
	if got := ask(t, none, "x"); got != "" && got != "closed" {
		t.Errorf("got %q without any backend", got)
	}
}

// refusing is an address that refuses connections. It is taken, or another test
// could get its port.
func refusing(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

func TestTheListChangesAtRunTimeAndClosesWhatLeft(t *testing.T) {
	t.Parallel()
	a, b2 := server(t, "a"), server(t, "b")
	b, at := start(t, a)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, 2)
	if _, err := io.ReadFull(c, greeting); err != nil || string(greeting) != "a:" {
		t.Fatalf("got %q, %v", greeting, err)
	}
	b.SetBackends([]string{b2, b2})
	if got := b.Backends(); !slices.Equal(got, []string{b2}) {
		t.Errorf("got %v", got)
	}
	if got := ask(t, at, "x"); got != "b:x" {
		t.Errorf("got %q", got)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to the old backend still gives data")
	} else if n, ok := err.(net.Error); ok && n.Timeout() {
		t.Error("the connection to the old backend is still open")
	}
}

func TestHealthIsATLSHandshake(t *testing.T) {
	t.Parallel()
	ts := httptest.NewTLSServer(nil)
	defer ts.Close()
	b := &Balancer{Log: slog.New(slog.DiscardHandler), within: time.Hour}
	if err := b.handshake(context.Background(), ts.Listener.Addr().String()); err != nil {
		t.Errorf("TLS server: %v", err)
	}
	b.SetBackends([]string{"192.0.2.1:6443"})
	x := b.backends[0]
	var closed atomic.Bool
	x.conns[closer{&closed}] = true
	for i := range failures {
		if closed.Load() {
			t.Errorf("closed after %d failures", i)
		}
		b.note(x, io.ErrUnexpectedEOF)
	}
	if !closed.Load() || x.fails < failures {
		t.Error("connections to a backend that went away stay open")
	}
	b.note(x, nil)
	if x.fails != 0 {
		t.Error("one good answer does not make it healthy")
	}
}

type closer struct{ done *atomic.Bool }

func (c closer) Close() error                   { c.done.Store(true); return nil }
func (closer) Read([]byte) (int, error)         { return 0, io.EOF }
func (closer) Write(p []byte) (int, error)      { return len(p), nil }
func (closer) LocalAddr() net.Addr              { return nil }
func (closer) RemoteAddr() net.Addr             { return nil }
func (closer) SetDeadline(time.Time) error      { return nil }
func (closer) SetReadDeadline(time.Time) error  { return nil }
func (closer) SetWriteDeadline(time.Time) error { return nil }
