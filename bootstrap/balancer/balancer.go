// Package balancer spreads TCP connections from this node over all API servers,
// so that the cluster needs no load balancer in front of it. It listens on
// 127.0.0.1, sees only ciphertext, and its list of servers changes at run time.
//
// Each API server of several is asked for /readyz, which Kubernetes answers to anybody; nothing
// is trusted on that connection, and what it says moves nothing but connections.
// One that is not ready gets no new connections while another one is. One that does
// not answer at all, or says twice that it is not ready while another one is, without having been
// ready for three seconds in between, loses those that it has too: a node that lost power sends no
// FIN, and an API server whose etcd has died goes on to take requests that it cannot answer. A
// client on one connection would wait there for minutes. But not while no other is ready: then it
// is the best that there is.
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
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// checkEvery is how often each backend is asked, on a connection that stays open.
	checkEvery = time.Second
	// dialTimeout bounds a check and a connection attempt.
	dialTimeout = 1500 * time.Millisecond
	// failures in a row until a backend counts as down; the second check follows the
	// first at once, and has half the time. So one that hangs is left within three and a half
	// seconds.
	failures = 2
	// askAgain is after how long one that is not ready is asked again: it may just have started,
	// or etcd may be choosing a leader. Then it has as long to answer, and so have the others to
	// be taken for well meanwhile.
	askAgain = 250 * time.Millisecond
	// probation is how often in a row one that was not ready while another one was has to say
	// that it is, until it counts: three seconds. An etcd whose disk is full dies at a write,
	// is started again, and answers what only reads, this question too, until the next write.
	probation = 12
	// maxPause rounds at most one that does not answer is left alone between two checks.
	maxPause = 7
	// maxConnections at a time; a node has a handful of clients, this only bounds
	// what a runaway one can cost.
	maxConnections = 4096
)

// Balancer balances. The zero value has no backends; set Log before Serve. All
// methods are safe for concurrent use.
type Balancer struct {
	Log *slog.Logger

	// every and within are checkEvery and dialTimeout, again and brief are askAgain but in tests.
	every, within, again, brief time.Duration

	mu       sync.Mutex
	backends []*backend
	next     int
	open     int
}

type backend struct {
	address string
	// unready: it answers, and says that it is not ready.
	unready bool
	// refusals are how often it said so while another one was well, until it is well itself;
	// proven is how often it was ready since.
	refusals, proven int
	// fails in a row to answer; down from the limit on.
	fails int
	// checking: a check is under way; asked is when its question was, zero while none is open.
	checking bool
	asked    time.Time
	// rest is how many rounds it is not asked in, and pause how many after the next
	// check that gets no answer.
	rest, pause int
	conns       map[net.Conn]bool
	probe       *http.Client
}

func (b *backend) well() bool { return b.fails < failures && !b.unready }

// lost: it kept its clients waiting long enough.
func (b *backend) lost() bool { return b.fails+b.refusals >= failures }

// SetBackends replaces the list of host:port. Connections to backends that stay
// are left alone, those to others are closed.
func (b *Balancer) SetBackends(addresses []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var now []*backend
	for _, a := range slices.Compact(slices.Sorted(slices.Values(addresses))) {
		i := slices.IndexFunc(b.backends, func(o *backend) bool { return o.address == a })
		if i >= 0 {
			now = append(now, b.backends[i])
		} else {
			now = append(now, newBackend(a))
		}
	}
	for _, old := range b.backends {
		if !slices.Contains(now, old) {
			old.closeAll()
			old.probe.CloseIdleConnections()
		}
	}
	b.backends = now
}

func newBackend(address string) *backend {
	return &backend{address: address, conns: make(map[net.Conn]bool), probe: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		// HTTP/1.1: a check that got no answer takes its connection with it.
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, IdleConnTimeout: time.Minute},
	}}
}

// Backends returns the addresses, sorted.
func (b *Balancer) Backends() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]string, len(b.backends))
	for i, x := range b.backends {
		out[i] = x.address
	}
	return out
}

