package tftp

import (
	"bytes"
	"errors"
	"fmt"
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

// packet is the request on the wire.
func (r Request) packet() []byte {
	b := fmt.Appendf(nil, "\x00\x01%s\x00%s\x00", r.Name, r.Mode)
	for _, o := range r.Options {
		b = fmt.Appendf(b, "%s\x00%s\x00", o.Name, o.Value)
	}
	return b
}

// comply rewrites a normalised request in place and returns its length. It never
// grows: options are dropped, and numbers only get smaller.
func comply(p []byte, e quirk.Effect) int {
	if e.BlockSize == 0 && !e.NoBlockSize {
		return len(p)
	}
	r, err := ParseRequest(p)
	if err != nil {
		return len(p)
	}
	return copy(p, r.Complying(e).packet())
}

// BlockSize is the size of the blocks that answer the request, at most limit.
func (r Request) BlockSize(limit int) int {
	for _, o := range r.Options {
		if n, err := strconv.Atoi(o.Value); o.Name == "blksize" && err == nil && n >= 8 {
			return min(n, limit)
		}
	}
	return 512
}
