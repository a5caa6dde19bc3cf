package tftp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/pxe/datagram"
)

const (
	// maxWaiting bounds the requests that wait for a place.
	maxWaiting = 4096
	// patience is how long a request waits without having been repeated. Firmware
	// repeats it every four seconds; who missed two has given up.
	patience = 9 * time.Second
	// maxRequest is as long as a request may be: RFC 2347 has 512 bytes.
	maxRequest = 512
)

// listen takes requests in until ctx ends or the socket fails. While all places are
// taken they wait, in the order they came, but behind those of machines whose boot has
// begun.
func (s *server) listen(ctx context.Context, conn net.PacketConn) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading TFTP requests: %w", err)
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok || n > maxRequest {
			continue
		}
		request, err := ParseRequest(buf[:n])
		if err != nil {
			continue
		}
		s.arrive(datagram.Canonical(udp.AddrPort()), request)
	}
}

func (s *server) arrive(client netip.AddrPort, request Request) {
	halted := s.halted()
	s.mu.Lock()
	place, before := s.line.arrive(client, halted, s.now())
	if _, waits := s.waiting[client]; waits || place == turn || place == queued {
		s.waiting[client] = request // its last word
	}
	s.mu.Unlock()
	switch place {
	case known:
		if s.abandoned(client) {
			s.arrive(client, request)
		}
	case turn:
		s.begin()
	case queued:
		s.Waits(client.Addr(), before)
	case full:
		s.Refused(client.Addr(), CodeOverloaded, fmt.Sprintf("no answer: %d transfers run and %d wait already; it asks again", s.Sessions, before))
	case share:
		s.Refused(client.Addr(), CodeOverloaded, fmt.Sprintf("no answer: %d requests of this address run or wait already, its share", before))
	}
}

// abandoned ends the transfer of a client that has given it up and asks anew; false when
// there is no such transfer.
func (s *server) abandoned(client netip.AddrPort) bool {
	for _, l := range s.lanes {
		if l.abandon(client) {
			return true
		}
	}
	return false
}

// begin starts the transfers whose turn it is.
func (s *server) begin() {
	for {
		client, request, ok := s.next()
		if !ok {
			return
		}
		s.start(client, request.Complying(s.Effect(client.Addr())))
	}
}

func (s *server) next() (netip.AddrPort, Request, bool) {
	halted := s.halted()
	s.mu.Lock()
	defer s.mu.Unlock()
	client, gaveUp, ok := s.line.next(halted, s.now())
	for _, c := range gaveUp {
		delete(s.waiting, c)
	}
	request := s.waiting[client]
	delete(s.waiting, client)
	return client, request, ok
}

func (s *server) halted() (n int) {
	for _, l := range s.lanes {
		n += l.halted()
	}
	return n
}

// leave gives a place back. Firmware that broke its transfer off wanted to know the
// size, and comes again at once.
func (s *server) leave(client netip.AddrPort, whole bool) {
	s.mu.Lock()
	s.line.leave(client, whole, s.now())
	s.mu.Unlock()
}
