// Package datagram receives and sends many UDP packets with one system call (recvmmsg(2),
// sendmmsg(2)). It knows nothing of what is in them.
//
// What cannot block is no system call to the runtime here: its watch over threads that are in
// one takes the processor from each that is for more than 20 millionths of a second, and looks
// all the time as long as it finds some.
package datagram

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// AtOnce is how many packets one system call takes.
const AtOnce = 32

// Batch is packets that are received or sent together, with the address of each. They cost
// memory only once. It is not safe for concurrent use.
type Batch struct {
	n       int
	data    [AtOnce][]byte
	buffers [AtOnce][]byte
	// What the kernel reads and writes.
	messages [AtOnce]message
	vectors  [AtOnce]unix.Iovec
	names    [AtOnce][unix.SizeofSockaddrInet6]byte
}

// message is the kernel's struct mmsghdr.
type message struct {
	unix.Msghdr
	n uint32
}

// New has room for packets of so many bytes.
func New(size int) *Batch {
	b := &Batch{}
	for i := range AtOnce {
		b.buffers[i] = make([]byte, size)
		b.messages[i].Iov = &b.vectors[i]
		b.messages[i].SetIovlen(1)
		b.messages[i].Name = &b.names[i][0]
	}
	return b
}

// Len is how many packets there are.
func (b *Batch) Len() int { return b.n }

// Full says that there is no room for another packet.
func (b *Batch) Full() bool { return b.n == AtOnce }

// Data is what is in a packet, until the batch changes.
func (b *Batch) Data(i int) []byte { return b.data[i] }

// Peer is who sent a packet, or whom it is for; the zero value is nobody.
func (b *Batch) Peer(i int) netip.AddrPort { return nameOf(&b.names[i]) }

// Add puts a packet in for a client, made by write in a buffer that it is given, or its own.
// There has to be room. four says that it leaves by a socket of IPv4 only.
func (b *Batch) Add(to netip.AddrPort, four bool, write func(buf []byte) []byte) {
	i := b.n
	b.n++
	b.data[i] = write(b.buffers[i][:0])
	b.vectors[i].Base = unsafe.SliceData(b.data[i])
	b.vectors[i].SetLen(len(b.data[i]))
	b.messages[i].Namelen = putName(&b.names[i], to, four)
}

// Fail calls failed for all packets, and takes them out.
func (b *Batch) Fail(err error, failed func(i int, err error)) {
	for i := range b.n {
		failed(i, err)
	}
	b.n = 0
}

// Receive takes what has come, or waits for the first.
func (b *Batch) Receive(fd int) error {
	err := b.Take(fd)
	if !errors.Is(err, unix.EAGAIN) {
		return err
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages)), AtOnce, unix.MSG_WAITFORONE, 0, 0)
	return b.took(n, errno)
}

// Take takes what has come. The error is unix.EAGAIN when nothing has.
func (b *Batch) Take(fd int) error {
	for i := range AtOnce {
		b.vectors[i].Base = unsafe.SliceData(b.buffers[i])
		b.vectors[i].SetLen(len(b.buffers[i]))
		b.messages[i].Namelen = uint32(len(b.names[i]))
	}
	b.n = 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages)), AtOnce, unix.MSG_DONTWAIT, 0, 0)
	return b.took(n, errno)
}

func (b *Batch) took(n uintptr, errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	b.n = int(n)
	for i := range b.n {
		b.data[i] = b.buffers[i][:b.messages[i].n]
	}
	return nil
}

// Send sends what can leave at once, and takes all packets out. The error is of the last that
// did not leave.
func (b *Batch) Send(fd int) (failed error) {
	for i := 0; i < b.n; {
		n, err := b.send(fd, i)
		if err != nil {
			failed, n = err, 1 // past the one that did not leave
		}
		i += n
	}
	b.n = 0
	return failed
}

// send sends what can leave at once, from packet i on, and returns how many did.
func (b *Batch) send(fd, i int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[i])), uintptr(b.n-i), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// putName writes a sockaddr_in or sockaddr_in6, and returns its length.
func putName(b *[unix.SizeofSockaddrInet6]byte, a netip.AddrPort, four bool) uint32 {
	clear(b[:])
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if four {
		binary.NativeEndian.PutUint16(b[:], unix.AF_INET)
		at := a.Addr().As4()
		copy(b[4:], at[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(b[:], unix.AF_INET6)
	at := a.Addr().As16()
	copy(b[8:], at[:])
	binary.NativeEndian.PutUint32(b[24:], Zone(a.Addr()))
	return unix.SizeofSockaddrInet6
}

// nameOf is the inverse.
func nameOf(b *[unix.SizeofSockaddrInet6]byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case unix.AF_INET6:
		a := netip.AddrFrom16([16]byte(b[8:24])).Unmap()
		if zone := binary.NativeEndian.Uint32(b[24:]); zone != 0 {
			a = a.WithZone(strconv.FormatUint(uint64(zone), 10))
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPort{}
}

// Canonical is an address as Peer has it: package net names the interface of a
// link-local address, the kernel numbers it.
func Canonical(a netip.AddrPort) netip.AddrPort {
	at := a.Addr().Unmap()
	if at.Zone() != "" {
		if ifi, err := net.InterfaceByName(at.Zone()); err == nil {
			at = at.WithZone(strconv.Itoa(ifi.Index))
		}
	}
	return netip.AddrPortFrom(at, a.Port())
}

// Zone is the number of the interface of a canonical link-local address, else 0.
func Zone(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	n, _ := strconv.ParseUint(a.Zone(), 10, 32) // 0 for one that has just gone
	return uint32(n)
}
