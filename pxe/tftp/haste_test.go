package tftp

import (
	"testing"
	"time"
)

// A thread looks for what comes soon, not for what comes late, and not where others want the
// processor.
func TestHaste(t *testing.T) {
	t.Parallel()
	var h haste
	now := time.Unix(1_800_000_000, 0)
	slept := func(d time.Duration) time.Duration {
		began := now
		now = now.Add(d)
		h.slept(began, now)
		return h.span
	}
	for i, step := range []struct{ slept, want time.Duration }{
		{time.Second, 0}, {soon - 1, soon}, {soon, 0}, {10 * time.Microsecond, soon}, {10 * time.Microsecond, soon},
	} {
		if got := slept(step.slept); got != step.want {
			t.Errorf("step %d: after %v of sleep it looks for %v, want %v", i, step.slept, got, step.want)
		}
	}
	h.stole(now)
	if h.span != 0 {
		t.Errorf("it looks for %v when others want the processor", h.span)
	}
	for range int(calm / (100 * time.Microsecond)) {
		if slept(100*time.Microsecond) != 0 {
			t.Fatalf("it looks again %v too early", h.until.Sub(now))
		}
	}
	if got := slept(100 * time.Microsecond); got != soon {
		t.Errorf("a while later it looks for %v", got)
	}
}
