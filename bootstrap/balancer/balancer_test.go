package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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

// apiServer is what answers /readyz; a status of 0 lets it hang, and one below breaks
// the connection.
func apiServer(t *testing.T) (*backend, *atomic.Int32) {
	t.Helper()
	var status atomic.Int32
	status.Store(http.StatusOK)
	release := make(chan struct{})
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/readyz?exclude=etcd" || len(r.TLS.PeerCertificates) > 0 {
			t.Errorf("asked for %s", r.RequestURI)
		}
		code := int(status.Load())
		if code < 0 {
			panic(http.ErrAbortHandler)
		}
		if code == 0 {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		w.WriteHeader(code)
	}))
	t.Cleanup(func() { close(release); ts.Close() })
	return newBackend(ts.Listener.Addr().String()), &status
}

func TestHealthIsWhatReadyzSays(t *testing.T) {
	t.Parallel()
	x, status := apiServer(t)
	b := &Balancer{Log: slog.New(slog.DiscardHandler)}
	for code, want := range map[int32]bool{200: true, 401: true, 403: true, 404: true, 429: false, 500: false, 503: false} {
		status.Store(code)
		if got, err := b.readyz(t.Context(), x, time.Hour); got != want || err != nil {
			t.Errorf("%d: got %v, %v", code, got, err)
		}
	}
	status.Store(0)
	if _, err := b.readyz(t.Context(), x, time.Millisecond); err == nil {
		t.Error("no answer is taken for one")
	}
	status.Store(200)
	if got, err := b.readyz(t.Context(), x, time.Hour); !got || err != nil {
		t.Errorf("after it hung: %v, %v", got, err)
	}
}

// A silent API server may be a slow one, which every node would keep slow by asking.
func TestASilentServerIsAskedEverMoreRarely(t *testing.T) {
	t.Parallel()
	b := &Balancer{Log: slog.New(slog.DiscardHandler)}
	b.SetBackends([]string{"a:1", "b:1"})
	rounds := func(n int, err error) (asked []int) {
		for round := range n {
			for _, x := range b.due() {
				if x.address == "b:1" {
					b.note(x, true, nil)
					continue
				}
				asked = append(asked, round)
				for !b.note(x, true, err) {
				}
			}
		}
		return asked
	}
	silent := errors.New("no answer")
	if got, want := rounds(32, silent), []int{0, 1, 3, 7, 15, 23, 31}; !slices.Equal(got, want) {
		t.Errorf("the silent one was asked in the rounds %v, want %v", got, want)
	}
	if got := rounds(9, nil); !slices.Equal(got, []int{7, 8}) {
		t.Errorf("one that answers again was asked in the rounds %v, want at the end of its pause, and in each from then on", got)
	}
	if got := rounds(4, silent); !slices.Equal(got, []int{0, 1, 3}) {
		t.Errorf("one that fell silent again was asked in the rounds %v, want 0, 1 and 3", got)
	}
	b.SetBackends([]string{"a:1"})
	if got := rounds(20, silent); got != nil {
		t.Errorf("the only one was asked in the rounds %v, want never", got)
	}
}

