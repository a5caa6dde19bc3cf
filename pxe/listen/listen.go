//go:build linux

// Package listen opens the sockets of the boot server, and nothing else does.
// Ports below 1024 and binding to an interface need root or the capabilities
// CAP_NET_BIND_SERVICE and CAP_NET_RAW.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// Config says what to open.
type Config struct {
	// Interface is the boot network's; when empty, the one that has Address. DHCP
	// needs it.
	Interface string
	// Address is the server's on that interface: all answers leave from it.
	Address netip.Addr
	// DHCP opens port 67, BootServer port 4011. TFTP is always on port 69.
	DHCP, BootServer bool
	// Shared says that other programs may answer DHCP on the same interfaces, each for
	// machines of its own and from an address of its own: all hear what is sent to everybody,
	// and each what is sent to it.
	Shared bool
	// Links are further networks for DHCP and BootServer.
	Links []Link
	// HTTPPort, HTTPSPort and BootTLSPort are opened unless 0.
	HTTPPort, HTTPSPort, BootTLSPort int
	// Address6 opens TFTP and HTTP at this address of Interface, too; DHCP6 also port
	// 547.
	Address6 netip.Addr
	DHCP6    bool
	// Syslog opens port 514.
	Syslog bool
}

// Link is a further network that the server has a card in.
type Link struct {
	Interface string
	// Prefix is the network's: the interface has an address in it, which is ours there.
	Prefix netip.Prefix
}

// Sockets are open sockets; those not asked for are nil. Close closes all.
type Sockets struct {
	DHCP, BootServer, TFTP net.PacketConn
	// Broadcast hears what is sent to everybody on DHCP's port, where DHCP hears only what is
	// sent to us: with Config.Shared.
	Broadcast   net.PacketConn
	HTTP, HTTPS net.Listener
	// BootTLS is for UEFI that boots by HTTPS.
	BootTLS net.Listener
	Links   []LinkSockets
	// DHCP6, TFTP6 and HTTP6 are for IPv6. Routers hears ICMPv6 router advertisements.
	DHCP6, TFTP6, Routers net.PacketConn
	HTTP6                 net.Listener
	Syslog                net.PacketConn
	// MTU is the smallest of the interfaces'.
	MTU int

	// lasting are those that KeepOpen looks after.
	lasting []*lasting
}

// LinkSockets are the sockets of one Link.
type LinkSockets struct {
	Address                     netip.Addr
	DHCP, Broadcast, BootServer net.PacketConn
}

