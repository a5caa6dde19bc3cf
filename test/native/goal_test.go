package native

import (
	"fmt"
	"testing"
	"time"
)

// stalled is for how long the host may keep its processor from somebody who wants two milliseconds
// of it. Beyond that it does other work, or more than it can: what is measured then is the host.
const stalled = 250 * time.Millisecond

// judge compares what was measured with a goal. kept is the longest time for which the host kept
// its processor from a probe meanwhile. A goal that is missed is an error. On a host that stalled
// it is said, and an error from three times the goal on, as what waits for a processor cannot be
// told from what hangs by then.
func judge(what string, got, goal, kept time.Duration) (said string, failed bool) {
	s := fmt.Sprintf("%s: %.2f s, the goal is %v", what, got.Seconds(), goal)
	switch {
	case got <= goal:
		return s + ": reached", false
	case kept < stalled:
		return s + fmt.Sprintf(": MISSED; the host was not busy (a probe waited %v at most)", kept.Round(time.Millisecond)), true
	}
	return s + fmt.Sprintf(": MISSED; the host kept its processor from a probe for %v", kept.Round(time.Millisecond)), got > 3*goal
}

func TestAGoalThatIsMissedIsAnError(t *testing.T) {
	t.Parallel()
	const goal = 5 * time.Second
	for _, tc := range []struct {
		got, kept time.Duration
		failed    bool
		said      string
	}{
		{goal, 0, false, "x: 5.00 s, the goal is 5s: reached"},
		{goal, time.Hour, false, "x: 5.00 s, the goal is 5s: reached"},
		{goal + time.Millisecond, 0, true, "x: 5.00 s, the goal is 5s: MISSED; the host was not busy (a probe waited 0s at most)"},
		{goal + time.Second, stalled - time.Millisecond, true, "x: 6.00 s, the goal is 5s: MISSED; the host was not busy (a probe waited 249ms at most)"},
		{goal + time.Second, stalled, false, "x: 6.00 s, the goal is 5s: MISSED; the host kept its processor from a probe for 250ms"},
		{3 * goal, time.Second, false, "x: 15.00 s, the goal is 5s: MISSED; the host kept its processor from a probe for 1s"},
		{3*goal + 1, time.Second, true, "x: 15.00 s, the goal is 5s: MISSED; the host kept its processor from a probe for 1s"},
	} {
		if said, failed := judge("x", tc.got, goal, tc.kept); said != tc.said || failed != tc.failed {
			t.Errorf("got  %v %s\nwant %v %s", failed, said, tc.failed, tc.said)
		}
	}
}
