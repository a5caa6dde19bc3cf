package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// HeadDomain keeps signatures of heads apart from all others of the same key.
const HeadDomain = "imagectl audit head v1"

// Head is the end of a chain at some moment, with the server's signature of Statement.
type Head struct {
	Tip
	Signature []byte `json:"signature"`
}

// Statement is what the signature is of: a cluster's chain has this entry there.
func (t Tip) Statement(cluster string) []byte {
	return fmt.Appendf(nil, "%s\n%d\n%s\n", cluster, t.Seq, t.Hash)
}

// Seen is a head with the time when somebody was shown it.
type Seen struct {
	Head
	At time.Time `json:"at"`
}

// Memory is what somebody remembers who is shown one head after the other. The zero value
// remembers nothing. A chain that was made anew lacks one of its heads.
type Memory struct {
	// Heads are in the order of their numbers: all of the newest, then one a day.
	Heads []Seen `json:"heads,omitempty"`
	// Lost are heads that the chain did not hold any more when the next one was shown: it
	// went back. A restored server does that, and somebody who cuts the log's end off.
	Lost []Seen `json:"lost,omitempty"`
}

// How much is remembered: the newest heads, one for each of so many days before them, and
// so many ends that were cut off.
const (
	newestHeads = 32
	dailyHeads  = 400
	lostHeads   = 32
)

// See returns the memory after a head was shown, and whether it is another one.
func (m Memory) See(h Head, at time.Time) (Memory, bool) {
	if n := len(m.Heads); n > 0 {
		switch newest := m.Heads[n-1]; {
		case newest.Tip == h.Tip:
			return m, false
		case h.Seq <= newest.Seq:
			// The first that were lost say the most.
			if len(m.Lost) < lostHeads {
				m.Lost = append(slices.Clone(m.Lost), newest)
			}
			i, _ := slices.BinarySearchFunc(m.Heads, h.Seq, func(s Seen, seq uint64) int { return cmp.Compare(s.Seq, seq) })
			m.Heads = m.Heads[:i]
		}
	}
	m.Heads = thin(append(slices.Clone(m.Heads), Seen{Head: h, At: at.UTC()}))
	return m, true
}

// thin keeps the newest, and of those before them the last of each day.
func thin(all []Seen) []Seen {
	if len(all) <= newestHeads {
		return all
	}
	old, out := all[:len(all)-newestHeads], []Seen(nil)
	for i, s := range old {
		if i+1 < len(all) && day(s.At) == day(all[i+1].At) {
			continue
		}
		out = append(out, s)
	}
	return append(out[max(0, len(out)-dailyHeads):], all[len(old):]...)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
