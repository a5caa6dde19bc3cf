//go:build linux

package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// open6 opens what boots by IPv6.
func (s *Sockets) open6(ctx context.Context, cfg Config, ifi *net.Interface) error {
	if err := hasAddress6(ifi, cfg.Address6); err != nil {
		return err
	}
	if cfg.DHCP6 {
		var err error
		if s.DHCP6, err = s.last(ctx, ifi, cfg.Address6, dhcp6); err != nil {
			return err
		}
		if s.Routers, err = routers(ctx, ifi); err != nil {
			return err
		}
	}
	plain := func(fd int) error { return options6(fd, "") }
	tftp, err := udp(ctx, "udp6", netip.AddrPortFrom(cfg.Address6, 69).String(), plain)
	if err != nil {
		return err
	}
	s.TFTP6 = tftp
	address := net.JoinHostPort(cfg.Address6.String(), strconv.Itoa(cfg.HTTPPort))
	var lc net.ListenConfig
	if s.HTTP6, err = lc.Listen(ctx, "tcp6", address); err != nil {
		return explain("tcp", address, err)
	}
	return nil
}

// dhcp6 hears clients by the group of all servers and relays, and relays by that of
// all servers or by our address. An answer to a link-local address leaves from ours.
func dhcp6(ctx context.Context, ifi *net.Interface) (net.PacketConn, error) {
	conn, err := udp(ctx, "udp6", "[::]:547", func(fd int) error { return options6(fd, ifi.Name) })
	if err != nil {
		return nil, err
	}
	for _, group := range []net.IP{dhcpv6.AllDHCPRelayAgentsAndServers, dhcpv6.AllDHCPServers} {
		if err := ipv6.NewPacketConn(conn).JoinGroup(ifi, &net.UDPAddr{IP: group}); err != nil {
			conn.Close()
			return nil, fmt.Errorf("listening on %s: joining the group %s: %w (is IPv6 on there? ip -6 address show dev %s)", ifi.Name, group, err, ifi.Name)
		}
	}
	return conn, nil
}

// routers hears router advertisements only; what it sends is as RFC 4861 wants it.
func routers(ctx context.Context, ifi *net.Interface) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = options6(int(fd), ifi.Name) })
		return errors.Join(err, failed)
	}}
	conn, err := lc.ListenPacket(ctx, "ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, explain("icmpv6", ifi.Name, err)
	}
	p := ipv6.NewPacketConn(conn)
	var only ipv6.ICMPFilter
	only.SetAll(true)
	only.Accept(ipv6.ICMPTypeRouterAdvertisement)
	if err := errors.Join(p.SetICMPFilter(&only), p.SetMulticastHopLimit(255), p.SetMulticastInterface(ifi)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listening for routers on %s: %w", ifi.Name, err)
	}
	return conn, nil
}

func options6(fd int, device string) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return fmt.Errorf("setting SO_RCVBUF: %w", err)
	}
	if device == "" {
		return nil
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("binding to %s: %w", device, err)
	}
	return nil
}

func hasAddress6(ifi *net.Interface, address netip.Addr) error {
	addrs, err := addresses(ifi)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if a.Addr() == address {
			return nil
		}
	}
	return fmt.Errorf("listening on %s: it has the addresses %v but not boot.dhcp6.address %s (ip address add %s/64 dev %s, or change it in cluster.yaml)",
		ifi.Name, addrs, address, address, ifi.Name)
}
