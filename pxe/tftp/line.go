package tftp

import (
	"net/netip"
	"slices"
	"time"
)

// place is what becomes of a request.
type place int

const (
	// turn: there is a place for it now.
	turn place = iota + 1
	// queued: it waits.
	queued
	// known: it waits or runs already, and was only repeated.
	known
	// full: as many wait as may.
	full
	// share: one address has as many as it may.
	share
)

// line says whose request is served next. It knows no packets and no socket; every
// method takes the time. It is not safe for concurrent use.
type line struct {
	limit, most int
	// spare is how many more may run than limit, in place of those that have halted.
	spare  int
	active map[netip.AddrPort]bool
	// running counts active by address, and sources those and the waiting ones.
	running, sources map[netip.Addr]int
	// begun are the addresses whose last session was broken off, and when: their
	// machines are in the middle of their boot. They are first, the others behind.
	begun         map[netip.Addr]time.Time
	first, others []netip.AddrPort
	// seen is when a request that waits came last.
	seen  map[netip.AddrPort]time.Time
	swept time.Time
}

func newLine(limit, spare, most int) line {
	return line{limit: limit, spare: spare, most: most, active: map[netip.AddrPort]bool{}, running: map[netip.Addr]int{}, sources: map[netip.Addr]int{},
		begun: map[netip.Addr]time.Time{}, seen: map[netip.AddrPort]time.Time{}}
}

// shareOf is how much of a number one address may have. Clients behind a router that
// rewrites addresses share one, so it is not small.
func shareOf(n int) int { return max(1, n/4) }

// crowded says that no more may begin. Of those that run, halted wait for an answer that
// does not come: they cost nothing but their memory, so that others may begin meanwhile.
func (l *line) crowded(halted int) bool { return len(l.active)-min(halted, l.spare) >= l.limit }

// arrive takes a request in while so many have halted, and says how many others wait
// before it, or what the bound is that it met.
func (l *line) arrive(client netip.AddrPort, halted int, now time.Time) (place, int) {
	l.sweep(now)
	if l.active[client] {
		return known, 0
	}
	if _, ok := l.seen[client]; ok {
		l.seen[client] = now
		return known, 0
	}
	source := client.Addr()
	if n := l.sources[source]; n >= shareOf(l.most) {
		return share, n
	}
	before := len(l.first) + len(l.others)
	if before >= l.most {
		return full, before
	}
	l.sources[source]++
	l.seen[client] = now
	if at, ok := l.begun[source]; ok && now.Sub(at) < patience {
		before = len(l.first)
		l.first = append(l.first, client)
	} else {
		l.others = append(l.others, client)
	}
	if !l.crowded(halted) && l.running[source] < shareOf(l.limit) {
		return turn, before
	}
	return queued, before
}

// next takes the one whose turn it is, if there is a place while so many have halted. It
// names also those that gave up before.
func (l *line) next(halted int, now time.Time) (client netip.AddrPort, gaveUp []netip.AddrPort, ok bool) {
	l.sweep(now)
	if l.crowded(halted) {
		return netip.AddrPort{}, nil, false
	}
	for _, queue := range []*[]netip.AddrPort{&l.first, &l.others} {
		for i := 0; i < len(*queue); {
			client := (*queue)[i]
			switch {
			case now.Sub(l.seen[client]) > patience:
				l.remove(queue, i)
				l.forget(client.Addr())
				gaveUp = append(gaveUp, client)
			case l.running[client.Addr()] >= shareOf(l.limit):
				i++
			default:
				l.remove(queue, i)
				l.active[client] = true
				l.running[client.Addr()]++
				return client, gaveUp, true
			}
		}
	}
	return netip.AddrPort{}, gaveUp, false
}

func (l *line) remove(queue *[]netip.AddrPort, i int) {
	delete(l.seen, (*queue)[i])
	if i == 0 {
		*queue = (*queue)[1:]
		return
	}
	*queue = slices.Delete(*queue, i, i+1)
}

// leave ends a session.
func (l *line) leave(client netip.AddrPort, whole bool, now time.Time) {
	if !l.active[client] {
		return
	}
	delete(l.active, client)
	if l.running[client.Addr()]--; l.running[client.Addr()] == 0 {
		delete(l.running, client.Addr())
	}
	l.forget(client.Addr())
	if whole {
		delete(l.begun, client.Addr())
	} else if len(l.begun) < l.most {
		l.begun[client.Addr()] = now
	}
}

func (l *line) forget(source netip.Addr) {
	if l.sources[source]--; l.sources[source] == 0 {
		delete(l.sources, source)
	}
}

// sweep frees, once a second, what nobody has any more.
func (l *line) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Second {
		return
	}
	l.swept = now
	for source, at := range l.begun {
		if now.Sub(at) >= patience {
			delete(l.begun, source)
		}
	}
}
