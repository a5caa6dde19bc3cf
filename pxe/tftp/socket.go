package tftp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// sendBuffer holds also what waits for the addresses of clients to be resolved that
// are gone.
const sendBuffer = 4 << 20

// socket carries the transfers of many clients. A client is told apart by its address
// and port, of which the gate lets in only one at a time (dnsmasq does so with
// tftp-single-port; here requests keep port 69 for themselves, so that they do not
// displace what runs).
//
// It is not one of package net's: receive blocks its thread in the kernel, and takes all
// packets that have come at once. In lock-step every block waits for a packet, and on an
// idle machine each thread that the runtime's poller wakes on the way costs
// more than all the rest of a block's work.
type socket struct {
	fd   int
	four bool
}

// newSocket opens a socket with the address of another. The caller closes it.
func newSocket(at net.Addr) (*socket, error) {
	udp, ok := at.(*net.UDPAddr)
	if !ok {
		return nil, fmt.Errorf("opening a socket for TFTP transfers: requests come to %v, which is no UDP address", at)
	}
	own := datagram.Canonical(netip.AddrPortFrom(udp.AddrPort().Addr(), 0))
	s := &socket{four: own.Addr().Is4()}
	family := unix.AF_INET6
	if s.four {
		family = unix.AF_INET
	}
	var err error
	if s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("opening a socket for TFTP transfers: %w", err)
	}
	if err := s.prepare(own); err != nil {
		return nil, errors.Join(fmt.Errorf("opening a socket for TFTP transfers from %s: %w", own.Addr(), err), s.close())
	}
	return s, nil
}

func (s *socket) prepare(own netip.AddrPort) error {
	if s.four {
		// The DF bit, which path MTU discovery sets, confuses ROMs.
		if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
			return fmt.Errorf("setting IP_MTU_DISCOVER: %w", err)
		}
	}
	patience := unix.NsecToTimeval(tick.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return fmt.Errorf("setting SO_RCVTIMEO: %w", err)
	}
	// More needs net.core.wmem_max, which then is what we get.
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer); err != nil {
		return fmt.Errorf("setting SO_SNDBUF: %w", err)
	}
	if s.four {
		return unix.Bind(s.fd, &unix.SockaddrInet4{Addr: own.Addr().As4()})
	}
	return unix.Bind(s.fd, &unix.SockaddrInet6{Addr: own.Addr().As16(), ZoneId: datagram.Zone(own.Addr())})
}

// receive fills in with what has come: at least one packet, or none when none came for a
// tick. It blocks a thread until then, whatever happens.
func (s *socket) receive(in *datagram.Batch) error {
	err := in.Receive(s.fd)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// send sends what is in out, and empties it. A packet that cannot leave at once is
// lost: to wait for one client whose address cannot be resolved would stop all others.
// The error is the last of them.
func (s *socket) send(out *datagram.Batch) error { return out.Send(s.fd) }

func (s *socket) close() error { return unix.Close(s.fd) }
