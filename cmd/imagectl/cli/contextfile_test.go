package cli

import (
	"testing"
	"time"
)

// A context file that cannot be written, as on a full disk, is tried again now and
// then, also when its certificate has ended: never in a loop without a pause.
func TestTheContextFileIsRefreshedWithPauses(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]time.Duration{
		12 * time.Hour: 4 * time.Hour, 30 * time.Minute: 10 * time.Minute,
		time.Second: time.Minute, 0: time.Minute, -time.Hour: time.Minute,
	} {
		if got := refreshIn(left); got != want {
			t.Errorf("with %v left: got %v, want %v", left, got, want)
		}
	}
}
