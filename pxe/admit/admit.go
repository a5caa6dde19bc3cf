// Package admit decides which machines may begin to netboot now. Firmware that was
// offered an address gives up, and starts again or boots something else, when its
// boot program does not come within seconds; firmware without an offer asks again,
// ever more slowly, for a minute. So when a rack is switched on, silence towards
// those who cannot be served in time is what lets all of them boot.
//
// A Line is the book of who was let in, and when each of them will come for its
// program. How many can be served in a second is measured. Every method takes the
// time; nothing here waits or touches a socket.
package admit

import (
	"cmp"
	"fmt"
	"math"
	"sync"
	"time"
)

const (
	// patience is how long a machine may have to wait for its program. Firmware asks
	// for it six times, four seconds apart (EDK2: PXEBC_MTFTP_TIMEOUT, _RETRIES).
	patience = 18 * time.Second
	// unlisted is the part of it for machines that cluster.yaml does not name: their
	// cards can be invented, so they never take more than a part of the places.
	unlisted = 4
	// firstWindow and lastWindow bound the time between two of firmware's requests,
	// which doubles (PXE 2.1, EDK2's mPxeDhcpTimeout). It takes an offer when the time
	// ends, not before.
	firstWindow = 4 * time.Second
	lastWindow  = 32 * time.Second
	// gone is when a machine that has not come for its program, or not got it to the
	// end, is no longer counted.
	gone = 30 * time.Second
	// maxStrangers bounds the memory of machines that cluster.yaml does not name.
	maxStrangers = 4096

	// firstRate is how many programs a second are taken to be possible before any were
	// measured: a little less than seen on two slow processors that do other work too.
	firstRate = 64
	// leastRate keeps one bad measurement from shutting everybody out.
	leastRate = 4
	// span is how long is measured at a time.
	span = 2 * time.Second
)

// MAC is a machine's network card.
type MAC [6]byte

// Line is the book of one way to load programs. The zero value is an empty one, for iPXE
// by TFTP. It is safe for concurrent use.
type Line struct {
	// Patience is how long a machine may have to wait for its program, First how many
	// programs a second are taken to be possible before any were measured, and Least what
	// no measurement goes below. Zero values are TFTP's: 18 s, 64 and 4.
	Patience     time.Duration
	First, Least float64

	mu    sync.Mutex
	cards map[MAC]card
	// due counts the machines that were let in and have no program yet, by the second
	// in which they come for it.
	due map[int64]int
	// strangers is how many cards are not listed.
	strangers int
	swept     time.Time

	rate float64
	// since, done and crowded are of the present measurement.
	since   time.Time
	done    int
	crowded bool
}

// card is what is known of one machine.
type card struct {
	asked  time.Time
	window time.Duration
	listed bool
	// due is when it comes for its program; zero when it was not let in.
	due time.Time
}

// Verdict is the answer to one request of firmware for an address.
type Verdict struct {
	Admitted bool
	// Wait is how long the machine would have to wait for its boot program, Limit how
	// long it may.
	Wait, Limit time.Duration
	// Window is when it asks again, or comes for its program.
	Window time.Duration
}

// Refusal is the reason for silence.
func (v Verdict) Refusal() string {
	return fmt.Sprintf("no offer yet: so many machines boot now that its boot program would come after %s, and its firmware gives up when that takes longer than about %s; it asks again in about %s",
		v.Wait.Round(time.Second), v.Limit, v.Window)
}

// Ask says whether a machine may have an offer now. Listed machines are those of
// cluster.yaml. It changes nothing.
func (l *Line) Ask(mac MAC, listed bool, now time.Time) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := Verdict{Limit: cmp.Or(l.Patience, patience), Window: l.window(mac, now)}
	if !listed {
		v.Limit /= unlisted
	}
	if c := l.cards[mac]; !c.due.IsZero() && now.Sub(c.due) < firstWindow { // it did not hear the offer
		v.Admitted = true
		return v
	}
	v.Wait = l.wait(now, now.Add(v.Window))
	v.Admitted = v.Wait <= v.Limit
	return v
}

