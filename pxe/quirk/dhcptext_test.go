package quirk_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// The fixed part of a DHCP packet (RFC 2131 figure 1) by name, offset and length.
var dhcpFields = []struct {
	name     string
	from, to int
}{
	{"op", 0, 1}, {"htype", 1, 2}, {"hlen", 2, 3}, {"hops", 3, 4}, {"xid", 4, 8}, {"secs", 8, 10}, {"flags", 10, 12},
	{"ciaddr", 12, 16}, {"yiaddr", 16, 20}, {"siaddr", 20, 24}, {"giaddr", 24, 28}, {"chaddr", 28, 44}, {"sname", 44, 108}, {"file", 108, 236},
}

const cookie = "\x63\x82\x53\x63"

// usualDHCP is what a text leaves out.
func usualDHCP(op byte) []byte {
	b := make([]byte, 236, 600)
	b[0], b[1], b[2] = op, 1, 6
	copy(b[4:], []byte{1, 2, 3, 4})
	return append(b, cookie...)
}

// encodeDHCP makes a packet of its text: a line for each field that is not usual,
// for each option in order with its code, "end", and "pad N" for N zeros. A value
// is in hex, in quotes, an IPv4 or a card's address.
func encodeDHCP(op byte, lines []string) ([]byte, error) {
	b := usualDHCP(op)
next:
	for _, line := range lines {
		key, text, _ := strings.Cut(line, " ")
		switch key {
		case "end":
			b = append(b, 255)
			continue
		case "pad":
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, err
			}
			b = append(b, make([]byte, n)...)
			continue
		}
		v, err := value(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		for _, f := range dhcpFields {
			if f.name == key {
				if len(v) > f.to-f.from {
					return nil, fmt.Errorf("%s: too long", line)
				}
				clear(b[f.from:f.to])
				copy(b[f.from:f.to], v)
				continue next
			}
		}
		code, err := strconv.ParseUint(key, 10, 8)
		if err != nil {
			return nil, fmt.Errorf("%s: there is no such field", line)
		}
		b = append(b, byte(code), byte(len(v)))
		b = append(b, v...)
	}
	return b, nil
}

func value(s string) ([]byte, error) {
	if strings.HasPrefix(s, `"`) {
		u, err := strconv.Unquote(s)
		return []byte(u), err
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return a.AsSlice(), nil
	}
	if m, err := net.ParseMAC(s); err == nil {
		return m, nil
	}
	return hex.DecodeString(s)
}

// decodeDHCP is the inverse; a packet that is not one is said in hex.
func decodeDHCP(op byte, b []byte) []string {
	usual := usualDHCP(op)
	if len(b) < len(usual) || string(b[236:240]) != cookie {
		return []string{"not DHCP: " + hex.EncodeToString(b)}
	}
	var lines []string
	for _, f := range dhcpFields {
		v := b[f.from:f.to]
		if bytes.Equal(v, usual[f.from:f.to]) {
			continue
		}
		trimmed := bytes.TrimRight(v, "\x00")
		switch f.to - f.from {
		case 4:
			if f.name == "xid" {
				lines = append(lines, "xid "+hex.EncodeToString(v))
			} else {
				lines = append(lines, f.name+" "+netip.AddrFrom4([4]byte(v)).String())
			}
		case 16:
			lines = append(lines, "chaddr "+net.HardwareAddr(v[:max(6, len(trimmed))]).String())
		case 64, 128:
			lines = append(lines, f.name+" "+strconv.Quote(string(trimmed)))
		default:
			lines = append(lines, f.name+" "+hex.EncodeToString(v))
		}
	}
	rest := b[240:]
	for len(rest) >= 2 && rest[0] != 255 && rest[0] != 0 && len(rest) >= 2+int(rest[1]) {
		v := rest[2 : 2+int(rest[1])]
		lines = append(lines, fmt.Sprintf("%d %s", rest[0], shown(rest[0], v)))
		rest = rest[2+len(v):]
	}
	if len(rest) > 0 && rest[0] == 255 {
		lines, rest = append(lines, "end"), rest[1:]
	}
	if len(bytes.Trim(rest, "\x00")) > 0 {
		return append(lines, "and then: "+hex.EncodeToString(rest))
	}
	if len(rest) > 0 {
		lines = append(lines, "pad "+strconv.Itoa(len(rest)))
	}
	return lines
}

// shown is the readable form that value reads back.
func shown(code byte, v []byte) string {
	switch code {
	case 1, 3, 6, 28, 42, 50, 54:
		if len(v) == 4 {
			return netip.AddrFrom4([4]byte(v)).String()
		}
	case 51, 58, 59:
		return fmt.Sprintf("%08x", binary.BigEndian.Uint32(v))
	}
	text := bytes.TrimRight(v, "\x00")
	for _, c := range text {
		if c < ' ' || c > '~' {
			return hex.EncodeToString(v)
		}
	}
	if len(text) < 3 {
		return hex.EncodeToString(v)
	}
	return strconv.Quote(string(v))
}