func TestWhoIsLeftAndWhoKeepsItsConnections(t *testing.T) {
	t.Parallel()
	var closed [2]atomic.Bool
	b := &Balancer{Log: slog.New(slog.DiscardHandler)}
	b.SetBackends([]string{"192.0.2.1:6443", "192.0.2.2:6443"})
	one, two := b.backends[0], b.backends[1]
	one.conns[closer{&closed[0]}], two.conns[closer{&closed[1]}] = true, true
	dead := io.ErrUnexpectedEOF
	ready := func(x *backend, times int) (enough bool) {
		for range times {
			enough = b.note(x, true, nil)
		}
		return enough
	}
	for i, step := range []struct {
		what   string
		do     func() bool
		enough bool
		// order is whom a new connection tries, closed whose connections are.
		order  string
		closed [2]bool
	}{
		{"both are ready", func() bool { return b.note(one, true, nil) && b.note(two, true, nil) }, true, "12", [2]bool{}},
		{"one says once that it is not ready", func() bool { return b.note(one, false, nil) }, false, "21", [2]bool{}},
		{"and is ready again, which it has to prove", func() bool { return ready(one, probation-1) }, false, "21", [2]bool{}},
		{"and is back", func() bool { return ready(one, 1) }, true, "12", [2]bool{}},
		{"it says so again, the first time in a row", func() bool { return b.note(one, false, nil) }, false, "21", [2]bool{}},
		{"then nobody is ready", func() bool { return b.note(two, false, nil) }, true, "12", [2]bool{}},
		{"one is still not", func() bool { return b.note(one, false, nil) }, true, "12", [2]bool{}},
		{"nor at the third time", func() bool { return b.note(one, false, nil) }, true, "12", [2]bool{}},
		{"two is the first that finds etcd's new leader", func() bool { return ready(two, 1) }, true, "21", [2]bool{}},
		{"and one the second", func() bool { return ready(one, 1) }, true, "12", [2]bool{}},
		{"two is slow to answer", func() bool { two.asked = time.Now().Add(-time.Hour); return true }, true, "12", [2]bool{}},
		{"one is not ready, and again, while two may not be either", func() bool { return b.note(one, false, nil) && b.note(one, false, nil) }, true, "21", [2]bool{}},
		{"both are ready", func() bool { return ready(two, 1) && ready(one, 1) }, true, "12", [2]bool{}},
		{"one misses a check", func() bool { return b.note(one, false, dead) }, false, "12", [2]bool{}},
		{"the other one is not ready", func() bool { return b.note(two, false, nil) }, false, "12", [2]bool{}},
		{"one misses another: it is the last", func() bool { return b.note(one, false, dead) }, true, "21", [2]bool{}},
		{"the other one says nothing either", func() bool { return b.note(two, false, dead) }, true, "21", [2]bool{}},
		{"both are gone: nobody is better", func() bool { return b.note(two, false, dead) }, true, "12", [2]bool{}},
		{"the other one is back", func() bool { return ready(two, 1) }, true, "21", [2]bool{true, false}},
		{"one is back", func() bool { return ready(one, 1) }, true, "12", [2]bool{true, false}},
		{"the other one's etcd dies", func() bool { return b.note(two, false, nil) }, false, "12", [2]bool{true, false}},
		{"and is still dead", func() bool { return b.note(two, false, nil) }, true, "12", [2]bool{true, true}},
		{"the other one is ready again", func() bool {
			two.conns[closer{&closed[1]}] = true
			closed[1].Store(false)
			return ready(two, probation)
		}, true, "12", [2]bool{true, false}},
		{"it is not ready", func() bool { return b.note(two, false, nil) }, false, "12", [2]bool{true, false}},
		{"and then says nothing", func() bool { return b.note(two, false, dead) }, true, "12", [2]bool{true, true}},
		{"it answers again", func() bool {
			two.conns[closer{&closed[1]}] = true
			closed[1].Store(false)
			return ready(two, probation)
		}, true, "12", [2]bool{true, false}},
		{"its etcd dies at each write", func() bool { return b.note(two, false, nil) }, false, "12", [2]bool{true, false}},
		{"and is started again", func() bool { return ready(two, 2) }, false, "12", [2]bool{true, false}},
		{"until the next one", func() bool { return b.note(two, false, nil) }, true, "12", [2]bool{true, true}},
		{"which was no proof", func() bool { return ready(two, probation-1) }, false, "12", [2]bool{true, true}},
		{"nor is this, with a question that it did not answer", func() bool { return b.note(two, false, dead) && ready(two, probation-1) }, false, "12", [2]bool{true, true}},
		{"one misses a check, and another: there is nobody else", func() bool { return !b.note(one, false, dead) && b.note(one, false, dead) }, true, "21", [2]bool{true, true}},
		{"the other one need not prove any more", func() bool { return ready(two, 1) }, true, "21", [2]bool{true, true}},
	} {
		if got := step.do(); got != step.enough {
			t.Errorf("%d, %s: enough is %v", i, step.what, got)
		}
		b.next = 0
		got := ""
		for _, x := range b.order() {
			got += map[*backend]string{one: "1", two: "2"}[x]
		}
		if is := [2]bool{closed[0].Load(), closed[1].Load()}; got != step.order || is != step.closed {
			t.Errorf("%d, %s: order %s, closed %v; want %s, %v", i, step.what, got, is, step.order, step.closed)
		}
	}
}

// A client that was on a server that answers no more is let go, and comes to the
// other one.
func TestAServerThatDoesNotAnswerIsLeft(t *testing.T) {
	t.Parallel()
	left(t, -1)
}

// The same for one that goes on to answer, but has lost its etcd.
func TestAServerThatStaysUnreadyIsLeft(t *testing.T) {
	t.Parallel()
	left(t, http.StatusInternalServerError)
}

// One that is not ready has less time to answer when it is asked again.
func TestAServerThatIsNotReadyAndThenHangsIsLeft(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var asked atomic.Int32
	ts := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer ts.Close()
	defer close(release)
	var closed atomic.Bool
	b := &Balancer{Log: slog.New(slog.DiscardHandler), within: time.Hour, brief: time.Millisecond}
	b.SetBackends([]string{ts.Listener.Addr().String(), "192.0.2.1:6443"})
	x := b.backends[slices.IndexFunc(b.backends, func(x *backend) bool { return x.address == ts.Listener.Addr().String() })]
	x.conns[closer{&closed}] = true
	b.ask(t.Context(), x)
	// The second question may end before it has got through TLS, so the handler does not count.
	if !closed.Load() || x.refusals != 1 || x.fails != 1 {
		t.Errorf("it was not ready %d times and silent %d times, and its connection is closed: %v", x.refusals, x.fails, closed.Load())
	}
}

// While it is asked it counts as well for a moment only.
func TestAServerThatIsBeingAskedIsNobodyToGoTo(t *testing.T) {
	t.Parallel()
	x, status := apiServer(t)
	b := &Balancer{Log: slog.New(slog.DiscardHandler), within: time.Hour, brief: time.Millisecond}
	b.SetBackends([]string{x.address})
	if !b.wellNow() {
		t.Fatal("it is not well before it is asked")
	}
	status.Store(0)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.ask(ctx, b.backends[0]) }()
	for b.wellNow() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}

func (b *Balancer) wellNow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.anyWell()
}

func left(t *testing.T, says int32) {
	t.Helper()
	hung, status := apiServer(t)
	good, _ := apiServer(t)
	b := &Balancer{Log: slog.New(slog.DiscardHandler), every: 10 * time.Millisecond, within: time.Hour, brief: time.Hour}
	b.SetBackends([]string{hung.address})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.serve(ctx, ln) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	status.Store(says)
	b.SetBackends([]string{hung.address, good.address})
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("it gives data")
	}
	again, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
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
