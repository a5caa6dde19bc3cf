package tftp

import "time"

const (
	// soon is within what a client in lock-step answers whose next packet is worth looking for:
	// a processor that sleeps takes about as long to wake.
	soon = 200 * time.Microsecond
	// stolen is a pause between two looks in which something else had the processor.
	stolen = 50 * time.Microsecond
	// calm is for how long nobody looks then.
	calm = 20 * time.Millisecond
)

// haste says for how long a thread looks for the next packet of its only client before it
// sleeps. On an idle machine to wake up takes longer than all the rest of a block's work; on a
// busy one whoever keeps the processor busy gets it later. The zero value sleeps at once. It is
// not safe for concurrent use.
type haste struct {
	span time.Duration
	// until then the thread sleeps, whatever comes.
	until time.Time
}

// stole takes in that something else wanted the processor.
func (h *haste) stole(now time.Time) { h.span, h.until = 0, now.Add(calm) }

// slept takes in for how long no packet came.
func (h *haste) slept(began, now time.Time) {
	h.span = 0
	if now.Sub(began) < soon && now.After(h.until) {
		h.span = soon
	}
}
