// Package limit bounds the connections of a server, all of them and those of each
// client: nobody takes every place by holding many connections open. A client is an IPv4
// address, or the /64 of an IPv6 address (see Source).
package limit

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Source is what counts as one client: an IPv4 address, or the /64 of an IPv6 address,
// since one host takes as many addresses of it as it likes (RFC 8981). An address that
// single says to be one machine's counts by itself: a whole rack may be in one /64.
// single may be nil.
func Source(a netip.Addr, single func(netip.Addr) bool) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() || single != nil && single(a) {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil { // there is none that Prefix refuses
		return a
	}
	return p.Addr()
}

// Listener accepts a bounded number of connections at a time, and of each client.
// Unlike netutil.LimitListener it hands out the connections as they are: a wrapped one
// would cost sendfile. So it has to be told which have ended: Left is for that.
type Listener struct {
	net.Listener
	// Single is Source's, and set before the first Accept; nil for none.
	Single func(netip.Addr) bool
	places chan struct{}
	each   int
	mu     sync.Mutex
	by     map[netip.Addr]int
	// held is by what an open connection was counted.
	held map[net.Conn]netip.Addr
}

// New accepts from l, which closes with it: all connections at a time, and each of one
// client.
func New(l net.Listener, all, each int) *Listener {
	return &Listener{Listener: l, places: make(chan struct{}, all), each: each, by: map[netip.Addr]int{}, held: map[net.Conn]netip.Addr{}}
}

// Accept implements net.Listener. When all places are taken, the next client waits in
// the kernel's queue; what is above a client's share is closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.places <- struct{}{}
		c, err := l.Listener.Accept()
		if err == nil && l.enter(c) {
			return c, nil
		}
		<-l.places
		if err != nil {
			return nil, err
		}
		c.Close()
	}
}

func source(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

// inner is the connection below TLS: a server that is given the listener to speak TLS on
// says of another connection that it has ended than was accepted.
func inner(c net.Conn) net.Conn {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c
}

func (l *Listener) enter(c net.Conn) bool {
	a := Source(source(c), l.Single)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[a] >= l.each {
		return false
	}
	l.by[a]++
	l.held[inner(c)] = a
	return true
}

// Left is the ConnState hook of the http.Server that serves the listener.
func (l *Listener) Left(c net.Conn, s http.ConnState) {
	if s != http.StateClosed && s != http.StateHijacked {
		return
	}
	l.mu.Lock()
	a := l.held[inner(c)]
	delete(l.held, inner(c))
	if l.by[a]--; l.by[a] == 0 {
		delete(l.by, a)
	}
	l.mu.Unlock()
	<-l.places
}
