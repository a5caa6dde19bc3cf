package tftp

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// pair is a socket of ours and two clients'.
func pair(t *testing.T) (*socket, netip.AddrPort, [2]*net.UDPConn) {
	t.Helper()
	s, err := newSocket(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	var clients [2]*net.UDPConn
	for i := range clients {
		if clients[i], err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { clients[i].Close() })
	}
	at, err := unix.Getsockname(s.fd)
	own, ok := at.(*unix.SockaddrInet4)
	if !ok {
		t.Fatalf("it is bound to %+v, %v", at, err)
	}
	return s, netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port)), clients
}

// Packets that one system call takes are each as they were sent, whatever was in their
// buffers before: longer ones after shorter ones, and the other way round.
func TestPacketsOfOneBatchDoNotShareABuffer(t *testing.T) {
	t.Parallel()
	s, at, clients := pair(t)
	in := newPackets(256)
	for round, size := range []int{3, 200, 0, 50} {
		var want [atOnce][]byte
		for i := range want {
			want[i] = bytes.Repeat([]byte{byte(1 + round*atOnce + i)}, size+i%3)
			// On the loopback it is in our queue when the call returns.
			if _, err := clients[i%2].WriteToUDPAddrPort(want[i], at); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.receive(in); err != nil || in.n != atOnce {
			t.Fatalf("round %d: %d packets, %v, want %d", round, in.n, err, atOnce)
		}
		for i := range want { // not before all are there
			if !bytes.Equal(in.data[i], want[i]) {
				t.Errorf("round %d: packet %d is %d times %.1x, want %d times %.1x", round, i, len(in.data[i]), in.data[i], len(want[i]), want[i])
			}
			if got, want := in.from(i), clients[i%2].LocalAddr().(*net.UDPAddr).AddrPort(); got != want {
				t.Errorf("round %d: packet %d comes from %s, want %s", round, i, got, want)
			}
		}
	}
}

// The same the other way: what waits to be sent together stays as it was put in, and goes
// to whom it was put in for.
func TestPacketsSentTogetherDoNotShareABuffer(t *testing.T) {
	t.Parallel()
	s, _, clients := pair(t)
	out := newPackets(16)
	for round := range 2 {
		var want [2][]string
		for i := range atOnce {
			text := fmt.Sprintf("%d.%d", round, i)
			want[i%2] = append(want[i%2], text)
			out.add(clients[i%2].LocalAddr().(*net.UDPAddr).AddrPort(), true, func(b []byte) []byte { return append(b, text...) })
		}
		if err := s.send(out); err != nil || out.n != 0 {
			t.Fatalf("%d packets are left, %v", out.n, err)
		}
		for c, texts := range want {
			for _, text := range texts {
				buf := make([]byte, 16)
				if n, err := clients[c].Read(buf); err != nil || string(buf[:n]) != text {
					t.Fatalf("client %d got %q, %v, want %q", c, buf[:n], err, text)
				}
			}
		}
	}
}
