package httpboot

import (
	"context"
	"net/netip"
	"sync"
)

// places are those for transfers. Who has one keeps it to the end. iPXE does not wait
// here, since it comes back when it is told to. It is safe for concurrent use.
type places struct {
	limit int
	mu    sync.Mutex
	taken int
	// by counts them by client: one address has at most a quarter, or one.
	by map[netip.Addr]int
	// left is closed when somebody leaves.
	left chan struct{}
}

func newPlaces(limit int) *places {
	return &places{limit: limit, by: map[netip.Addr]int{}, left: make(chan struct{})}
}

// enter takes a place for a client ("address:port"), unless there is none for it.
// The second result gives it back.
func (p *places) enter(client string) (ok bool, leave func()) {
	at, _ := netip.ParseAddrPort(client) // who has no address is one client
	source := at.Addr().Unmap()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.limit || p.by[source] >= max(1, p.limit/4) {
		return false, nil
	}
	p.taken++
	p.by[source]++
	return true, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.by[source]--; p.by[source] == 0 {
			delete(p.by, source)
		}
		close(p.left)
		p.left = make(chan struct{})
	}
}

// wait is enter for a client that may have to wait for a place until ctx ends.
func (p *places) wait(ctx context.Context, client string) (ok bool, leave func()) {
	for {
		p.mu.Lock()
		left := p.left
		p.mu.Unlock()
		if ok, leave := p.enter(client); ok {
			return true, leave
		}
		select {
		case <-left:
		case <-ctx.Done():
			return false, nil
		}
	}
}
