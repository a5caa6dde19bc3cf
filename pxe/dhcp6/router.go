package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// The bits of a router's advertisement (RFC 4861 section 4.2), and its type.
const (
	managed = 0x80
	other   = 0x40

	typeAdvertisement = 134
)

// solicitations are as many, and as far apart, as a host's (RFC 4861 section 10).
const (
	solicitations = 3
	solicitEvery  = 4 * time.Second
)

// Advice asks the routers on a network for an advertisement and says in one sentence
// what about it will keep machines from booting; it is empty when nothing does. conn is
// a socket for ICMPv6. A network needs its router for that: clients ask DHCPv6 only if
// an advertisement tells them to.
func Advice(ctx context.Context, conn net.PacketConn, stateless bool) (string, error) {
	// All routers, RFC 4291 section 2.7.1. The kernel adds the checksum.
	group, solicit := &net.IPAddr{IP: net.ParseIP("ff02::2")}, []byte{133, 0, 0, 0, 0, 0, 0, 0}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, maxPacket)
	for range solicitations {
		if _, err := conn.WriteTo(solicit, group); err != nil {
			return "", fmt.Errorf("asking for routers: %w", err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(solicitEvery)); err != nil {
			return "", fmt.Errorf("asking for routers: %w", err)
		}
		for ctx.Err() == nil {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return "", fmt.Errorf("waiting for a router's advertisement: %w", err)
			}
			if flags, ok := advertised(buf[:n]); ok {
				return judge(flags, stateless), nil
			}
		}
	}
	return "no router advertises itself here, so no machine asks DHCPv6: let the network's router send advertisements with the flag " + wanted(stateless), ctx.Err()
}

func wanted(stateless bool) string {
	if stateless {
		return "O (other configuration)"
	}
	return "M (managed addresses)"
}

// advertised reads the flags of an advertisement.
func advertised(packet []byte) (flags byte, ok bool) {
	if len(packet) < 16 || packet[0] != typeAdvertisement {
		return 0, false
	}
	return packet[5], true
}

// judge looks at the flags of an advertisement.
func judge(flags byte, stateless bool) string {
	if flags&managed != 0 || stateless && flags&other != 0 {
		return ""
	}
	return "the network's router does not tell machines to ask DHCPv6: let it set the flag " + wanted(stateless)
}
