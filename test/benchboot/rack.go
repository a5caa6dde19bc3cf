package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a frame of a simulated machine consists of (IEEE 802.3, RFC 791, RFC 768), and how long
// these parts are.
const (
	etherLen, ipLen, udpLen = 14, 20, 8
	headersLen              = etherLen + ipLen + udpLen
)

// The rings have slots of slotSize bytes, of which a frame of ours takes what is behind slotHead
// (struct tpacket2_hdr). A burst is one answer of all machines and more.
const (
	slotSize, slots = 2048, 1024
	slotHead        = int(unsafe.Sizeof(unix.Tpacket2Hdr{}))
	// ringBlock is what the kernel allocates the rings in.
	ringBlock = 1 << 16
)

// rack is machines on the clients' end of the wire that are not the kernel's: one thread reads
// and writes their frames in rings that it shares with the kernel (packet_mmap). In a rack the
// clients' work is done by their own processors; here it takes from the server's, so it is as
// little as can be. It is not safe for concurrent use.
type rack struct {
	fd   int
	ring []byte
	// in and out are the slots that are next.
	in, out int
	// unsent says that slots of out are filled in that the kernel has not been told about.
	unsent   bool
	machines []client
	// port is the machines' in this load: what comes late from the one before has another.
	port uint16
	// generation tells the cards of one exchange from those of another.
	generation int
}

// client is one machine that loads a file.
type client struct {
	card    net.HardwareAddr
	address netip.Addr
	// port is the server's for this transfer.
	port     uint16
	expected uint16
	size     int
	done     bool
	// last is what it said last, and when.
	last []byte
	at   time.Time
}

// newRack has so many machines on the wire, whose servers know their cards, with addresses
// from first on.
func newRack(ctx context.Context, s *space, first string, machines int) (*rack, error) {
	r := &rack{fd: -1, port: 2048}
	at := netip.MustParseAddr(first)
	for i := range machines {
		r.machines = append(r.machines, client{card: card(i), address: at})
		if err := s.run(ctx, "ip", "neighbour", "replace", at.String(), "lladdr", card(i).String(), "dev", "rack", "nud", "permanent"); err != nil {
			return nil, err
		}
		at = at.Next()
	}
	if err := r.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("simulating machines: %w", err), r.close())
	}
	return r, nil
}

func (r *rack) open() error {
	ifi, err := net.InterfaceByName("probe")
	if err != nil {
		return err
	}
	if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V2); err != nil {
		return fmt.Errorf("setting PACKET_VERSION: %w", err)
	}
	rings := &unix.TpacketReq{Block_size: ringBlock, Block_nr: slots * slotSize / ringBlock, Frame_size: slotSize, Frame_nr: slots}
	for _, o := range []int{unix.PACKET_RX_RING, unix.PACKET_TX_RING} {
		if err := unix.SetsockoptTpacketReq(r.fd, unix.SOL_PACKET, o, rings); err != nil {
			return fmt.Errorf("making a ring: %w", err)
		}
	}
	if r.ring, err = unix.Mmap(r.fd, 0, 2*slots*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("mapping the rings: %w", err)
	}
	return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16([]byte{0x08, 0x00}), Ifindex: ifi.Index})
}

func (r *rack) close() error {
	var err error
	if r.ring != nil {
		err = unix.Munmap(r.ring)
	}
	if r.fd >= 0 {
		err = errors.Join(err, unix.Close(r.fd))
	}
	return err
}

// slot is one of the receiving ring, or, behind those, of the sending one.
func (r *rack) slot(i int) (*unix.Tpacket2Hdr, []byte) {
	s := r.ring[i*slotSize:][:slotSize]
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&s[0])), s
}

// load lets so many machines load a file at once, in lock-step as firmware does, and returns how
// many bytes came. What is lost is asked for again after a second.
func (r *rack) load(ctx context.Context, name string, clients int) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r.port++
	all := r.machines[:clients]
	for i := range all {
		c := &all[i]
		c.port, c.expected, c.size, c.done = 69, 1, 0, false
		r.say(c, []byte("\x00\x01"+name+"\x00octet\x00blksize\x00"+strconv.Itoa(blockSize)+"\x00"))
	}
	total, left := 0, clients
	for until := time.Now().Add(time.Minute); left > 0; {
		err := r.hear(func(frame []byte) error {
			done, err := r.take(frame)
			if done {
				left--
			}
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", name, err)
		}
		now := time.Now()
		if ctx.Err() != nil || now.After(until) {
			return 0, fmt.Errorf("reading %s: %d of %d machines have not got it: %w", name, left, clients, errors.Join(ctx.Err(), context.DeadlineExceeded))
		}
		for i := range all {
			if c := &all[i]; !c.done && now.Sub(c.at) > time.Second {
				r.say(c, c.last)
			}
		}
	}
	for i := range all {
		total += all[i].size
	}
	return total, r.flush()
}

