package cluster

import (
	"errors"

	"github.com/imagectl/imagectl/pxe/selector"
)

// selecting is a machine's selector with where it stands.
type selecting struct {
	place
	machine  string
	patterns map[selector.Field][]string
	selector selector.Selector
}

// selector checks a selector; false when it cannot be compared with others.
func (c *checker) selector(raw rawSelector, exact bool) (selecting, bool) {
	out := selecting{place: raw.place, patterns: map[selector.Field][]string{}}
	if exact {
		c.add(raw.Pos, raw.Path, "leave the selector out, or mac, uuid and serial beside it",
			"a machine that is named by mac, uuid or serial needs no selector")
	}
	of := map[selector.Field][]rawString{selector.MAC: raw.MAC, selector.UUID: raw.UUID, selector.Serial: raw.Serial,
		selector.Network: raw.Network, selector.CircuitID: raw.CircuitID, selector.RemoteID: raw.RemoteID}
	whole := true
	for _, name := range selector.Fields() {
		for _, text := range of[name] {
			if !text.Set {
				whole = false
				continue
			}
			var wrong *selector.Error
			if _, err := selector.New(map[selector.Field][]string{name: {text.V}}); errors.As(err, &wrong) {
				c.add(text.Pos, text.Path, "", "%v", wrong.Err)
				whole = false
				continue
			}
			out.patterns[name] = append(out.patterns[name], text.V)
		}
	}
	if whole && len(out.patterns) == 0 && !c.reported(raw.Path) {
		c.add(raw.Pos, raw.Path, "selector: {circuitID: [\"leaf-3a swp7\"]}", "selects nothing: want mac, uuid, serial, network, circuitID or remoteID")
	}
	if len(raw.Serial) > 0 && len(raw.Network)+len(raw.CircuitID)+len(raw.RemoteID) > 0 {
		c.add(raw.Pos, raw.Path, "use uuid, or one of them alone",
			"a machine shows its serial number by HTTP, and network, circuitID and remoteID in DHCP, never together")
		whole = false
	}
	var err error
	out.selector, err = selector.New(out.patterns)
	return out, err == nil && whole && !exact
}

// distinct finds selectors that one machine can match. Where regular expressions
// decide, nobody can tell beforehand: then the server refuses the machine that does.
func (c *checker) distinct(all []selecting) {
	for i, a := range all {
		for _, b := range all[:i] {
			if a.selector.Overlaps(b.selector) == selector.Possible {
				c.add(a.Pos, a.Path, "", "one machine can match this and the selector of %s (%s)", b.machine, b.Path)
			}
		}
	}
}