// Open opens all or nothing. Its errors say what is in the way.
func Open(ctx context.Context, cfg Config) (Sockets, error) {
	var s Sockets
	if err := s.open(ctx, cfg); err != nil {
		return Sockets{}, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sockets) open(ctx context.Context, cfg Config) error {
	ifi, err := boundInterface(cfg.Interface, cfg.Address)
	if err != nil {
		return err
	}
	s.MTU = ifi.MTU
	home, err := s.dhcp(ctx, cfg, ifi, cfg.Address)
	s.DHCP, s.Broadcast, s.BootServer = home.DHCP, home.Broadcast, home.BootServer
	if err != nil {
		return err
	}
	for _, l := range cfg.Links {
		ifi, address, err := l.find()
		if err != nil {
			return err
		}
		link, err := s.dhcp(ctx, cfg, ifi, address)
		s.Links = append(s.Links, link)
		if err != nil {
			return err
		}
		s.MTU = min(s.MTU, ifi.MTU)
	}
	tftp, err := packet(ctx, netip.AddrPortFrom(cfg.Address, 69).String(), "")
	if err != nil {
		return err
	}
	s.TFTP = tftp // not before: a nil *net.UDPConn in it would be no nil
	if cfg.Syslog {
		conn, err := packet(ctx, netip.AddrPortFrom(cfg.Address, 514).String(), "")
		if err != nil {
			return err
		}
		s.Syslog = conn
	}
	for _, t := range []struct {
		port int
		to   *net.Listener
	}{{cfg.HTTPPort, &s.HTTP}, {cfg.HTTPSPort, &s.HTTPS}, {cfg.BootTLSPort, &s.BootTLS}} {
		if t.port == 0 {
			continue
		}
		address := net.JoinHostPort(cfg.Address.String(), strconv.Itoa(t.port))
		var lc net.ListenConfig
		if *t.to, err = lc.Listen(ctx, "tcp4", address); err != nil {
			return explain("tcp", address, err)
		}
	}
	if cfg.Address6.IsValid() {
		return s.open6(ctx, cfg, ifi)
	}
	return nil
}

// dhcp opens what one network needs. Port 4011 is asked by unicast, by those who
// have an address: from anywhere.
func (s *Sockets) dhcp(ctx context.Context, cfg Config, ifi *net.Interface, address netip.Addr) (LinkSockets, error) {
	out := LinkSockets{Address: address}
	if cfg.DHCP {
		hears := []struct {
			address string
			reuse   bool
			to      *net.PacketConn
		}{{"0.0.0.0:67", false, &out.DHCP}}
		if cfg.Shared {
			// One socket for both would get what others are sent, too: of several with
			// one address the kernel chooses one for each packet to a single host.
			hears[0].address = netip.AddrPortFrom(address, 67).String()
			hears = append(hears, hears[0])
			hears[1].address, hears[1].reuse, hears[1].to = "255.255.255.255:67", true, &out.Broadcast
		}
		for _, h := range hears {
			conn, err := s.last(ctx, ifi, address, func(ctx context.Context, ifi *net.Interface) (net.PacketConn, error) {
				conn, err := udp(ctx, "udp4", h.address, func(fd int) error { return errors.Join(options(fd, ifi.Name), reuse(fd, h.reuse)) })
				if err != nil {
					return nil, err
				}
				source := ipv4.ControlMessage{Src: address.AsSlice(), IfIndex: ifi.Index}
				return from{conn, source.Marshal()}, nil
			})
			if err != nil {
				return out, inTheWay(err, cfg)
			}
			*h.to = conn
		}
	}
	if cfg.BootServer {
		conn, err := packet(ctx, netip.AddrPortFrom(address, 4011).String(), "")
		if err != nil {
			return out, err
		}
		out.BootServer = conn
	}
	return out, nil
}

// inTheWay says how to live beside another DHCP server on this host.
func inTheWay(err error, cfg Config) error {
	switch {
	case !errors.Is(err, syscall.EADDRINUSE):
	case cfg.BootServer:
		return fmt.Errorf("%w; beside another DHCP server on this host, set boot.dhcp: proxy-4011 in cluster.yaml and let that server send option 60 \"PXEClient\" to machines that netboot", err)
	case !cfg.Shared:
		return fmt.Errorf("%w; beside imagectl serve of another cluster, let both cluster.yaml name the other's server in boot.neighbours", err)
	default:
		return fmt.Errorf("%w; if that is imagectl serve of another cluster, let its cluster.yaml name this server %s in boot.neighbours", err, cfg.Address)
	}
	return err
}

// reuse lets others have the same port. What is sent to everybody then reaches all of them.
func reuse(fd int, yes bool) error {
	if !yes {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("setting SO_REUSEADDR: %w", err)
	}
	return nil
}

// find is the interface of a link with our address there.
func (l Link) find() (*net.Interface, netip.Addr, error) {
	ifi, err := interfaceByName(l.Interface)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	addrs, err := addresses(ifi)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	for _, a := range addrs {
		if l.Prefix.Contains(a.Addr()) {
			return ifi, a.Addr(), nil
		}
	}
	return nil, netip.Addr{}, fmt.Errorf("listening on %s: it has the addresses %v but none in its subnet %s (ip address add it, or change the subnet's interface in cluster.yaml)",
		l.Interface, addrs, l.Prefix)
}

// boundInterface checks that answers will leave from the address that clients
// were told.
func boundInterface(name string, address netip.Addr) (*net.Interface, error) {
	if !address.Is4() {
		return nil, fmt.Errorf("listening on %s: server.address %s is not an IPv4 address", name, address)
	}
	if name == "" {
		return interfaceOf(address)
	}
	ifi, err := interfaceByName(name)
	if err != nil {
		return nil, err
	}
	addrs, err := addresses(ifi)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.Addr() == address {
			return ifi, nil
		}
	}
	return nil, fmt.Errorf("listening on %s: it has the addresses %v but not server.address %s (ip address add %s/24 dev %s, or change server.address in cluster.yaml)",
		name, addrs, address, address, name)
}

func interfaceByName(name string) (*net.Interface, error) {
	ifi, err := net.InterfaceByName(name)
	if err == nil {
		return ifi, nil
	}
	var have []string
	if all, err := net.Interfaces(); err == nil {
		for _, i := range all {
			have = append(have, i.Name)
		}
	}
	return nil, fmt.Errorf("listening on %s: %w (set boot.interface in cluster.yaml to one of %v)", name, err, have)
}

