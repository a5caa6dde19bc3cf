package tftp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// forgotten is when a session that never reported its end is written off. No
// transfer of a boot program takes that long.
const forgotten = 10 * time.Minute

// gate is a PacketConn that passes on only requests worth a session.
type gate struct {
	net.PacketConn
	limit int
	now   func() time.Time
	// overloaded is told whom there is no place for.
	overloaded func(client netip.Addr)
	// effect is what a client's firmware needs done differently.
	effect func(client netip.Addr) quirk.Effect

	mu     sync.Mutex
	active map[netip.AddrPort]time.Time
	closed bool
	err    error
	// broken is closed when the socket has failed by itself; wake when it is closed
	// by us.
	broken, wake chan struct{}
}

func newGate(conn net.PacketConn, limit int, now func() time.Time) *gate {
	return &gate{PacketConn: conn, limit: limit, now: now, overloaded: func(netip.Addr) {},
		effect: func(netip.Addr) quirk.Effect { return quirk.Effect{} }, active: map[netip.AddrPort]time.Time{},
		broken: make(chan struct{}), wake: make(chan struct{})}
}

// ReadFrom blocks until there is a request to serve. After the socket failed it
// blocks until Close, since the library would ask again at once.
func (g *gate) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := g.PacketConn.ReadFrom(p)
		if err != nil {
			g.fail(err)
			<-g.wake
			return 0, nil, net.ErrClosed
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok || n == len(p) || !normalise(p[:n]) {
			continue
		}
		switch client := udp.AddrPort(); g.enter(client) {
		case admitted:
			return comply(p[:n], g.effect(client.Addr().Unmap())), from, nil
		case noPlace:
			g.overloaded(client.Addr().Unmap())
		case running:
		}
	}
}

// normalise accepts a read request with a name, a mode and pairs of options, and
// writes mode and option names in lower case: they are case-insensitive, but the
// library compares them as they are. A request that fills the library's buffer
// was cut off.
func normalise(p []byte) bool {
	if len(p) < 6 || p[0] != 0 || p[1] != 1 || p[len(p)-1] != 0 {
		return false
	}
	fields := bytes.Split(p[2:len(p)-1], []byte{0}) // parts of p, not copies
	if len(fields)%2 != 0 || len(fields[0]) == 0 {
		return false
	}
	for i := 1; i < len(fields); i++ {
		if i == 1 || i%2 == 0 {
			lower(fields[i])
		}
	}
	return string(fields[1]) == "octet" || string(fields[1]) == "netascii"
}

func lower(b []byte) {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
}

// entry is what becomes of a request.
type entry int

const (
	admitted entry = iota + 1
	running        // the client's transfer is under way
	noPlace
)

// enter admits a client. A repeated request from the same port is dropped: its
// session goes on and repeats its own last packet.
func (g *gate) enter(client netip.AddrPort) entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if since, ok := g.active[client]; ok && now.Sub(since) < forgotten {
		return running
	}
	if len(g.active) >= g.limit {
		for c, since := range g.active {
			if now.Sub(since) >= forgotten {
				delete(g.active, c)
			}
		}
		if len(g.active) >= g.limit {
			return noPlace
		}
	}
	g.active[client] = now
	return admitted
}

func (g *gate) leave(client netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.active, client)
}

func (g *gate) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.err != nil {
		return
	}
	g.err = fmt.Errorf("reading TFTP requests: %w", err)
	close(g.broken)
}

func (g *gate) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Close closes the socket; a second call does nothing.
func (g *gate) Close() error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	close(g.wake)
	g.mu.Unlock()
	if err := g.PacketConn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
