package quirk_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// encodeTFTP makes a packet of its text, such as
//
//	rrq "undionly.kpxe" "octet" "tsize" "0"
//	oack "tsize" "1000"
//	data 1 512*"x"
//	ack 1
//	error 8 "User aborted"
func encodeTFTP(text string) ([]byte, error) {
	kind, rest, _ := strings.Cut(text, " ")
	number := func() uint16 {
		var n string
		n, rest, _ = strings.Cut(rest, " ")
		v, _ := strconv.ParseUint(n, 10, 16)
		return uint16(v)
	}
	var b []byte
	switch kind {
	case "rrq":
		b = []byte{0, 1}
	case "oack":
		b = []byte{0, 6}
	case "ack":
		return binary.BigEndian.AppendUint16([]byte{0, 4}, number()), nil
	case "error":
		b = binary.BigEndian.AppendUint16([]byte{0, 5}, number())
	case "data":
		b = binary.BigEndian.AppendUint16([]byte{0, 3}, number())
		times, quoted, ok := strings.Cut(rest, "*")
		if !ok {
			times, quoted = "1", rest
		}
		n, err := strconv.Atoi(times)
		if err != nil {
			return nil, err
		}
		s, err := strconv.Unquote(quoted)
		return append(b, strings.Repeat(s, n)...), err
	default:
		return nil, fmt.Errorf("%q is no TFTP packet", text)
	}
	for rest != "" {
		q, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return nil, err
		}
		s, err := strconv.Unquote(q)
		if err != nil {
			return nil, err
		}
		b = append(append(b, s...), 0)
		rest = strings.TrimPrefix(rest[len(q):], " ")
	}
	return b, nil
}

// decodeTFTP is the inverse.
func decodeTFTP(b []byte) (string, error) {
	if len(b) < 4 || b[0] != 0 {
		return "", errors.New("it is too short for a TFTP packet")
	}
	n, body := binary.BigEndian.Uint16(b[2:]), string(b[4:])
	switch b[1] {
	case 3:
		if len(body) > 8 && strings.Count(body, body[:1]) == len(body) {
			return fmt.Sprintf("data %d %d*%q", n, len(body), body[:1]), nil
		}
		return fmt.Sprintf("data %d %q", n, body), nil
	case 4:
		return fmt.Sprintf("ack %d", n), nil
	case 5:
		return fmt.Sprintf("error %d%s", n, quoted(body)), nil
	case 6:
		return "oack" + quoted(string(b[2:])), nil
	}
	return "", fmt.Errorf("the server does not send packets of type %d", b[1])
}

// sorted puts the options of an OACK in order: the library takes them from a map.
func sorted(b []byte) []byte {
	if len(b) < 2 || b[1] != 6 {
		return b
	}
	f := strings.Split(strings.TrimSuffix(string(b[2:]), "\x00"), "\x00")
	var pairs []string
	for i := 0; i+1 < len(f); i += 2 {
		pairs = append(pairs, f[i]+"\x00"+f[i+1]+"\x00")
	}
	slices.Sort(pairs)
	return append([]byte{0, 6}, strings.Join(pairs, "")...)
}

func quoted(s string) string {
	var out strings.Builder
	for _, f := range strings.Split(strings.TrimSuffix(s, "\x00"), "\x00") {
		out.WriteString(" " + strconv.Quote(f))
	}
	return out.String()
}
