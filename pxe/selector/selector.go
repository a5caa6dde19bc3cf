// Package selector recognises a machine by what it shows when it boots, where nobody
// knows its MAC address beforehand: the switch port that it is plugged into, the
// network that it asks from, or a pattern of its MAC address, UUID or serial number.
// Nothing secret is ever granted on a match: who is on the wire can show anything.
package selector

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// Field is something that a machine shows.
type Field string

// The fields, by their names in cluster.yaml.
const (
	// MAC is of the network card that boots.
	MAC Field = "mac"
	// UUID is SMBIOS's, in lower case.
	UUID Field = "uuid"
	// Serial is SMBIOS's; firmware does not show it, iPXE does.
	Serial Field = "serial"
	// Network is where the request comes from: the address of the relay in the
	// machine's network, or ours there.
	Network Field = "network"
	// CircuitID and RemoteID are what a relay or a switch says in option 82.
	CircuitID Field = "circuitID"
	RemoteID  Field = "remoteID"
)

// Fields returns all fields.
func Fields() []Field { return []Field{MAC, UUID, Serial, Network, CircuitID, RemoteID} }

// Shown is what a machine shows; absent fields are not there.
type Shown map[Field]string

// Selector matches machines that show, in every field of it, one of the field's
// patterns. The zero value matches nobody. It is immutable.
type Selector struct {
	fields []field
}

type field struct {
	name     Field
	patterns []pattern
}

// pattern is one of: an exact text, a span of MAC addresses, networks, or a regular
// expression.
type pattern struct {
	text   string
	lo, hi string // MAC addresses in their usual form sort as they count
	prefix netip.Prefix
	match  *regexp.Regexp
}

// New reads patterns by field. An error of a pattern is an *Error.
func New(patterns map[Field][]string) (Selector, error) {
	var s Selector
	for _, name := range Fields() {
		if len(patterns[name]) == 0 {
			continue
		}
		f := field{name: name}
		for i, text := range patterns[name] {
			p, err := parse(name, text)
			if err != nil {
				return Selector{}, &Error{name, i, err}
			}
			f.patterns = append(f.patterns, p)
		}
		s.fields = append(s.fields, f)
	}
	return s, nil
}

// Error says which pattern is wrong.
type Error struct {
	Field Field
	Index int
	Err   error
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("%s: %v", e.Field, e.Err) }

// Unwrap returns what is wrong.
func (e *Error) Unwrap() error { return e.Err }

// maxPattern bounds what a regular expression can cost; Go's run in linear time.
const maxPattern = 256

func parse(name Field, text string) (pattern, error) {
	switch {
	case text == "":
		return pattern{}, errors.New("an empty pattern matches nobody")
	case len(text) > maxPattern:
		return pattern{}, fmt.Errorf("a pattern has at most %d characters, not %d", maxPattern, len(text))
	case name == Network:
		p, err := netip.ParsePrefix(text)
		if err != nil || !p.Addr().Is4() || p != p.Masked() {
			return pattern{}, fmt.Errorf("%q is not an IPv4 network, such as 10.1.2.0/24", text)
		}
		return pattern{prefix: p}, nil
	case len(text) > 1 && strings.HasPrefix(text, "/") && strings.HasSuffix(text, "/"):
		// By itself first: it must not end the parenthesis that it gets.
		if _, err := regexp.Compile(text[1 : len(text)-1]); err != nil {
			return pattern{}, fmt.Errorf("%q is not a regular expression: %w", text, err)
		}
		match, err := regexp.Compile(`^(?:` + text[1:len(text)-1] + `)$`)
		if err != nil {
			return pattern{}, fmt.Errorf("%q is not a regular expression: %w", text, err)
		}
		return pattern{match: match}, nil
	case name == MAC:
		lo, hi, span := strings.Cut(text, "-")
		if !span {
			hi = lo
		}
		lo, hi = strings.ToLower(strings.TrimSpace(lo)), strings.ToLower(strings.TrimSpace(hi))
		for _, m := range []string{lo, hi} {
			if mac, err := net.ParseMAC(m); err != nil || len(mac) != 6 || mac.String() != m {
				return pattern{}, fmt.Errorf("%q is not a MAC address with colons, a span of two (52:54:00:00:00:10-52:54:00:00:00:1f) or a /regular expression/", text)
			}
		}
		if hi < lo {
			return pattern{}, fmt.Errorf("the span %s ends before it begins", text)
		}
		return pattern{lo: lo, hi: hi}, nil
	case name == UUID:
		return pattern{text: strings.ToLower(text)}, nil
	}
	return pattern{text: text}, nil
}

func (p pattern) holds(shown string) bool {
	switch {
	case p.match != nil:
		return p.match.MatchString(shown)
	case p.lo != "":
		return p.lo <= shown && shown <= p.hi
	case p.prefix.IsValid():
		a, err := netip.ParseAddr(shown)
		return err == nil && p.prefix.Contains(a)
	}
	return p.text == shown
}

// IsZero says that it matches nobody.
func (s Selector) IsZero() bool { return len(s.fields) == 0 }

// Match says whether a machine shows all that is wanted.
func (s Selector) Match(shown Shown) bool {
	if s.IsZero() {
		return false
	}
	for _, f := range s.fields {
		v, ok := shown[f.name]
		if !ok || !slices.ContainsFunc(f.patterns, func(p pattern) bool { return p.holds(v) }) {
			return false
		}
	}
	return true
}

// Contradicts says whether a machine shows something else than is wanted. What it does
// not show contradicts nothing.
func (s Selector) Contradicts(shown Shown) bool {
	for _, f := range s.fields {
		if v, ok := shown[f.name]; ok && !slices.ContainsFunc(f.patterns, func(p pattern) bool { return p.holds(v) }) {
			return true
		}
	}
	return false
}

// Overlap is whether one machine can match two selectors.
type Overlap int

// The answers.
const (
	// Never: some field keeps them apart.
	Never Overlap = iota
	// Perhaps: nobody can say, since regular expressions decide.
	Perhaps
	// Possible: one machine can show what both want.
	Possible
)

// Overlaps compares two selectors.
func (s Selector) Overlaps(other Selector) Overlap {
	if s.IsZero() || other.IsZero() {
		return Never
	}
	least := Possible
	for _, f := range s.fields {
		for _, g := range other.fields {
			if f.name == g.name {
				least = min(least, f.overlaps(g))
			}
		}
	}
	return least
}

func (f field) overlaps(g field) Overlap {
	most := Never
	for _, p := range f.patterns {
		for _, q := range g.patterns {
			most = max(most, p.overlaps(q))
		}
	}
	return most
}

func (p pattern) overlaps(q pattern) Overlap {
	yes := false
	switch {
	case p.match != nil && q.match != nil && p.match.String() != q.match.String():
		return Perhaps
	case p.match != nil && q.match != nil:
		yes = true
	case p.match != nil:
		return q.overlaps(p)
	case q.match != nil && p.lo != p.hi: // a span
		return Perhaps
	case q.match != nil:
		yes = q.holds(p.lo + p.text) // one of them is empty
	case p.prefix.IsValid():
		yes = p.prefix.Overlaps(q.prefix)
	case p.lo != "":
		yes = p.lo <= q.hi && q.lo <= p.hi
	default:
		yes = p.text == q.text
	}
	if yes {
		return Possible
	}
	return Never
}

// Text is how an ID of option 82 is written: as it is when it is printable, else in
// hexadecimal after 0x.
func Text(id []byte) string {
	for _, c := range id {
		if c < ' ' || c > '~' {
			return "0x" + hex.EncodeToString(id)
		}
	}
	return string(id)
}
