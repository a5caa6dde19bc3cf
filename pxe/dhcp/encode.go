package dhcp

import (
	"encoding/binary"
	"math/bits"
	"net"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Lengths of RFC 2131 section 2, and the least that BOOTP's relays and ROMs take (RFC 951).
const (
	fixedLen  = 236
	shortest  = 300
	hwAddrLen = 16
	nameLen   = 64
	// longestOption is what one option holds; what has more is in several (RFC 3396).
	longestOption = 255
)

// encode writes a message. It writes what the library's ToBytes does: with one object
// instead of eighteen, for every answer.
func encode(m *dhcpv4.DHCPv4) []byte {
	size, codes := fixedLen+5, [4]uint64{}
	for code, v := range m.Options {
		codes[code/64] |= 1 << (code % 64)
		size += len(v) + 2*(len(v)/longestOption+1)
	}
	b := make([]byte, fixedLen, max(size, shortest))
	b[0], b[1], b[2], b[3] = byte(m.OpCode), byte(m.HWType), byte(len(m.ClientHWAddr)), m.HopCount
	copy(b[4:8], m.TransactionID[:])
	binary.BigEndian.PutUint16(b[8:], m.NumSeconds)
	binary.BigEndian.PutUint16(b[10:], m.Flags)
	for i, a := range []net.IP{m.ClientIPAddr, m.YourIPAddr, m.ServerIPAddr, m.GatewayIPAddr} {
		copy(b[12+4*i:][:4], a.To4())
	}
	copy(b[28:][:hwAddrLen], m.ClientHWAddr)
	copy(b[28+hwAddrLen:][:nameLen-1], m.ServerHostName)
	copy(b[28+hwAddrLen+nameLen:][:fileLen], m.BootFileName)
	b = append(b, 99, 130, 83, 99)

	// A relay's information comes last (RFC 3046 section 2.1); the end is written below.
	const relay = 82
	last := codes[relay/64] & (1 << (relay % 64))
	codes[relay/64] &^= 1 << (relay % 64)
	codes[0] &^= 1
	codes[3] &^= 1 << 63
	for i, set := range codes {
		for ; set != 0; set &= set - 1 {
			code := byte(64*i + bits.TrailingZeros64(set))
			b = appendOption(b, code, m.Options[code])
		}
	}
	if last != 0 {
		b = appendOption(b, relay, m.Options[relay])
	}
	b = append(b, 255)
	if len(b) < shortest {
		b = b[:shortest] // zeroes
	}
	return b
}

func appendOption(b []byte, code byte, v []byte) []byte {
	for first := true; first || len(v) > 0; first = false {
		n := min(len(v), longestOption)
		b = append(append(b, code, byte(n)), v[:n]...)
		v = v[n:]
	}
	return b
}
