//go:build linux

package listen

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

func TestErrorsSayWhatToDo(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	self, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		err  error
		want []string
	}{
		{"a port that we have ourselves", explain("tcp", taken.Addr().String(), syscall.EADDRINUSE),
			[]string{"is taken by " + strings.TrimSpace(string(self)) + " (pid ", "; stop it"}},
		{"a port that nobody has any more", explain("udp", "127.0.0.1:1", syscall.EADDRINUSE), []string{"ss -lnp"}},
		{"no permission", explain("udp", "0.0.0.0:67", syscall.EACCES), []string{"listening on udp 0.0.0.0:67: run as root, or grant CAP_NET_BIND_SERVICE"}},
		{"a foreign address", explain("tcp", "192.0.2.1:80", syscall.EADDRNOTAVAIL), []string{"set server.address in cluster.yaml"}},
		{"no such interface", open("nosuch0", "127.0.0.1"), []string{"listening on nosuch0: ", "set boot.interface in cluster.yaml to one of [", "lo"}},
		{"an address of another interface", open("lo", "192.0.2.1"), []string{"not server.address 192.0.2.1 (ip address add 192.0.2.1/24 dev lo"}},
		{"an IPv6 address", open("lo", "::1"), []string{"server.address ::1 is not an IPv4 address"}},
	} {
		for _, want := range c.want {
			if c.err == nil || !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: got %v, want %q in it", c.name, c.err, want)
			}
		}
	}
}

func open(device, address string) error {
	s, err := Open(context.Background(), Config{Interface: device, Address: netip.MustParseAddr(address)})
	if err == nil {
		s.Close()
	}
	return err
}

// Whoever may open port 69 meets it taken at the second time, all others are not let.
func TestARefusedPortIsAllThatIsSaid(t *testing.T) {
	cfg := Config{Interface: "lo", Address: netip.MustParseAddr("127.0.0.1")}
	s, err := Open(t.Context(), cfg)
	if err == nil {
		defer s.Close()
		s, err = Open(t.Context(), cfg)
	}
	if err == nil || !strings.HasPrefix(err.Error(), "listening on udp 127.0.0.1:69: ") || strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("got %v", err)
	}
	if s.TFTP != nil {
		t.Errorf("a socket that was not opened is %#v", s.TFTP)
	}
}

func TestCloseOfNothing(t *testing.T) {
	if err := (Sockets{}).Close(); err != nil {
		t.Error(err)
	}
}

// Quirk 24: the DF bit confuses ROMs.
func TestSocketsLeaveTheDFBitOff(t *testing.T) {
	conn, err := packet(t.Context(), "127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	var failed error
	if err := raw.Control(func(fd uintptr) { got, failed = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	if got != unix.IP_PMTUDISC_DONT {
		t.Errorf("path MTU discovery is %d, want %d", got, unix.IP_PMTUDISC_DONT)
	}
}

// Quirk 27: not from the address that the routing table prefers.
func TestAnswersLeaveFromTheAdvertisedAddress(t *testing.T) {
	client, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := packet(t.Context(), "0.0.0.0:0", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	source := ipv4.ControlMessage{Src: net.IPv4(127, 0, 0, 9)}
	s := from{conn, source.Marshal()}
	if _, err := s.WriteTo([]byte("answer"), client.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := client.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, at, err := client.ReadFromUDP(make([]byte, 100))
	if err != nil || at.IP.String() != "127.0.0.9" {
		t.Errorf("the answer came from %v, %v, want 127.0.0.9", at, err)
	}
}
