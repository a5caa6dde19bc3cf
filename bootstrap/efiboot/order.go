package efiboot

import (
	"bytes"
	"errors"
	"slices"
	"strings"
)

// Prefix begins the description of every entry that is ours: what begins with it
// we replace and remove, and nothing else.
const Prefix = "imagectl "

// State is what the firmware holds about booting.
type State struct {
	// Order is BootOrder, numbers of Boot#### variables.
	Order []uint16
	// Current is BootCurrent, the entry that this boot came from; HasCurrent is
	// false where the firmware does not say.
	Current    uint16
	HasCurrent bool
	// Options are the Boot#### variables, undecoded.
	Options map[uint16][]byte
}

// Plan is what has to change, in the order of its fields, so that whatever breaks
// off leaves an order whose entries exist.
type Plan struct {
	// Number is our entry's.
	Number uint16
	// Option is to be written as Number; nil when it is there.
	Option []byte
	// Order is to be written as BootOrder; nil when it is right.
	Order []uint16
	// Delete are entries of ours from earlier installations.
	Delete []uint16
}

// Empty says that nothing has to change.
func (p Plan) Empty() bool { return p.Option == nil && p.Order == nil && len(p.Delete) == 0 }

// Decide says how option becomes the entry right behind the one that this boot
// came from. The order of all others stays, so who has put the disk before the
// network finds it there again. Where the boot's own entry is not in the order (a
// one-time choice, or firmware that does not say), the first network entry takes
// its place; an order without any boots our disk first. There is one entry of ours
// at the end: a machine has one system.
func Decide(s State, option []byte) (Plan, error) {
	var ours []uint16
	for n, b := range s.Options {
		if o, err := Parse(b); err == nil && strings.HasPrefix(o.Description, Prefix) {
			ours = append(ours, n)
		}
	}
	slices.Sort(ours)
	isOurs := func(n uint16) bool { return slices.Contains(ours, n) }
	var p Plan
	same := slices.IndexFunc(ours, func(n uint16) bool { return bytes.Equal(s.Options[n], option) })
	switch {
	case same >= 0:
		p.Number = ours[same]
	case len(ours) > 0:
		p.Number, p.Option = ours[0], option
	default:
		n, err := s.free()
		if err != nil {
			return Plan{}, err
		}
		p.Number, p.Option = n, option
	}
	others := slices.DeleteFunc(slices.Clone(s.Order), func(n uint16) bool { return n == p.Number || isOurs(n) })
	order := slices.Insert(others, s.behind(others), p.Number)
	if !slices.Equal(order, s.Order) {
		p.Order = order
	}
	for _, n := range ours {
		if n != p.Number {
			p.Delete = append(p.Delete, n)
		}
	}
	return p, nil
}

// behind is the place in an order where the disk belongs.
func (s State) behind(order []uint16) int {
	if s.HasCurrent {
		if i := slices.Index(order, s.Current); i >= 0 {
			return i + 1
		}
	}
	// -1, none, becomes the front.
	return 1 + slices.IndexFunc(order, func(n uint16) bool {
		o, err := Parse(s.Options[n])
		return err == nil && o.network()
	})
}

// free is the lowest number that neither names an entry nor stands in the order,
// where firmware leaves numbers of entries that are gone.
func (s State) free() (uint16, error) {
	for n := range 1 << 16 {
		if _, used := s.Options[uint16(n)]; !used && !slices.Contains(s.Order, uint16(n)) {
			return uint16(n), nil
		}
	}
	return 0, errors.New("adding a boot entry: all 65536 are in use")
}
