package byhand

import (
	"fmt"
	"slices"
)

const (
	// goal is how many times as long as by hand it may take, by the median of countsFrom runs and
	// more: one run says little on a machine that others use too.
	goal       = 1.25
	countsFrom = 3
)

// Judge compares the ratios of so many runs with the goal.
func Judge(ratios []float64, runs int) (said string, failed bool) {
	if len(ratios) < max(runs, 1) {
		return fmt.Sprintf("%d of %d runs have a ratio: %.2f", len(ratios), runs, ratios), true
	}
	ratios = slices.Sorted(slices.Values(ratios))
	middle := ratios[len(ratios)/2]
	if len(ratios)%2 == 0 {
		middle = (ratios[len(ratios)/2-1] + middle) / 2
	}
	verdict := "reached"
	switch {
	case middle > goal && len(ratios) >= countsFrom:
		verdict, failed = "MISSED", true
	case middle > goal:
		verdict = fmt.Sprintf("missed, which is an error from %d runs on", countsFrom)
	}
	return fmt.Sprintf("ratios of %d runs: %.2f; median %.2f; the goal of %.2f is %s", len(ratios), ratios, middle, goal, verdict), failed
}
