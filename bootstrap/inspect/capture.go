package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/imagectl/imagectl/bootstrap/api"
)

const (
	// frameMax is the most that is kept of a frame, in bytes: what tcpdump keeps too.
	frameMax = 262144
	// kernelBuffer is what the kernel may hold for us, in bytes.
	kernelBuffer = 8 << 20
	// The parts of a pcap file's head, and before each frame.
	fileHead, frameHead = 24, 16
)

// Capture writes the frames that pass a link as a pcap file, until one of the request's
// bounds is reached or ctx ends; none of them may be zero. own is a connection to leave out,
// that of who asked: its own answer would be seen again and again. A link that does not exist
// is fs.ErrNotExist.
func (s *System) Capture(ctx context.Context, req *api.CaptureRequest, own [2]netip.AddrPort, w io.Writer) (*api.CaptureEnd, error) {
	link, err := net.InterfaceByName(req.GetLink())
	if err != nil {
		return nil, fmt.Errorf("there is no link %s: %w", req.GetLink(), os.ErrNotExist)
	}
	// What is no Ethernet has IP packets without a head before them (ARPHRD_NONE: tun,
	// WireGuard), or is nothing that we know to write down (include/uapi/linux/if_arp.h).
	kind := layers.LinkTypeEthernet
	switch n, err := linkType(link.Name); {
	case err != nil:
		return nil, fmt.Errorf("capturing on %s: %w", link.Name, err)
	case n == unix.ARPHRD_ETHER, n == unix.ARPHRD_LOOPBACK:
	case n == unix.ARPHRD_NONE, n == unix.ARPHRD_RAWIP:
		kind = layers.LinkTypeRaw
	default:
		return nil, fmt.Errorf("link %s is of kind %d, which is neither Ethernet nor plain IP", link.Name, n)
	}
	want, err := newFilter(req, own, kind == layers.LinkTypeEthernet)
	if err != nil {
		return nil, err
	}
	c, err := openLink(link.Index)
	if err != nil {
		return nil, fmt.Errorf("capturing on %s: %w", link.Name, err)
	}
	defer c.f.Close()
	end := time.Duration(req.GetSeconds()) * time.Second
	if err := c.f.SetReadDeadline(time.Now().Add(end)); err != nil {
		return nil, fmt.Errorf("capturing on %s: %w", link.Name, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	snap := frameMax
	if n := int(req.GetSnap()); n > 0 {
		snap = min(n, frameMax)
	}
	file := pcapgo.NewWriterNanos(w)
	if err := file.WriteFileHeader(uint32(snap), kind); err != nil {
		return nil, err
	}
	out := &api.CaptureEnd{Bytes: fileHead, Reason: "packets"}
	for out.Packets < req.GetPackets() {
		f, err := c.next()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			out.Reason = "time"
			break
		} else if err != nil {
			return nil, fmt.Errorf("capturing on %s: %w", link.Name, err)
		}
		if f.outgoing && link.Flags&net.FlagLoopback != 0 || !want.fits(f.data) {
			continue // on the loopback every frame passes twice
		}
		kept := f.data[:min(len(f.data), snap)]
		size := uint64(frameHead + len(kept))
		if out.Bytes+size > req.GetBytes() {
			out.Reason = "bytes"
			break
		}
		if err := file.WritePacket(gopacket.CaptureInfo{Timestamp: f.at, CaptureLength: len(kept), Length: f.length}, kept); err != nil {
			return nil, err
		}
		out.Packets, out.Bytes = out.Packets+1, out.Bytes+size
	}
	out.Dropped = c.dropped()
	return out, nil
}

// linkType is a link's kind of hardware. /sys would say it too, but of the network namespace
// that it was mounted in.
func linkType(name string) (uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFHWADDR, r); err != nil {
		return 0, os.NewSyscallError("SIOCGIFHWADDR", err)
	}
	return r.Uint16(), nil // the family of the address
}

// packetSocket is an AF_PACKET socket on one link.
type packetSocket struct {
	f   *os.File
	buf []byte
	oob [256]byte
}

func openLink(index int) (*packetSocket, error) {
	// Protocol 0: it hears nothing before it is bound to its link.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, kernelBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		// The kernel takes VLAN tags out of frames, and says here which.
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)), Ifindex: index}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &packetSocket{f: os.NewFile(uintptr(fd), "packet"), buf: make([]byte, frameMax)}, nil
}

type frame struct {
	// data is good until the next frame; length is what it was on the wire.
	data     []byte
	length   int
	at       time.Time
	outgoing bool
}

func (p *packetSocket) next() (frame, error) {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return frame{}, err
	}
	var n, oobn int
	var from unix.Sockaddr
	var errno error
	err = raw.Read(func(fd uintptr) bool {
		// Room for a tag that is put in again.
		n, oobn, _, from, errno = unix.Recvmsg(int(fd), p.buf[:len(p.buf)-4], p.oob[:], unix.MSG_TRUNC)
		return !errors.Is(errno, unix.EAGAIN) && !errors.Is(errno, unix.EINTR)
	})
	if err = errors.Join(err, errno); err != nil {
		return frame{}, err
	}
	f := frame{data: p.buf[:min(n, len(p.buf)-4)], length: n}
	if a, ok := from.(*unix.SockaddrLinklayer); ok {
		f.outgoing = a.Pkttype == unix.PACKET_OUTGOING
	}
	messages, err := unix.ParseSocketControlMessage(p.oob[:oobn])
	if err != nil {
		return frame{}, err
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			f.at = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 20:
			f = f.tagged(m.Data)
		}
	}
	return f, nil
}

// tagged puts a VLAN tag back to where it was on the wire, from a struct tpacket_auxdata
// (include/uapi/linux/if_packet.h): status, len, snaplen (32 bits each), mac, net, vlan_tci,
// vlan_tpid (16 bits each).
func (f frame) tagged(aux []byte) frame {
	status := binary.NativeEndian.Uint32(aux)
	const addresses = 12
	if status&unix.TP_STATUS_VLAN_VALID == 0 || len(f.data) < addresses {
		return f
	}
	tci, tpid := binary.NativeEndian.Uint16(aux[16:]), uint16(unix.ETH_P_8021Q)
	if status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
		tpid = binary.NativeEndian.Uint16(aux[18:])
	}
	n := len(f.data)
	f.data = f.data[:n+4]
	copy(f.data[addresses+4:], f.data[addresses:n])
	binary.BigEndian.PutUint16(f.data[addresses:], tpid)
	binary.BigEndian.PutUint16(f.data[addresses+2:], tci)
	f.length += 4
	return f
}

// dropped is how many frames found no room.
func (p *packetSocket) dropped() (n uint32) {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			n = st.Drops
		}
	})
	return n
}
