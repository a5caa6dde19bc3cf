package httpboot

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/imagectl/imagectl/pxe/limit"
)

const (
	// distrust is how long a client that was cut off has one place at most: else it would
	// come back at once and stand still again.
	distrust = 5 * time.Minute
	// maxDistrusted bounds the memory of them.
	maxDistrusted = 1024
)

// places are those for transfers. Who has one keeps it to the end. iPXE does not wait
// here, since it comes back when it is told to. It is safe for concurrent use.
type places struct {
	limit int
	// single says that an address is known to be one machine's; nil for none.
	single func(netip.Addr) bool
	mu     sync.Mutex
	taken  int
	// by counts them by client: one has at most a quarter, or one.
	by map[netip.Addr]int
	// cut is when clients were cut off.
	cut map[netip.Addr]time.Time
	// left is closed when somebody leaves.
	left chan struct{}
}

func newPlaces(limit int, single func(netip.Addr) bool) *places {
	return &places{limit: limit, single: single, by: map[netip.Addr]int{}, cut: map[netip.Addr]time.Time{}, left: make(chan struct{})}
}

// enter takes a place for a client ("address:port"), unless there is none for it.
// The second result gives it back, and says whether the client was cut off.
func (p *places) enter(client string, now time.Time) (ok bool, leave func(stalled bool, now time.Time)) {
	at, _ := netip.ParseAddrPort(client) // who has no address is one client
	source := limit.Source(at.Addr(), p.single)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.limit || p.by[source] >= p.share(source, now) {
		return false, nil
	}
	p.taken++
	p.by[source]++
	return true, func(stalled bool, now time.Time) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.by[source]--; p.by[source] == 0 {
			delete(p.by, source)
		}
		if stalled {
			p.note(source, now)
		}
		close(p.left)
		p.left = make(chan struct{})
	}
}

// share is how many places a client may have.
func (p *places) share(source netip.Addr, now time.Time) int {
	if at, ok := p.cut[source]; ok && now.Sub(at) < distrust {
		return 1
	}
	return max(1, p.limit/4)
}

// note remembers who was cut off. There are few of them: each takes a whole place first.
func (p *places) note(source netip.Addr, now time.Time) {
	if len(p.cut) >= maxDistrusted {
		for a, at := range p.cut {
			if now.Sub(at) >= distrust {
				delete(p.cut, a)
			}
		}
	}
	if _, known := p.cut[source]; known || len(p.cut) < maxDistrusted {
		p.cut[source] = now
	}
}

// wait is enter for a client that may have to wait for a place until ctx ends.
func (p *places) wait(ctx context.Context, client string, now func() time.Time) (ok bool, leave func(stalled bool, now time.Time)) {
	for {
		p.mu.Lock()
		left := p.left
		p.mu.Unlock()
		if ok, leave := p.enter(client, now()); ok {
			return true, leave
		}
		select {
		case <-left:
		case <-ctx.Done():
			return false, nil
		}
	}
}
