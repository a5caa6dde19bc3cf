// Package balancer spreads TCP connections from this node over all API servers,
// so that the cluster needs no load balancer in front of it. It listens on
// 127.0.0.1, sees only ciphertext, and its list of servers changes at run time.
//
// A backend is healthy while a TLS handshake with it succeeds; nothing is
// trusted on that handshake. When one stops being healthy, connections to it are
// closed: a node that lost power sends no FIN, and kubelet would wait for
// minutes.
package balancer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// checkEvery is how often each backend is asked.
	checkEvery = 3 * time.Second
	// dialTimeout bounds a check and a connection attempt.
	dialTimeout = 2 * time.Second
	// failures in a row until a backend counts as down.
	failures = 2
	// maxConnections at a time; a node has a handful of clients, this only bounds
	// what a runaway one can cost.
	maxConnections = 4096
)

// Balancer balances. The zero value has no backends; set Log before Serve. All
// methods are safe for concurrent use.
type Balancer struct {
	Log *slog.Logger

	// every and within are checkEvery and dialTimeout but in tests.
	every, within time.Duration

	mu       sync.Mutex
	backends []*backend
	next     int
	open     int
}

type backend struct {
	address string
	// fails in a row; healthy below the limit.
	fails int
	conns map[net.Conn]bool
}

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
			now = append(now, &backend{address: a, conns: make(map[net.Conn]bool)})
		}
	}
	for _, old := range b.backends {
		if !slices.Contains(now, old) {
			old.closeAll()
		}
	}
	b.backends = now
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
	b.every, b.within = checkEvery, dialTimeout
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

func (b *Balancer) order() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.backends)
	var well, ill []*backend
	for i := range n {
		x := b.backends[(b.next+i)%n]
		if x.fails < failures {
			well = append(well, x)
		} else {
			ill = append(ill, x)
		}
	}
	b.next++
	return append(well, ill...)
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

func (b *Balancer) check(ctx context.Context) {
	t := time.NewTicker(b.every)
	defer t.Stop()
	for {
		b.mu.Lock()
		all := slices.Clone(b.backends)
		b.mu.Unlock()
		var wg sync.WaitGroup
		for _, x := range all {
			wg.Go(func() { b.note(x, b.handshake(ctx, x.address)) })
		}
		wg.Wait()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (b *Balancer) note(x *backend, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		if x.fails >= failures {
			b.Log.Info("API server is back", "address", x.address)
		}
		x.fails = 0
		return
	}
	x.fails++
	if x.fails == failures {
		b.Log.Warn("API server does not answer", "address", x.address, "err", err, "closing", len(x.conns))
		x.closeAll()
	}
}

// handshake verifies nothing: the question is whether somebody speaks TLS there.
func (b *Balancer) handshake(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, b.within)
	defer cancel()
	c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return c.Close()
}