// Note remembers what a machine was told.
func (l *Line) Note(mac MAC, listed bool, v Verdict, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	old, known := l.cards[mac]
	if !known && !listed && l.strangers >= maxStrangers {
		return
	}
	l.drop(mac, old)
	c := card{asked: now, window: v.Window, listed: listed}
	if v.Admitted {
		c.due = now.Add(v.Window)
		l.due[second(c.due)]++
	}
	if !listed {
		l.strangers++
	}
	l.cards[mac] = c
}

// Done says that a machine has its boot program.
func (l *Line) Done(mac MAC, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.measure(now)
	l.done++
	if c, ok := l.cards[mac]; ok {
		l.drop(mac, c)
	}
}

// Left says that a machine that was let in loads its program from another server.
func (l *Line) Left(mac MAC) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.cards[mac]; ok {
		l.drop(mac, c)
	}
}

// Crowded says that a machine has to wait for its program, so that the programs that
// are sent meanwhile are as many as can be.
func (l *Line) Crowded(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.measure(now)
	l.crowded = true
}

// Usage is how things stand.
type Usage struct {
	// Admitted is how many machines were let in and have no program yet.
	Admitted int
	// Rate is how many programs a second are taken to be possible.
	Rate float64
}

// Usage counts.
func (l *Line) Usage(now time.Time) Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep(now)
	u := Usage{Rate: l.speed()}
	for _, n := range l.due {
		u.Admitted += n
	}
	return u
}

// window is the time to the machine's next request: twice that from its last one.
func (l *Line) window(mac MAC, now time.Time) time.Duration {
	c, known := l.cards[mac]
	if !known {
		return firstWindow
	}
	switch since := now.Sub(c.asked); {
	case since < c.window/2: // a doubled packet, or it began again at once
		return c.window
	case since > c.window+firstWindow || c.window == lastWindow: // it has begun again
		return firstWindow
	}
	return 2 * c.window
}

// wait is how long who comes at a time has to wait for all who come before.
func (l *Line) wait(now, at time.Time) time.Duration {
	rate, queue := l.speed(), 0.0
	first := second(now)
	for s, n := range l.due {
		if s <= first {
			queue += float64(n)
		}
	}
	for s := first + 1; s <= second(at); s++ {
		queue = math.Max(0, queue-rate) + float64(l.due[s])
	}
	return time.Duration(queue / rate * float64(time.Second))
}

func (l *Line) speed() float64 {
	if l.rate == 0 {
		return cmp.Or(l.First, firstRate)
	}
	return l.rate
}

// measure ends a measurement when it has lasted long enough. Fewer than expected
// count only when machines had to wait: else there was nobody to send more to.
func (l *Line) measure(now time.Time) {
	took := now.Sub(l.since)
	if took < span {
		return
	}
	if took < 2*span { // else nobody came for a while
		seen, rate := float64(l.done)/took.Seconds(), l.speed()
		if l.crowded || seen > rate {
			l.rate = math.Max(cmp.Or(l.Least, leastRate), (rate+seen)/2)
		}
	}
	l.since, l.done, l.crowded = now, 0, false
}

// drop forgets a card, if it is there.
func (l *Line) drop(mac MAC, c card) {
	if l.cards == nil {
		l.cards, l.due = map[MAC]card{}, map[int64]int{}
	}
	if _, known := l.cards[mac]; !known {
		return
	}
	delete(l.cards, mac)
	if !c.listed {
		l.strangers--
	}
	if !c.due.IsZero() {
		s := second(c.due)
		if l.due[s]--; l.due[s] == 0 {
			delete(l.due, s)
		}
	}
}

// sweep forgets, once a second, who does not come any more.
func (l *Line) sweep(now time.Time) {
	if now.Sub(l.swept) < time.Second {
		return
	}
	l.swept = now
	for mac, c := range l.cards {
		if c.due.IsZero() && now.Sub(c.asked) > 2*lastWindow || !c.due.IsZero() && now.Sub(c.due) > gone {
			l.drop(mac, c)
		}
	}
}

func second(t time.Time) int64 { return t.Unix() }
