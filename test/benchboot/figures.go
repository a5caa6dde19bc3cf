package main

import (
	"fmt"
	"slices"
)

// spread is what several measurements of one thing say.
type spread struct{ median, least, most float64 }

// spreadOf needs at least one measurement.
func spreadOf(all []float64) spread {
	s := slices.Sorted(slices.Values(all))
	half := len(s) / 2
	middle := s[half]
	if len(s)%2 == 0 {
		middle = (s[half-1] + s[half]) / 2
	}
	return spread{middle, s[0], s[len(s)-1]}
}

func (s spread) text(format string) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", s.median, s.least, s.most)
}

// ratio is of the medians; the rest is what single rounds would have said, of which each
// has one measurement of either side, taken one after the other.
func ratio(ours, theirs []float64) spread {
	var rounds []float64
	for i := range min(len(ours), len(theirs)) {
		rounds = append(rounds, ours[i]/theirs[i])
	}
	r := spreadOf(rounds)
	r.median = spreadOf(ours).median / spreadOf(theirs).median
	return r
}

// verdict says whether a goal is met, by the medians alone.
func verdict(r spread, goal float64) string {
	if r.median < goal {
		return "missed"
	}
	return "met"
}
