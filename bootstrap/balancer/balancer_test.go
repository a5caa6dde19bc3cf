package balancer

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// server answers every connection with its name and what it was told.
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
				// Everything until the client's FIN, then the answer: only a balancer
				// that passes half-closes on gets it.
				said, err := io.ReadAll(c)
				if err == nil {
					_, _ = c.Write(append([]byte(name+":"), said...))
				}
			}()
		}
	}()
	return ln.Addr().String()
}

func start(t *testing.T, backends ...string) (*Balancer, string) {
	t.Helper()
	b := &Balancer{Log: slog.New(slog.DiscardHandler)}
	b.SetBackends(backends)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
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
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
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
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := gone.Addr().String()
	_ = gone.Close()
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

func TestTheListChangesAtRunTimeAndClosesWhatLeft(t *testing.T) {
	t.Parallel()
	a, b2 := server(t, "a"), server(t, "b")
	b, at := start(t, a)
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := ask(t, at, "x"); got != "a:x" { // by now c is accepted as well
		t.Fatalf("got %q", got)
	}
	b.SetBackends([]string{b2, b2})
	if got := b.Backends(); !slices.Equal(got, []string{b2}) {
		t.Errorf("got %v", got)
	}
	if got := ask(t, at, "x"); got != "b:x" {
		t.Errorf("got %q", got)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
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
	if err := handshake(context.Background(), ts.Listener.Addr().String()); err != nil {
		t.Errorf("TLS server: %v", err)
	}
	b := &Balancer{Log: slog.New(slog.DiscardHandler)}
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
