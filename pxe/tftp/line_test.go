package tftp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func from(host, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(host >> 8), byte(host)}), uint16(port))
}

func TestWhoseTurnItIs(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	l := newLine(4, 0, 40)
	arrive := func(want string, client netip.AddrPort) {
		t.Helper()
		p, n := l.arrive(client, 0, now)
		name := map[place]string{turn: "turn", queued: "queued", known: "known", full: "full", share: "share"}[p]
		if got := fmt.Sprint(name, " ", n); got != want {
			t.Errorf("%s: got %s, want %s", client, got, want)
		}
	}
	next := func(want ...netip.AddrPort) {
		t.Helper()
		var got []netip.AddrPort
		for {
			c, _, ok := l.next(0, now)
			if !ok {
				break
			}
			got = append(got, c)
		}
		if !slices.Equal(got, want) {
			t.Errorf("next are %v, want %v", got, want)
		}
	}
	for i := range 4 {
		arrive(fmt.Sprintf("turn %d", i), from(i, 1))
	}
	next(from(0, 1), from(1, 1), from(2, 1), from(3, 1))
	arrive("known 0", from(0, 1))
	arrive("queued 0", from(4, 1))
	arrive("queued 1", from(5, 1))
	arrive("queued 2", from(6, 1))
	arrive("known 0", from(4, 1))
	next()

	// A machine that broke off to come again is before those who wait longer.
	l.leave(from(1, 1), false, now)
	arrive("turn 0", from(1, 2))
	next(from(1, 2))
	l.leave(from(1, 2), true, now)
	arrive("turn 3", from(1, 3))
	next(from(4, 1))

	// Who repeats its request keeps its turn, who does not has given up.
	now = now.Add(patience - time.Second)
	arrive("known 0", from(6, 1))
	now = now.Add(2 * time.Second)
	l.leave(from(0, 1), true, now)
	next(from(6, 1))
	if len(l.others) != 1 || len(l.seen) != 1 || len(l.sources) != 5 {
		t.Errorf("%d wait, %d were seen, of %d addresses", len(l.others), len(l.seen), len(l.sources))
	}

	// Nothing is left of those that ended, whoever ends them twice.
	for _, c := range []netip.AddrPort{from(2, 1), from(3, 1), from(4, 1), from(6, 1), from(6, 1)} {
		l.leave(c, true, now)
	}
	next() // and who waits has given up
	if len(l.active)+len(l.running)+len(l.sources)+len(l.seen) != 0 {
		t.Errorf("left over: %+v", l)
	}
}

func TestOneAddressHasItsShare(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	l := newLine(8, 0, 40)
	places := map[place]int{}
	for port := range 100 {
		p, _ := l.arrive(from(1, 1+port), 0, now)
		places[p]++
		if p == turn {
			l.next(0, now)
		}
	}
	if places[turn] != 2 || places[queued] != 8 || places[share] != 90 {
		t.Errorf("of 100 requests of one address: %v, want 2 of 8 places, 8 that wait, and 90 turned down", places)
	}
	if p, _ := l.arrive(from(2, 1), 0, now); p != turn {
		t.Errorf("another address: %v", p)
	}
	if c, _, ok := l.next(0, now); !ok || c != from(2, 1) {
		t.Errorf("next is %v, want the other address past those that wait", c)
	}
	for host := range 100 {
		l.arrive(from(3+host, 1), 0, now)
	}
	if p, n := l.arrive(from(200, 1), 0, now); p != full || n != 40 {
		t.Errorf("with all waiting places taken: %v, %d", p, n)
	}
}

// Those whose answer is lost wait, and the server must not wait with them.
func TestOthersBeginWhileSomeHaveHalted(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	l := newLine(4, 3, 40)
	begun := func(halted int) (n int) {
		for {
			if _, _, ok := l.next(halted, now); !ok {
				return n
			}
			n++
		}
	}
	for i := range 20 {
		l.arrive(from(i, 1), 0, now)
	}
	for _, c := range []struct{ halted, want int }{{0, 4}, {0, 0}, {2, 2}, {2, 0}, {1, 0}, {3, 1}, {7, 0}} {
		if got := begun(c.halted); got != c.want {
			t.Errorf("with %d that have halted, of %d: %d begin, want %d", c.halted, len(l.active), got, c.want)
		}
	}
	if p, n := l.arrive(from(30, 1), 7, now); p != queued || n != 13 {
		t.Errorf("with all places taken: %v behind %d", p, n)
	}
	// They go on: nobody begins before there are fewer than may run.
	for i := range 3 {
		l.leave(from(i, 1), true, now)
	}
	if got := begun(0); got != 0 {
		t.Errorf("%d begin although 4 run", got)
	}
	if p, _ := l.arrive(from(31, 1), 1, now); p != turn {
		t.Errorf("with one that has halted: %v", p)
	}
}
