package inspect

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/api"
)

// interrupted is how often the kernel is asked again when its tables changed under the answer.
const interrupted = 5

// Network is what the kernel says of links, addresses and routes of all tables, and, if they
// are asked for, of TCP and UDP sockets.
func (s *System) Network(ctx context.Context, req *api.NetworkRequest) (*api.NetworkResponse, error) {
	out := &api.NetworkResponse{Dns: s.nameServers()}
	names, err := s.links(out)
	if err != nil {
		return nil, fmt.Errorf("reading links: %w", err)
	}
	if err := routes(out, names); err != nil {
		return nil, fmt.Errorf("reading routes: %w", err)
	}
	if req.GetNoSockets() {
		return out, nil
	}
	if err := s.sockets(ctx, out); err != nil {
		return nil, fmt.Errorf("reading sockets: %w", err)
	}
	return out, nil
}

// whole repeats a question until nothing has changed while it was answered.
func whole[T any](ask func() ([]T, error)) (all []T, err error) {
	for range interrupted {
		if all, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil // as good as it gets on a busy node
}

func (s *System) links(out *api.NetworkResponse) (map[int]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	addresses, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		m := &api.NodeLink{
			Name: clean(a.Name), Index: uint32(a.Index), Type: l.Type(), Mac: a.HardwareAddr.String(), Mtu: uint32(a.MTU),
			State: linkState(a.OperState), Master: clean(names[a.MasterIndex]),
		}
		if flags := a.Flags.String(); flags != "0" {
			m.Flags = strings.Split(flags, "|")
		}
		// -1 for a link that is down, an error for one without a speed.
		if n, err := strconv.ParseUint(s.word("/sys/class/net", filepath.Base(a.Name), "speed"), 10, 32); err == nil {
			m.Speed = uint32(n)
		}
		if c := a.Statistics; c != nil {
			m.RxBytes, m.RxPackets, m.RxErrors, m.RxDropped = c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped
			m.TxBytes, m.TxPackets, m.TxErrors, m.TxDropped = c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped
		}
		for _, addr := range addresses {
			if addr.LinkIndex == a.Index && addr.IPNet != nil {
				m.Addresses = append(m.Addresses, addr.IPNet.String())
			}
		}
		out.Links = append(out.Links, m)
	}
	return names, nil
}

// linkState words what ip(8) shows in capitals (RFC 2863).
func linkState(s netlink.LinkOperState) string {
	return strings.ReplaceAll(s.String(), "-", "")
}

func routes(out *api.NetworkResponse, names map[int]string) error {
	// Table 0 is all of them.
	all, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return err
	}
	for _, r := range all {
		if len(out.Routes) >= routesMax {
			out.Truncated = true
			return nil
		}
		m := &api.NodeRoute{Link: clean(names[r.LinkIndex]), Metric: uint32(r.Priority), Table: uint32(r.Table), Type: routeType(r.Type), Protocol: r.Protocol.String()}
		switch {
		case r.Dst != nil:
			m.Destination = r.Dst.String()
		case r.Family == netlink.FAMILY_V6:
			m.Destination = "::/0"
		default:
			m.Destination = "0.0.0.0/0"
		}
		if r.Src != nil {
			m.Source = r.Src.String()
		}
		m.Gateway = gateway(r.Gw, r.Via)
		out.Routes = append(out.Routes, m)
		// The first next hop takes the place of none.
		for i, hop := range r.MultiPath {
			n := m
			if i > 0 {
				n = &api.NodeRoute{Destination: m.Destination, Source: m.Source, Metric: m.Metric, Table: m.Table, Type: m.Type, Protocol: m.Protocol}
				out.Routes = append(out.Routes, n)
			}
			n.Link, n.Gateway = clean(names[hop.LinkIndex]), gateway(hop.Gw, hop.Via)
		}
	}
	return nil
}

func gateway(gw net.IP, via netlink.Destination) string {
	if gw != nil {
		return gw.String()
	}
	if v, ok := via.(*netlink.Via); ok {
		return v.Addr.String()
	}
	return ""
}