// Well says whether a backend is known, and took its last checks. The only one of a
// cluster is not checked and always is.
func (b *Balancer) Well(address string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.backends, func(x *backend) bool { return x.address == address })
	return i >= 0 && b.backends[i].well()
}

// closeAll is called with the lock held.
func (b *backend) closeAll() {
	for c := range b.conns {
		_ = c.Close()
	}
	clear(b.conns)
}

// Serve balances connections of ln, which it closes, until ctx ends; then it
// closes every connection and returns nil.
func (b *Balancer) Serve(ctx context.Context, ln net.Listener) error {
	b.every, b.within, b.again, b.brief = checkEvery, dialTimeout, askAgain, askAgain
	return b.serve(ctx, ln)
}

func (b *Balancer) serve(ctx context.Context, ln net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return ln.Close()
	})
	g.Go(func() error {
		b.check(ctx)
		return nil
	})
	g.Go(func() error {
		for {
			c, err := ln.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				var temporary net.Error
				if errors.As(err, &temporary) && temporary.Timeout() {
					continue
				}
				return fmt.Errorf("accepting connections for API servers: %w", err)
			}
			g.Go(func() error {
				b.handle(ctx, c)
				return nil
			})
		}
	})
	err := g.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (b *Balancer) handle(ctx context.Context, client net.Conn) {
	defer client.Close()
	if !b.enter() {
		b.Log.Warn("refusing a connection to the API servers: too many are open", "open", maxConnections)
		return
	}
	defer b.leave()
	to, server, err := b.dial(ctx)
	if err != nil {
		b.Log.Debug("no API server answers", "err", err)
		return
	}
	defer server.Close()
	defer b.forget(to, server)
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { pipe(server, client) })
	pipe(client, server)
	wg.Wait()
}

// pipe copies one direction and passes the end of it on, so that a side which
// has said everything can still listen.
func pipe(dst, src net.Conn) {
	if _, err := io.Copy(dst, src); err != nil {
		_ = dst.Close()
		_ = src.Close()
		return
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
		return
	}
	_ = dst.Close()
}

func (b *Balancer) enter() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open >= maxConnections {
		return false
	}
	b.open++
	return true
}

func (b *Balancer) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open--
}

// dial tries healthy backends in turn, then the others: before the first check
// and in a cluster that just starts nobody is known to be well.
func (b *Balancer) dial(ctx context.Context) (*backend, net.Conn, error) {
	err := errors.New("the list of API servers is empty")
	for _, to := range b.order() {
		var c net.Conn
		c, err = (&net.Dialer{Timeout: b.within}).DialContext(ctx, "tcp", to.address)
		if err != nil {
			continue
		}
		if b.remember(to, c) {
			return to, c, nil
		}
		_ = c.Close()
		err = fmt.Errorf("%s is no API server any more", to.address)
	}
	return nil, nil, err
}

// order is whom to try: those that are ready in turn, those that at least answer, and
// the others.
func (b *Balancer) order() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.backends)
	var well, unready, silent []*backend
	for i := range n {
		switch x := b.backends[(b.next+i)%n]; {
		case x.well():
			well = append(well, x)
		case x.fails < failures:
			unready = append(unready, x)
		default:
			silent = append(silent, x)
		}
	}
	b.next++
	return slices.Concat(well, unready, silent)
}

func (b *Balancer) remember(to *backend, c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.backends, to) {
		return false
	}
	to.conns[c] = true
	return true
}

func (b *Balancer) forget(to *backend, c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(to.conns, c)
}