// interfaceOf finds the interface that has an address.
func interfaceOf(address netip.Addr) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	for _, ifi := range all {
		addrs, err := addresses(&ifi)
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			if a.Addr() == address {
				return &ifi, nil
			}
		}
	}
	return nil, fmt.Errorf("listening on %s: no interface has this address; set server.address in cluster.yaml to one of this host's", address)
}

func addresses(ifi *net.Interface) ([]netip.Prefix, error) {
	all, err := ifi.Addrs()
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", ifi.Name, err)
	}
	var out []netip.Prefix
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// packet opens a UDP socket. Address reuse stays off but for Sockets.Broadcast: a second
// DHCP server on the same interface must be an error and not a lottery. Servers that are bound to
// other interfaces do not collide.
func packet(ctx context.Context, address, device string) (*net.UDPConn, error) {
	return udp(ctx, "udp4", address, func(fd int) error { return options(fd, device) })
}

func udp(ctx context.Context, network, address string, options func(fd int) error) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = options(int(fd)) })
		return errors.Join(err, failed)
	}}
	conn, err := lc.ListenPacket(ctx, network, address)
	if err != nil {
		return nil, explain("udp", address, err)
	}
	out, ok := conn.(*net.UDPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("listening on udp %s: got a %T", address, conn)
	}
	return out, nil
}

// receiveBuffer holds the first requests of a rack that is switched on at once:
// what does not fit is lost, and its sender waits for seconds.
const receiveBuffer = 4 << 20

func options(fd int, device string) error {
	// The DF bit, which path MTU discovery sets, confuses ROMs.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT); err != nil {
		return fmt.Errorf("setting IP_MTU_DISCOVER: %w", err)
	}
	// More needs net.core.rmem_max, which then is what we get.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer); err != nil {
		return fmt.Errorf("setting SO_RCVBUF: %w", err)
	}
	if device == "" {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
		return fmt.Errorf("setting SO_BROADCAST: %w", err)
	}
	if err := unix.BindToDevice(fd, device); err != nil {
		return fmt.Errorf("binding to %s: %w", device, err)
	}
	return nil
}

// explain adds who is in the way or what is missing.
func explain(network, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, splitErr := net.SplitHostPort(address)
		n, atoiErr := strconv.Atoi(port)
		if splitErr == nil && atoiErr == nil {
			if who := holder(network, n); who != "" {
				return fmt.Errorf("listening on %s %s: port %s is taken by %s; stop it, or let it use another interface: %w", network, address, port, who, err)
			}
		}
		return fmt.Errorf("listening on %s %s: the port is taken; \"ss -lnp\" as root shows by whom: %w", network, address, err)
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("listening on %s %s: run as root, or grant CAP_NET_BIND_SERVICE and CAP_NET_RAW (AmbientCapabilities= in the unit): %w", network, address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("listening on %s %s: no interface has this address; set server.address in cluster.yaml: %w", network, address, err)
	}
	return fmt.Errorf("listening on %s %s: %w", network, address, err)
}

// from sends every packet from one source address, also when the interface has
// several.
type from struct {
	*net.UDPConn
	// source is the control message that says so.
	source []byte
}

// WriteTo implements net.PacketConn.
func (c from) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("writing to %v: it is no UDP address", to)
	}
	at := udp.AddrPort()
	n, _, err := c.WriteMsgUDPAddrPort(b, c.source, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	return n, err
}

// ReadBatch fills a batch with what has come, with at least one packet.
func (c from) ReadBatch(b *datagram.Batch) error { return datagram.Read(c.UDPConn, b) }

// WriteBatch sends a batch and empties it; it calls failed for what does not leave.
func (c from) WriteBatch(b *datagram.Batch, failed func(i int, err error)) {
	datagram.Write(c.UDPConn, b, c.source, failed)
}

// Close closes what is open.
func (s Sockets) Close() error {
	var errs []error
	all := []interface{ Close() error }{s.DHCP, s.Broadcast, s.BootServer, s.TFTP, s.HTTP, s.HTTPS, s.BootTLS, s.DHCP6, s.TFTP6, s.Routers, s.HTTP6, s.Syslog}
	for _, l := range s.Links {
		all = append(all, l.DHCP, l.Broadcast, l.BootServer)
	}
	for _, c := range all {
		if c == nil {
			continue
		}
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
