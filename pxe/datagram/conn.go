package datagram

import (
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Conn sends and receives batches. It is safe for concurrent use.
type Conn interface {
	// ReadBatch fills a batch with what has come, with at least one packet: it waits for
	// the first.
	ReadBatch(b *Batch) error
	// WriteBatch sends a batch and takes the packets out. It waits while the socket has no
	// room for them, and calls failed for those that do not leave.
	WriteBatch(b *Batch, failed func(i int, err error))
}

// Of is a socket that does so by itself, or else one packet after the other.
func Of(conn net.PacketConn) Conn {
	if c, ok := conn.(Conn); ok {
		return c
	}
	return single{conn}
}

// single takes one packet with each call.
type single struct{ net.PacketConn }

// ReadBatch implements Conn.
func (s single) ReadBatch(b *Batch) error {
	b.n = 0
	n, from, err := s.ReadFrom(b.buffers[0])
	if err != nil {
		return err
	}
	var peer netip.AddrPort
	if udp, ok := from.(*net.UDPAddr); ok {
		peer = Canonical(udp.AddrPort())
	}
	b.n, b.data[0] = 1, b.buffers[0][:n]
	putName(&b.names[0], peer, peer.Addr().Is4())
	return nil
}

// WriteBatch implements Conn.
func (s single) WriteBatch(b *Batch, failed func(i int, err error)) {
	for i := range b.n {
		if _, err := s.WriteTo(b.data[i], net.UDPAddrFromAddrPort(b.Peer(i))); err != nil {
			failed(i, err)
		}
	}
	b.n = 0
}

// Read is Conn's ReadBatch for a socket of package net.
func Read(conn *net.UDPConn, b *Batch) error {
	b.n = 0
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		failed = b.Take(int(fd))
		return !errors.Is(failed, unix.EAGAIN)
	})
	return errors.Join(err, failed)
}

// Write is Conn's WriteBatch for one; each packet has the control messages (cmsg(3)) too,
// of which there may be none.
func Write(conn *net.UDPConn, b *Batch, control []byte, failed func(i int, err error)) {
	for i := range b.n {
		m := &b.messages[i]
		m.Control = nil
		if len(control) > 0 {
			m.Control = &control[0]
		}
		m.SetControllen(len(control))
	}
	sent := 0
	all := func(fd uintptr) bool {
		for sent < b.n {
			n, err := b.send(int(fd), sent)
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if err != nil {
				failed(sent, err)
				n = 1 // past the one that did not leave
			}
			sent += n
		}
		return true
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Write(all)
	}
	if err != nil {
		for ; sent < b.n; sent++ {
			failed(sent, err)
		}
	}
	b.n = 0
}