// check asks each backend in time, whatever the others do.
func (b *Balancer) check(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	t := time.NewTicker(b.every)
	defer t.Stop()
	for {
		for _, x := range b.due() {
			wg.Go(func() { b.ask(ctx, x) })
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// due are the backends to be asked in this round; from now on they are being asked. The
// only one is not asked, for nothing hangs on its answer. One that does not answer is
// asked ever more rarely: every node asks, and each question that comes to its time limit
// costs an API server that is merely slow another TLS handshake.
func (b *Balancer) due() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.backends) < 2 {
		return nil
	}
	var out []*backend
	for _, x := range b.backends {
		switch {
		case x.checking:
		case x.rest > 0:
			x.rest--
		default:
			x.checking = true
			out = append(out, x)
		}
	}
	return out
}

// ask asks until one is known to be ready, or there were enough answers of another kind.
func (b *Balancer) ask(ctx context.Context, x *backend) {
	for within := b.within; ; {
		b.asks(x)
		ready, err := b.readyz(ctx, x, within)
		if ctx.Err() != nil || b.note(x, ready, err) {
			return
		}
		if err != nil {
			within /= 2
			continue // that took long enough
		}
		within = b.brief
		select {
		case <-ctx.Done():
			return
		case <-time.After(b.again):
		}
	}
}

func (b *Balancer) asks(x *backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.asked = time.Now()
}

// note takes the outcome of a check in. It returns false when another one shall
// follow at once.
func (b *Balancer) note(x *backend, ready bool, err error) (enough bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	x.asked = time.Time{}
	if err == nil {
		x.rest, x.pause = 0, 0
	}
	proves := false
	switch {
	case err != nil:
		x.proven = 0
		if x.fails++; x.fails == failures {
			b.Log.Warn("API server does not answer", "address", x.address, "err", err, "connections", len(x.conns))
		}
		if x.fails >= failures {
			x.rest, x.pause = x.pause, min(2*x.pause+1, maxPause)
		}
	case ready && x.refusals > 0 && x.proven+1 < probation && b.anyWell():
		x.proven++
		x.fails, x.refusals, proves = 0, 1, true
	case ready:
		if !x.well() {
			b.Log.Info("API server is back", "address", x.address)
		}
		x.fails, x.unready, x.refusals, x.proven = 0, false, 0, 0
	default:
		if !x.unready {
			b.Log.Warn("API server is not ready", "address", x.address)
		}
		x.fails, x.unready, x.proven = 0, true, 0
		// What it said while nobody was well says nothing against it: all were without etcd's
		// leader then, and the first one to find the new one is not the only one that will.
		if x.refusals++; !b.anyWell() {
			x.refusals = 0
		}
	}
	b.eject()
	enough = !proves && (x.lost() || x.fails+x.refusals == 0)
	x.checking = !enough
	return enough
}

// anyWell says whether there is an API server to go to; mu is held. One that has not answered yet
// what it was asked a while ago is none: while etcd has no leader all are silent, and the first one
// to say that it is not ready is no worse than the others.
func (b *Balancer) anyWell() bool {
	return slices.ContainsFunc(b.backends, func(x *backend) bool {
		return x.well() && (x.asked.IsZero() || time.Since(x.asked) < b.brief)
	})
}

// eject closes connections to those that do not answer, or stay unready, when there is somewhere
// else to go; mu is held.
func (b *Balancer) eject() {
	if !b.anyWell() {
		return
	}
	for _, x := range b.backends {
		if x.lost() && len(x.conns) > 0 {
			b.Log.Warn("closing connections to an API server that does not answer or is not ready", "address", x.address, "connections", len(x.conns))
			x.closeAll()
		}
	}
}

// readyz asks whether an API server is ready. An error means that nobody answered in
// time. It verifies nothing: the question is whether an API server speaks there.
//
// An API server asks its etcd twice for /readyz, by the checks "etcd" and "etcd-readiness", one
// after the other; what only the second one is told is the time that it may take
// (--etcd-readycheck-timeout, a second here), so the first is left out.
func (b *Balancer) readyz(ctx context.Context, x *backend, within time.Duration) (ready bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+x.address+"/readyz?exclude=etcd", nil)
	if err != nil {
		return false, err
	}
	resp, err := x.probe.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	// The whole answer, or the connection cannot be used again.
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return false, err
	}
	// Where strangers may not ask (401, 403), an answer has to do.
	return resp.StatusCode < http.StatusInternalServerError && resp.StatusCode != http.StatusTooManyRequests, nil
}
