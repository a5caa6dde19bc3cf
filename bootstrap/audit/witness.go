package audit

import (
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"
)

// WitnessDomain keeps signatures of Witness apart from all others of the same key.
const WitnessDomain = "imagectl audit witness v1"

// Witness is what somebody says who follows a chain entry by entry, and signs. The newest one
// says it all: whoever says nothing of Lost has seen nothing but that the chain grew.
type Witness struct {
	Cluster string `json:"cluster"`
	// Node is its name.
	Node string `json:"node"`
	// Tip is how far the node has followed the chain, Since from where on.
	Tip
	Since Tip `json:"since"`
	// At is when it got to Tip, by its own clock.
	At time.Time `json:"at"`
	// Lost are ends that the node had followed the chain to, and that the chain did not hold
	// any more later, the first of them.
	Lost []Loss `json:"lost,omitempty"`
}

// Loss is an end that a chain did not hold any more at some time.
type Loss struct {
	Tip
	At time.Time `json:"at"`
}

// Follow goes on to the entry to, which the lines after Tip lead to, and returns what there
// is to say then. A chain that does not go on from Tip has lost it; then it is followed from
// to on. An error means that lines failed or ended before to, and that nothing is new to say.
func (w Witness) Follow(lines iter.Seq2[[]byte, error], to Tip, at time.Time) (Witness, error) {
	if to == w.Tip {
		return w, nil
	}
	tip, extends := w.Tip, w.Seq > 0 && to.Seq > w.Seq
	if extends {
		for line, err := range lines {
			if err != nil {
				return w, err
			}
			if _, tip, err = Open(tip, line); err != nil {
				extends = false
			}
			if !extends || tip.Seq == to.Seq {
				break
			}
		}
		if extends && tip.Seq < to.Seq {
			return w, fmt.Errorf("following the audit log: its end is entry %d, and entries come up to %d only", to.Seq, tip.Seq)
		}
	}
	w.At = at.UTC()
	if extends && tip == to {
		w.Tip = to
		return w, nil
	}
	if w.Seq > 0 && len(w.Lost) < lostHeads {
		w.Lost = append(slices.Clone(w.Lost), Loss{Tip: w.Tip, At: w.At})
	}
	w.Tip, w.Since = to, to
	return w, nil
}

// Statement is what a signature is of.
func (w Witness) Statement() ([]byte, error) { return json.Marshal(w) }

// ParseWitness reads a Statement.
func ParseWitness(statement []byte) (Witness, error) {
	var w Witness
	if err := json.Unmarshal(statement, &w); err != nil {
		return Witness{}, fmt.Errorf("reading what a node says of the audit log: %w", err)
	}
	if w.Seq == 0 || w.Since.Seq == 0 || w.Since.Seq > w.Seq || w.Node == "" || len(w.Lost) > lostHeads {
		return Witness{}, fmt.Errorf("reading what a node says of the audit log: %s says that it has followed it from entry %d to %d", w.Node, w.Since.Seq, w.Seq)
	}
	return w, nil
}
