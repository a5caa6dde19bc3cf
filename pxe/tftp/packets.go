package tftp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// atOnce is how many packets one system call takes.
const atOnce = 32

// packets are datagrams that are received or sent together (recvmmsg(2), sendmmsg(2)),
// with the address of each. They cost memory only once. It is not safe for concurrent use.
type packets struct {
	n       int
	data    [atOnce][]byte
	buffers [atOnce][]byte
	// What the kernel reads and writes.
	messages [atOnce]message
	vectors  [atOnce]unix.Iovec
	names    [atOnce][unix.SizeofSockaddrInet6]byte
}

// message is the kernel's struct mmsghdr.
type message struct {
	unix.Msghdr
	n uint32
}

// newPackets has room for packets of so many bytes.
func newPackets(size int) *packets {
	p := &packets{}
	for i := range atOnce {
		p.buffers[i] = make([]byte, size)
		p.messages[i].Iov = &p.vectors[i]
		p.messages[i].SetIovlen(1)
		p.messages[i].Name = &p.names[i][0]
	}
	return p
}

// add puts a packet in for a client, made by write in a buffer that it is given. There
// has to be room.
func (p *packets) add(to netip.AddrPort, four bool, write func(buf []byte) []byte) {
	i := p.n
	p.n++
	p.data[i] = write(p.buffers[i][:0])
	p.vectors[i].Base = unsafe.SliceData(p.data[i])
	p.vectors[i].SetLen(len(p.data[i]))
	p.messages[i].Namelen = putName(&p.names[i], to, four)
}

func (p *packets) full() bool { return p.n == atOnce }

// from is the sender of a packet that was received; the zero value is nobody's.
func (p *packets) from(i int) netip.AddrPort { return nameOf(&p.names[i]) }

// receive takes what has come, or waits for the first (recvmmsg(2)).
//
// What cannot block is no system call to the runtime, here and in send: its watch over threads
// that are in one takes the processor from each that is for more than 20 millionths of a second,
// and looks all the time as long as it finds some.
func (p *packets) receive(fd int) error {
	for i := range atOnce {
		p.vectors[i].Base = unsafe.SliceData(p.buffers[i])
		p.vectors[i].SetLen(len(p.buffers[i]))
		p.messages[i].Namelen = uint32(len(p.names[i]))
	}
	p.n = 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.messages)), atOnce, unix.MSG_DONTWAIT, 0, 0)
	if errno == unix.EAGAIN {
		n, _, errno = unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.messages)), atOnce, unix.MSG_WAITFORONE, 0, 0)
	}
	if errno != 0 {
		return errno
	}
	p.n = int(n)
	for i := range p.n {
		p.data[i] = p.buffers[i][:p.messages[i].n]
	}
	return nil
}

func (p *packets) send(fd int) (failed error) {
	for i := 0; i < p.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.messages[i])), uintptr(p.n-i), unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			failed, n = errno, 1 // past the one that did not leave
		}
		i += int(n)
	}
	p.n = 0
	return failed
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
	binary.NativeEndian.PutUint32(b[24:], zone(a.Addr()))
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

// canonical is an address as nameOf has it: package net names the interface of a
// link-local address, the kernel numbers it.
func canonical(a netip.AddrPort) netip.AddrPort {
	at := a.Addr().Unmap()
	if at.Zone() != "" {
		if ifi, err := net.InterfaceByName(at.Zone()); err == nil {
			at = at.WithZone(strconv.Itoa(ifi.Index))
		}
	}
	return netip.AddrPortFrom(at, a.Port())
}

// zone is the number of the interface of a canonical link-local address, else 0.
func zone(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	n, _ := strconv.ParseUint(a.Zone(), 10, 32) // 0 for one that has just gone
	return uint32(n)
}
