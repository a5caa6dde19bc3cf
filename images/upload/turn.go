package upload

import "strings"

// Turned is an object at a platform that has nothing to point to a version with.
// There each object bears the number of its last promotion: the highest of a family
// is current, and the next one was so before.
type Turned struct {
	Object
	// Turn is 0 for what was never promoted.
	Turn int
}

// before says that a was promoted before b. Two who promote at once may take one
// number; then the IDs decide, alike for everybody.
func (a Turned) before(b Turned) bool {
	return a.Turn < b.Turn || a.Turn == b.Turn && strings.Compare(a.ID, b.ID) < 0
}

// Point returns the objects in their order, with Current and Previous by their
// families' turns.
func Point(all []Turned) []Object {
	type pair struct{ current, previous *Turned }
	families := map[string]pair{}
	for i := range all {
		o, p := &all[i], families[all[i].Name]
		switch {
		case o.Turn == 0:
		case p.current == nil || p.current.before(*o):
			p.current, p.previous = o, p.current
		case p.previous == nil || p.previous.before(*o):
			p.previous = o
		}
		families[o.Name] = p
	}
	out := make([]Object, len(all))
	for i := range all {
		p := families[all[i].Name]
		out[i] = all[i].Object
		out[i].Current, out[i].Previous = p.current == &all[i], p.previous == &all[i]
	}
	return out
}

// NextTurn is the turn that makes an object the current one of its family, which
// is the turn it has if it is current already.
func NextTurn(all []Turned, id string) int {
	var last, mine Turned
	for _, o := range all {
		if last.before(o) {
			last = o
		}
		if o.ID == id {
			mine = o
		}
	}
	if mine.Turn > 0 && mine.ID == last.ID {
		return mine.Turn
	}
	return last.Turn + 1
}
