package quirk_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// messages6 are the types of RFC 8415 section 7.3 that are met here.
var messages6 = map[byte]string{1: "solicit", 2: "advertise", 3: "request", 7: "reply", 11: "information-request"}

// encodeDHCP6 makes a message of its text: a line with its type and transaction, such as
// "solicit 010203", and one for each option in order with its code. A value is what its
// parts are one after the other, each in hex, in quotes or an IPv6 address.
func encodeDHCP6(lines []string) ([]byte, error) {
	var b []byte
	kind, xid, _ := strings.Cut(lines[0], " ")
	for code, name := range messages6 {
		if name == kind {
			b = []byte{code}
		}
	}
	transaction, err := hex.DecodeString(xid)
	if b == nil || err != nil || len(transaction) != 3 {
		return nil, fmt.Errorf("%q is no type of message and its transaction", lines[0])
	}
	b = append(b, transaction...)
	for _, line := range lines[1:] {
		code, rest, _ := strings.Cut(line, " ")
		n, err := strconv.ParseUint(code, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%s: there is no such option", line)
		}
		var v []byte
		for rest != "" {
			part, err := strconv.QuotedPrefix(rest)
			if err != nil {
				part, _, _ = strings.Cut(rest, " ")
			}
			more, err := value(part)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", line, err)
			}
			v, rest = append(v, more...), strings.TrimPrefix(rest[len(part):], " ")
		}
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
		b = append(b, v...)
	}
	return b, nil
}

// decodeDHCP6 is the inverse; what is no message is said in hex.
func decodeDHCP6(b []byte) []string {
	if len(b) < 4 || messages6[b[0]] == "" {
		return []string{"not DHCPv6: " + hex.EncodeToString(b)}
	}
	lines := []string{fmt.Sprintf("%s %x", messages6[b[0]], b[1:4])}
	rest := b[4:]
	for len(rest) >= 4 {
		code, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		if len(rest) < 4+length {
			break
		}
		lines = append(lines, strings.TrimRight(fmt.Sprintf("%d %s", code, shown6(code, rest[4:4+length])), " "))
		rest = rest[4+length:]
	}
	if len(rest) > 0 {
		lines = append(lines, "and then: "+hex.EncodeToString(rest))
	}
	return lines
}

// shown6 is the readable form of an option that encodeDHCP6 reads back.
func shown6(code uint16, v []byte) string {
	var parts []string
	number := func(size int) {
		parts, v = append(parts, hex.EncodeToString(v[:size])), v[size:]
	}
	address := func() {
		parts, v = append(parts, netip.AddrFrom16([16]byte(v)).String()), v[16:]
	}
	switch {
	case code == 3 && len(v) >= 12: // IA_NA: its name, T1, T2, and options
		number(4)
		number(4)
		number(4)
		if len(v) == 28 && binary.BigEndian.Uint16(v) == 5 { // an address with its lifetimes
			number(4)
			address()
			number(4)
			number(4)
		}
	case code == 16 && len(v) > 6: // vendor class: enterprise, and a text with its length
		number(4)
		number(2)
		return strings.Join(append(parts, strconv.Quote(string(v))), " ")
	case code == 23 && len(v)%16 == 0:
		for len(v) > 0 {
			address()
		}
	case code == 59:
		return strconv.Quote(string(v))
	}
	if len(v) > 0 {
		parts = append(parts, hex.EncodeToString(v))
	}
	return strings.Join(parts, " ")
}