// hear lets what was said leave, waits a moment and calls each for every frame that came. A
// frame is valid until each returns.
func (r *rack) hear(each func(frame []byte) error) error {
	if err := r.flush(); err != nil {
		return err
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}, 100); err != nil && !errors.Is(err, unix.EINTR) {
		return err
	}
	for {
		head, s := r.slot(r.in)
		if atomic.LoadUint32(&head.Status)&unix.TP_STATUS_USER == 0 {
			return nil
		}
		if err := each(s[head.Mac:][:head.Snaplen]); err != nil {
			return err
		}
		atomic.StoreUint32(&head.Status, unix.TP_STATUS_KERNEL)
		r.in = (r.in + 1) % slots
	}
}

// take takes a frame in, and says whether its machine has the whole file with it.
func (r *rack) take(frame []byte) (done bool, err error) {
	if len(frame) < headersLen+4 || frame[etherLen] != 0x45 || frame[etherLen+9] != unix.IPPROTO_UDP {
		return false, nil
	}
	ip, udp := frame[etherLen:], frame[etherLen+ipLen:]
	first := r.machines[0].address.As4()
	i := int(binary.BigEndian.Uint32(ip[16:])) - int(binary.BigEndian.Uint32(first[:]))
	if i < 0 || i >= len(r.machines) || binary.BigEndian.Uint16(udp[2:]) != r.port {
		return false, nil
	}
	c, packet := &r.machines[i], udp[udpLen:binary.BigEndian.Uint16(udp[4:])]
	switch op, number := binary.BigEndian.Uint16(packet), binary.BigEndian.Uint16(packet[2:]); {
	case c.done:
		return false, nil
	case op == 5:
		return false, fmt.Errorf("error %d: %q", number, packet[4:])
	case op == 6 && c.size == 0:
		c.port = binary.BigEndian.Uint16(udp)
		r.say(c, []byte{0, 4, 0, 0})
	case op == 3 && number == c.expected:
		c.size += len(packet) - 4
		c.expected++
		c.done = len(packet)-4 < blockSize
		r.say(c, []byte{0, 4, packet[2], packet[3]})
	}
	return c.done, nil
}

// say sends a packet of a machine, with the next flush.
func (r *rack) say(c *client, packet []byte) {
	c.last, c.at = packet, time.Now()
	head, s := r.slot(slots + r.out)
	if atomic.LoadUint32(&head.Status) != unix.TP_STATUS_AVAILABLE {
		return // the ring is full: lost, and said again
	}
	frame := s[slotHead:]
	copy(frame, serverCard)
	copy(frame[6:], c.card)
	copy(frame[12:], []byte{0x08, 0x00})
	ip, length := frame[etherLen:], ipLen+udpLen+len(packet)
	copy(ip, []byte{0x45, 0, byte(length >> 8), byte(length), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0})
	from, to := c.address.As4(), netip.MustParseAddr(serverAddress).As4()
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], headerSum(ip[:ipLen]))
	udp := ip[ipLen:]
	binary.BigEndian.PutUint16(udp, r.port)
	binary.BigEndian.PutUint16(udp[2:], c.port)
	binary.BigEndian.PutUint16(udp[4:], uint16(udpLen+len(packet)))
	binary.BigEndian.PutUint16(udp[6:], 0) // no checksum
	copy(udp[udpLen:], packet)
	head.Len = uint32(etherLen + length)
	atomic.StoreUint32(&head.Status, unix.TP_STATUS_SEND_REQUEST)
	r.out, r.unsent = (r.out+1)%slots, true
}

// flush lets what was said leave.
func (r *rack) flush() error {
	if !r.unsent {
		return nil
	}
	r.unsent = false
	if _, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(r.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0); errno != 0 && errno != unix.EAGAIN && errno != unix.ENOBUFS {
		return fmt.Errorf("sending frames: %w", errno)
	}
	return nil
}

// headerSum is IPv4's (RFC 1071), of a header whose own field is zero.
func headerSum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