// routeType names a kind of route as ip-route(8) does.
func routeType(n int) string {
	names := []string{"", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit", "throw", "nat"}
	if n > 0 && n < len(names) {
		return names[n]
	}
	return strconv.Itoa(n)
}

// socketStates are the kernel's (include/net/tcp_states.h), in ss(8)'s words.
func socketState(protocol string, n uint8) string {
	names := []string{"", "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "SYN-RECV"}
	if n == 0 || int(n) >= len(names) {
		return strconv.Itoa(int(n))
	}
	return names[n]
}

func (s *System) sockets(ctx context.Context, out *api.NetworkResponse) error {
	var all []found
	for _, k := range []struct {
		protocol string
		ask      func(uint8) ([]*netlink.Socket, error)
	}{{"tcp", netlink.SocketDiagTCP}, {"udp", netlink.SocketDiagUDP}} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			got, err := whole(func() ([]*netlink.Socket, error) { return k.ask(family) })
			if err != nil {
				return err
			}
			for _, c := range got {
				all = append(all, found{c, k.protocol})
			}
		}
	}
	// Who listens comes first, and stays when there are too many.
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(a.rank(), b.rank()) })
	if len(all) > socketsMax {
		all, out.Truncated = all[:socketsMax], true
	}
	wanted := map[uint32]holder{}
	for _, c := range all {
		if c.INode != 0 {
			wanted[c.INode] = holder{}
		}
	}
	s.holders(ctx, wanted)
	for _, c := range all {
		h := wanted[c.INode]
		out.Sockets = append(out.Sockets, &api.NodeSocket{
			Protocol: c.protocol, Local: endpoint(c.Family, c.ID.Source, c.ID.SourcePort), Remote: endpoint(c.Family, c.ID.Destination, c.ID.DestinationPort),
			State: socketState(c.protocol, c.State), ReceiveQueue: c.RQueue, SendQueue: c.WQueue, Pid: h.pid, Process: h.name,
		})
	}
	return nil
}

type found struct {
	*netlink.Socket
	protocol string
}

func (f found) rank() int {
	if f.State == 10 || f.State == 7 { // LISTEN, UNCONN
		return 0
	}
	return 1
}

// endpoint words one end. The library holds IPv4 addresses as IPv6 does; those of IPv6 sockets
// that are mapped stay so, as ss(8) shows them.
func endpoint(family uint8, ip net.IP, port uint16) string {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return ""
	}
	if family == unix.AF_INET {
		a = a.Unmap()
	}
	p := strconv.Itoa(int(port))
	if port == 0 {
		p = "*"
	}
	return net.JoinHostPort(a.String(), p)
}

// holder is a process that has a socket open.
type holder struct {
	pid  uint32
	name string
}

// holders finds out who has which of the wanted sockets, by the numbers of their inodes. What
// is out of reach (another's process, when this one is not root) stays unknown.
func (s *System) holders(ctx context.Context, wanted map[uint32]holder) {
	processes, err := os.ReadDir(s.path("/proc"))
	if err != nil {
		return
	}
	looked := 0
	for _, p := range processes {
		pid, err := strconv.ParseUint(p.Name(), 10, 32)
		if err != nil || ctx.Err() != nil {
			continue
		}
		dir := s.path("/proc/" + p.Name())
		descriptors, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue
		}
		name := ""
		for _, d := range descriptors {
			if looked++; looked > descriptorsMax {
				return
			}
			target, err := os.Readlink(dir + "/fd/" + d.Name())
			if err != nil {
				continue
			}
			inode, ok := socketInode(target)
			if !ok {
				continue
			}
			if h, ok := wanted[inode]; !ok || h.pid != 0 {
				continue
			}
			if name == "" {
				b, err := os.ReadFile(dir + "/comm")
				if err != nil {
					break
				}
				name = clean(string(bytes.TrimSpace(b)))
			}
			wanted[inode] = holder{uint32(pid), name}
		}
	}
}

// socketInode reads what a descriptor's link says: "socket:[1234]".
func socketInode(target string) (uint32, bool) {
	rest, ok := strings.CutPrefix(target, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 32)
	return uint32(n), err == nil
}

// nameServers are those that systemd-resolved asks; without it, what programs are told.
func (s *System) nameServers() (out []string) {
	for _, name := range []string{"/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"} {
		b, err := os.ReadFile(s.path(name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
				out = append(out, clean(f[1]))
			}
		}
		return out
	}
	return nil
}
