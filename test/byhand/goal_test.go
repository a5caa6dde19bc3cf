package byhand

import "testing"

func TestTheMedianOfThreeRunsCounts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		ratios []float64
		runs   int
		failed bool
		said   string
	}{
		{[]float64{1.2}, 1, false, "ratios of 1 runs: [1.20]; median 1.20; the goal of 1.25 is reached"},
		{[]float64{1.4}, 1, false, "ratios of 1 runs: [1.40]; median 1.40; the goal of 1.25 is missed, which is an error from 3 runs on"},
		{[]float64{1.4, 1.0, 1.25}, 3, false, "ratios of 3 runs: [1.00 1.25 1.40]; median 1.25; the goal of 1.25 is reached"},
		{[]float64{1.4, 1.0, 1.26}, 3, true, "ratios of 3 runs: [1.00 1.26 1.40]; median 1.26; the goal of 1.25 is MISSED"},
		{[]float64{1.4, 1.0, 1.2, 1.4}, 4, true, "ratios of 4 runs: [1.00 1.20 1.40 1.40]; median 1.30; the goal of 1.25 is MISSED"},
		{[]float64{1.0, 1.0}, 3, true, "2 of 3 runs have a ratio: [1.00 1.00]"},
		{nil, 1, true, "0 of 1 runs have a ratio: []"},
	} {
		if said, failed := Judge(tc.ratios, tc.runs); said != tc.said || failed != tc.failed {
			t.Errorf("got  %v %s\nwant %v %s", failed, said, tc.failed, tc.said)
		}
	}
}
