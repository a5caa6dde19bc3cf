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

const (
	// forgotten is when a session that never reported its end is written off. No
	// transfer of a boot program takes that long.
	forgotten = 10 * time.Minute
	// maxWaiting bounds the requests that wait for a place.
	maxWaiting = 4096
	// patience is how long a request waits without having been repeated. Firmware
	// repeats it every four seconds; who missed two has given up.
	patience = 9 * time.Second
)

// gate is a PacketConn that passes on only requests worth a session: while all
// places are taken the others wait, in the order they came, but behind those of
// machines whose boot has begun.
type gate struct {
	net.PacketConn
	limit int
	now   func() time.Time
	// crowded is told who waits, with how many before it; overloaded, whom there is not
	// even a place to wait for.
	crowded    func(client netip.Addr, before int)
	overloaded func(client netip.Addr, reason string)
	// effect is what a client's firmware needs done differently.
	effect func(client netip.Addr) quirk.Effect

	mu   sync.Mutex
	line line
	// packets are the requests that wait.
	packets map[netip.AddrPort][]byte
	closed  bool
	err     error
	// broken is closed when the socket has failed by itself; wake when it is closed
	// by us. ready has a token when a request may have come to its turn.
	broken, wake, ready chan struct{}
}

func newGate(conn net.PacketConn, limit int, now func() time.Time) *gate {
	return &gate{PacketConn: conn, limit: limit, now: now, crowded: func(netip.Addr, int) {}, overloaded: func(netip.Addr, string) {},
		effect: func(netip.Addr) quirk.Effect { return quirk.Effect{} }, line: newLine(limit, maxWaiting), packets: map[netip.AddrPort][]byte{},
		broken: make(chan struct{}), wake: make(chan struct{}), ready: make(chan struct{}, 1)}
}

// listen takes requests in until the socket is closed or fails.
func (g *gate) listen() {
	buf := make([]byte, 2048)
	for {
		n, from, err := g.PacketConn.ReadFrom(buf)
		if err != nil {
			g.fail(err)
			return
		}
		udp, ok := from.(*net.UDPAddr)
		// The library's buffer has 516 bytes: what fills it was cut off.
		if !ok || n >= 516 || !normalise(buf[:n]) {
			continue
		}
		client := udp.AddrPort()
		g.arrive(netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), buf[:n])
	}
}

func (g *gate) arrive(client netip.AddrPort, packet []byte) {
	g.mu.Lock()
	place, before := g.line.arrive(client, g.now())
	if place == turn || place == queued {
		g.packets[client] = bytes.Clone(packet)
	}
	g.mu.Unlock()
	switch place {
	case turn:
		g.signal()
	case queued:
		g.crowded(client.Addr(), before)
	case full:
		g.overloaded(client.Addr(), fmt.Sprintf("no answer: %d transfers run and %d wait already; it asks again", g.limit, before))
	case share:
		g.overloaded(client.Addr(), fmt.Sprintf("no answer: %d requests of this address run or wait already, its share", before))
	}
}

func (g *gate) signal() {
	select {
	case g.ready <- struct{}{}:
	default:
	}
}

// ReadFrom blocks until there is a request to serve. After the socket failed it
// blocks until Close, since the library would ask again at once.
func (g *gate) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		if client, packet, ok := g.next(); ok {
			n := copy(p, packet)
			return comply(p[:n], g.effect(client.Addr())), net.UDPAddrFromAddrPort(client), nil
		}
		select {
		case <-g.wake:
			return 0, nil, net.ErrClosed
		case <-g.ready:
		}
	}
}

func (g *gate) next() (netip.AddrPort, []byte, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	client, gaveUp, ok := g.line.next(g.now())
	for _, c := range gaveUp {
		delete(g.packets, c)
	}
	packet := g.packets[client]
	delete(g.packets, client)
	return client, packet, ok
}

// normalise accepts a read request with a name, a mode and pairs of options, and
// writes mode and option names in lower case: they are case-insensitive, but the
// library compares them as they are.
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

// leave ends a session. Firmware that broke it off wanted to know the size, and
// comes again at once.
func (g *gate) leave(client netip.AddrPort, whole bool) {
	g.mu.Lock()
	g.line.leave(client, whole, g.now())
	g.mu.Unlock()
	g.signal()
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
