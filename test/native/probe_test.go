//go:build root

package native

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// probe wants two milliseconds of a processor ten times a second, and notes for how long the host
// kept it waiting: before it ran, and amid it.
type probe struct {
	mu    sync.Mutex
	waits []wait
}

type wait struct {
	at     time.Time
	lasted time.Duration
}

// newProbe runs one until the test ends.
func newProbe(t *testing.T) *probe {
	t.Helper()
	p := &probe{}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // its processor time is the thread's
		defer runtime.UnlockOSThread()
		const every, wants = 100 * time.Millisecond, 2 * time.Millisecond
		due := time.Now().Add(every)
		for {
			select {
			case <-end:
				return
			case <-time.After(time.Until(due)):
			}
			for cpu := threadTime(); threadTime()-cpu < wants; {
			}
			now := time.Now()
			p.mu.Lock()
			p.waits = append(p.waits, wait{now, max(now.Sub(due)-wants, 0)})
			p.mu.Unlock()
			if due = due.Add(every); due.Before(now) {
				due = now.Add(every)
			}
		}
	}()
	t.Cleanup(func() {
		close(end)
		<-done
	})
	return p
}

// since is the longest wait that ended after a time.
func (p *probe) since(at time.Time) (longest time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.waits {
		if w.at.After(at) {
			longest = max(longest, w.lasted)
		}
	}
	return longest
}

// threadTime is the processor time of this thread (clock_gettime(2)).
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // the kernel has had this clock since 2.6
	}
	return time.Duration(ts.Nano())
}

// meets says how what was measured since a time compares with its goal.
func (p *probe) meets(t *testing.T, what string, got, goal time.Duration, since time.Time) {
	t.Helper()
	said, failed := judge(what, got, goal, p.since(since))
	if failed {
		t.Error(said)
	} else {
		t.Log(said)
	}
}
