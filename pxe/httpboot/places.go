package httpboot

import (
	"net/netip"
	"sync"
)

// places are those for transfers. Who has one keeps it to the end; nobody waits here,
// since iPXE comes back when it is told to. It is safe for concurrent use.
type places struct {
	limit int
	mu    sync.Mutex
	taken int
	// by counts them by client: one address has at most a quarter, or one.
	by map[netip.Addr]int
}

func newPlaces(limit int) *places { return &places{limit: limit, by: map[netip.Addr]int{}} }

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
	}
}
