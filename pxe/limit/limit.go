// Package limit bounds the connections of a server, all of them and those of each
// address: nobody takes every place by holding many connections open.
package limit

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Listener accepts a bounded number of connections at a time, and of each address.
// Unlike netutil.LimitListener it hands out the connections as they are: a wrapped one
// would cost sendfile. So it has to be told which have ended: Left is for that.
type Listener struct {
	net.Listener
	places chan struct{}
	each   int
	mu     sync.Mutex
	by     map[netip.Addr]int
}

// New accepts from l, which closes with it: all connections at a time, and each of one
// address.
func New(l net.Listener, all, each int) *Listener {
	return &Listener{Listener: l, places: make(chan struct{}, all), each: each, by: map[netip.Addr]int{}}
}

// Accept implements net.Listener. When all places are taken, the next client waits in
// the kernel's queue; what is above an address' share is closed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.places <- struct{}{}
		c, err := l.Listener.Accept()
		if err == nil && l.enter(source(c)) {
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
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (l *Listener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by[a] >= l.each {
		return false
	}
	l.by[a]++
	return true
}

// Left is the ConnState hook of the http.Server that serves the listener.
func (l *Listener) Left(c net.Conn, s http.ConnState) {
	if s != http.StateClosed && s != http.StateHijacked {
		return
	}
	a := source(c)
	l.mu.Lock()
	if l.by[a]--; l.by[a] == 0 {
		delete(l.by, a)
	}
	l.mu.Unlock()
	<-l.places
}
