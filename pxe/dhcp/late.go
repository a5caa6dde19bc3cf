package dhcp

import (
	"context"
	"time"
)

// maxLate bounds the answers that wait for their client to be ready. What comes
// above it leaves at once.
const maxLate = 256

// late holds answers back for firmware that is not ready for them yet. They leave
// in the order they came, each no earlier than its delay says.
type late chan lateReply

type lateReply struct {
	pending
	due time.Time
}

// add takes an answer unless there is no place. It does not block.
func (l late) add(p pending) bool {
	select {
	case l <- lateReply{p, time.Now().Add(p.delay)}:
		return true
	default:
		return false
	}
}

// serve sends until ctx ends; what waits then is dropped, as by a lossy network.
func (l late) serve(ctx context.Context, send func(pending)) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-l:
			timer := time.NewTimer(time.Until(r.due))
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				send(r.pending)
			}
		}
	}
}
