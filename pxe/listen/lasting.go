//go:build linux

package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/pxe/datagram"
)

// lasting is a socket that is bound to an interface and outlives it. When an interface is
// deleted and made anew under its name (a VLAN or bridge whose configuration was changed),
// a socket that was bound to the first hears nothing of the second, and no error either:
// SO_BINDTODEVICE holds the index. So keep opens it anew. Reads wait meanwhile, writes fail.
// It is safe for concurrent use.
type lasting struct {
	// name is the interface's, and address ours on it.
	name    string
	address netip.Addr
	open    func(context.Context, *net.Interface) (net.PacketConn, error)

	mu sync.Mutex
	// conn is nil while there is no such interface; index is the interface's.
	conn   net.PacketConn
	index  int
	closed bool
	// changed is closed when conn or closed changes.
	changed chan struct{}
}

// last opens a socket on an interface that outlives it.
func (s *Sockets) last(ctx context.Context, ifi *net.Interface, address netip.Addr, open func(context.Context, *net.Interface) (net.PacketConn, error)) (net.PacketConn, error) {
	conn, err := open(ctx, ifi)
	if err != nil {
		return nil, err
	}
	l := &lasting{name: ifi.Name, address: address, open: open, conn: conn, index: ifi.Index, changed: make(chan struct{})}
	s.lasting = append(s.lasting, l)
	return l, nil
}

// ReadFrom implements net.PacketConn.
func (l *lasting) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	err = l.read(func(conn net.PacketConn) error {
		n, from, err = conn.ReadFrom(b)
		return err
	})
	return n, from, err
}

// ReadBatch fills a batch with what has come, with at least one packet.
func (l *lasting) ReadBatch(b *datagram.Batch) error {
	return l.read(func(conn net.PacketConn) error { return datagram.Of(conn).ReadBatch(b) })
}

// read calls one with the socket there is, until that succeeds or fails for another reason
// than that there is another one now.
func (l *lasting) read(one func(net.PacketConn) error) error {
	for {
		l.mu.Lock()
		conn, closed, changed := l.conn, l.closed, l.changed
		l.mu.Unlock()
		switch {
		case closed:
			return net.ErrClosed
		case conn == nil:
			<-changed
			continue
		}
		err := one(conn)
		if err == nil || !isClosed(changed) {
			return err
		}
	}
}

// WriteTo implements net.PacketConn.
func (l *lasting) WriteTo(b []byte, to net.Addr) (int, error) {
	conn, err := l.now()
	if err != nil {
		return 0, fmt.Errorf("writing to %v: %w", to, err)
	}
	return conn.WriteTo(b, to)
}

// WriteBatch sends a batch and empties it; it calls failed for what does not leave.
func (l *lasting) WriteBatch(b *datagram.Batch, failed func(i int, err error)) {
	conn, err := l.now()
	if err != nil {
		b.Fail(err, failed)
		return
	}
	datagram.Of(conn).WriteBatch(b, failed)
}

// now is the socket there is.
func (l *lasting) now() (net.PacketConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, net.ErrClosed
	case l.conn == nil:
		return nil, fmt.Errorf("there is no interface %s now", l.name)
	}
	return l.conn, nil
}

// isClosed tells whether a socket was replaced or closed since changed was its channel.
func isClosed(changed chan struct{}) bool {
	select {
	case <-changed:
		return true
	default:
		return false
	}
}

// replace takes another socket, or none, in place of the one there is.
func (l *lasting) replace(conn net.PacketConn, index int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		if conn != nil {
			return conn.Close()
		}
		return nil
	}
	old := l.conn
	l.conn, l.index = conn, index
	close(l.changed)
	l.changed = make(chan struct{})
	if old != nil {
		return old.Close()
	}
	return nil
}

// Close implements net.PacketConn.
func (l *lasting) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	close(l.changed)
	if l.conn != nil {
		return l.conn.Close()
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (l *lasting) LocalAddr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		return &net.UDPAddr{}
	}
	return l.conn.LocalAddr()
}

var errNoDeadline = errors.New("a socket that outlives its interface has no deadlines")

// SetDeadline implements net.PacketConn.
func (l *lasting) SetDeadline(time.Time) error { return errNoDeadline }

// SetReadDeadline implements net.PacketConn.
func (l *lasting) SetReadDeadline(time.Time) error { return errNoDeadline }

// SetWriteDeadline implements net.PacketConn.
func (l *lasting) SetWriteDeadline(time.Time) error { return errNoDeadline }

// KeepOpen opens the sockets of DHCP and DHCPv6 anew that are bound to an interface which
// was deleted and made anew, until ctx ends. The log tells what becomes of interfaces. It
// ends with an error when it cannot tell any more, or a socket cannot be opened anew.
func (s Sockets) KeepOpen(ctx context.Context, log *slog.Logger) error {
	if len(s.lasting) == 0 {
		<-ctx.Done()
		return nil
	}
	changes, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return fmt.Errorf("watching the network's interfaces: %w", err)
	}
	defer changes.Close()
	stop := context.AfterFunc(ctx, changes.Close)
	defer stop()
	next := func() error {
		_, _, err := changes.Receive()
		if errors.Is(err, syscall.ENOBUFS) {
			return nil // there was more than could be told
		}
		return err
	}
	return s.keep(ctx, system{}, next, log)
}

// keep looks at the interfaces after each change that next has waited for.
func (s Sockets) keep(ctx context.Context, on interfaces, next func() error, log *slog.Logger) error {
	for {
		for _, l := range s.lasting {
			if err := l.follow(ctx, on, log); err != nil {
				return err
			}
		}
		if err := next(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching the network's interfaces: %w", err)
		}
	}
}

// interfaces are those that there are. Of one that there is not byName returns nil.
type interfaces interface {
	byName(name string) (*net.Interface, error)
	addresses(*net.Interface) ([]netip.Prefix, error)
}

// system has this machine's.
type system struct{}

func (system) byName(name string) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, ifi := range all {
		if ifi.Name == name {
			return &ifi, nil
		}
	}
	return nil, nil
}

func (system) addresses(ifi *net.Interface) ([]netip.Prefix, error) { return addresses(ifi) }

// follow brings a socket to the interface that has its name now.
func (l *lasting) follow(ctx context.Context, on interfaces, log *slog.Logger) error {
	ifi, err := on.byName(l.name)
	if err != nil {
		return fmt.Errorf("looking for the interface %s: %w", l.name, err)
	}
	l.mu.Lock()
	open, index := l.conn != nil, l.index
	l.mu.Unlock()
	if open && ifi != nil && ifi.Index == index {
		return nil
	}
	if open {
		log.Warn("an interface is gone", "interface", l.name, "reason", "nobody there is answered until it is back with the address "+l.address.String())
		if err := l.replace(nil, 0); err != nil {
			return fmt.Errorf("closing the socket of the interface %s, which is gone: %w", l.name, err)
		}
	}
	if ifi == nil {
		return nil
	}
	has, err := on.addresses(ifi)
	if err != nil || !slices.ContainsFunc(has, func(p netip.Prefix) bool { return p.Addr() == l.address }) {
		return nil // it has just gone again, or its address is still to come
	}
	conn, err := l.open(ctx, ifi)
	if err != nil {
		if now, lookErr := on.byName(l.name); lookErr == nil && (now == nil || now.Index != ifi.Index) {
			return nil // it was not there any more
		}
		return fmt.Errorf("opening the socket of the interface %s anew: %w", l.name, err)
	}
	log.Info("an interface is back", "interface", l.name, "address", l.address)
	return l.replace(conn, ifi.Index)
}
