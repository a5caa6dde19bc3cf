package tftp

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// Request is a read request (RFC 1350 with RFC 2347's options).
type Request struct {
	Name, Mode string
	// Options are in their order, names in lower case.
	Options []Option
}

// Option is one wish of the client.
type Option struct{ Name, Value string }

const (
	// minBlockSize is RFC 2348's, defaultBlockSize RFC 1350's.
	minBlockSize     = 8
	defaultBlockSize = 512
	// octet is the mode in which a file has as many bytes on the wire as here.
	octet = "octet"
)

// ErrOther is a well-formed packet that asks for nothing.
var ErrOther = errors.New("it is no read request")

// ParseRequest reads a packet as the server does.
func ParseRequest(packet []byte) (Request, error) {
	p := bytes.Clone(packet)
	if len(p) >= 2 && p[0] == 0 && p[1] != 1 {
		return Request{}, ErrOther
	}
	if !normalise(p) {
		return Request{}, errors.New("it is not a well-formed read request")
	}
	fields := strings.Split(string(p[2:len(p)-1]), "\x00")
	r := Request{Name: fields[0], Mode: fields[1]}
	for i := 2; i < len(fields); i += 2 {
		r.Options = append(r.Options, Option{fields[i], fields[i+1]})
	}
	return r, nil
}

// File is the name of ours that is asked for, and Path is the same with its directories.
func (r Request) File() string { return clean(r.Name) }

// Path is the name in lower case, with slashes and none at the beginning.
func (r Request) Path() string { return slashed(r.Name) }

// Complying is the request as it is answered under an effect.
func (r Request) Complying(e quirk.Effect) Request {
	var kept []Option
	for _, o := range r.Options {
		if o.Name == "blksize" {
			if e.NoBlockSize {
				continue
			}
			if n, err := strconv.Atoi(o.Value); err == nil && e.BlockSize > 0 && n > e.BlockSize {
				o.Value = strconv.Itoa(e.BlockSize)
			}
		}
		kept = append(kept, o)
	}
	r.Options = kept
	return r
}

// BlockSize is the size of the blocks that answer the request, at most limit.
func (r Request) BlockSize(limit int) int {
	for _, o := range r.Options {
		if n, err := strconv.Atoi(o.Value); o.Name == "blksize" && err == nil && n >= minBlockSize {
			return min(n, limit)
		}
	}
	return defaultBlockSize
}

// acknowledge answers the options that are understood, with the size of the file: nil
// when there are none. UEFI stops at an answer that it did not ask for.
func (r Request) acknowledge(limit int, size int64) []byte {
	var out []byte
	answered := map[string]bool{}
	for _, o := range r.Options {
		n, err := strconv.ParseInt(o.Value, 10, 64)
		switch {
		case answered[o.Name] || err != nil:
			continue
		case o.Name == "blksize" && n >= minBlockSize:
			n = min(n, int64(limit))
		case o.Name == "tsize" && r.Mode == octet:
			n = size
		default:
			continue
		}
		answered[o.Name] = true
		if out == nil {
			out = []byte{0, opOAck}
		}
		out = append(append(out, o.Name...), 0)
		out = append(strconv.AppendInt(out, n, 10), 0)
	}
	return out
}

// normalise accepts a read request with a name, a mode and pairs of options, and
// writes mode and option names in lower case: they are case-insensitive.
func normalise(p []byte) bool {
	if len(p) < 6 || p[0] != 0 || p[1] != 1 || p[len(p)-1] != 0 {
		return false
	}
	fields := bytes.Split(p[2:len(p)-1], []byte{0}) // parts of p, not copies
	if len(fields)%2 != 0 || len(fields[0]) == 0 {
		return false
	}
	for i := 1; i < len(fields); i++ {
		if i == 1 || i%2 == 0 {
			lower(fields[i])
		}
	}
	return string(fields[1]) == octet || string(fields[1]) == "netascii"
}

func lower(b []byte) {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
}
