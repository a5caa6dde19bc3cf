package lldp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Interval is how often neighbours send (802.1AB's msgTxInterval): who listens for a
// little longer has heard one that is there.
const Interval = 30 * time.Second

// nearestBridge is where LLDP goes: switches do not pass it on.
var nearestBridge = [8]byte{0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e}

// Listen waits for the next frame that a neighbour of a network card sends, and ends
// with ctx. It needs CAP_NET_RAW. Frames that are none are passed over.
func Listen(ctx context.Context, card string) (Neighbour, error) {
	fail := func(err error) (Neighbour, error) {
		return Neighbour{}, fmt.Errorf("listening for LLDP on %s: %w", card, err)
	}
	s, err := open(card)
	if err != nil {
		return fail(err)
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 2048)
	for {
		size, err := s.Read(buf)
		if ctx.Err() != nil {
			return fail(ctx.Err())
		}
		if errors.Is(err, unix.ENETDOWN) { // the card went down; it may come up again
			continue
		}
		if err != nil {
			return fail(err)
		}
		if n, err := Parse(buf[:size]); err == nil {
			return n, nil
		}
	}
}

// open makes a socket that hears what others send to nearestBridge on a card.
func open(card string) (_ *os.File, err error) {
	link, err := net.InterfaceByName(card)
	if err != nil {
		return nil, err
	}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, EtherType))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	member := unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_MULTICAST, Alen: 6, Address: nearestBridge}
	if err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &member); err != nil {
		return nil, fmt.Errorf("joining its multicast group: %w", err)
	}
	// What we send ourselves is not a neighbour's. Kernels before 4.20 do not know it.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}); err != nil {
		return nil, fmt.Errorf("binding the socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "lldp "+card), nil
}
