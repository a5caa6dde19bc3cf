package tftp

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// programsIn is how many programs of 64 KiB a server sends in 20 seconds that sends up to
// 1,000 blocks in each tenth of a second, where so many of a hundred exchanges are lost, half of
// them on the way back, and there is always somebody who waits. It is a model: the line and
// the transfers are those of the server, the rest has no socket and no clock.
func programsIn(t *testing.T, spare, lost int) (programs, most int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(lost)))
	content := program(64 << 10)
	request := mustParse(t, read("a", "octet", "blksize", "1468"))
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	l := newLine(defaultSessions, spare, maxWaiting)
	type session struct {
		*transfer
		waits, gone bool
	}
	var running []*session
	host, halted := 0, 0
	for range int(20 * time.Second / tick) {
		now = now.Add(tick)
		for len(l.others) < 600 {
			host++
			l.arrive(from(host, 1), halted, now)
		}
		budget := 1000
		for {
			client, _, ok := l.next(halted, now)
			if !ok {
				break
			}
			x := newTransfer(request, client, now)
			if err := x.open(inMemory{bytes.NewReader(content)}, 1468); err != nil {
				t.Fatal(err)
			}
			running = append(running, &session{transfer: x})
		}
		most = max(most, len(running))
		var still []*session
		halted = 0
		for _, s := range running {
			whole := false
			// exchange is one packet and its answer.
			exchange := func() {
				budget--
				number, last := s.block, s.oack == nil && len(s.data) < cap(s.data)
				if s.oack != nil {
					number = 0
				}
				if s.waits = s.gone || random.IntN(100) < lost; s.waits {
					// Firmware does not stay to see whether its last answer arrives.
					s.gone = s.gone || last && random.IntN(2) == 0
					return
				}
				var err error
				if _, whole, err = s.acknowledged(number); err != nil {
					t.Fatal(err)
				}
			}
			for !s.waits && !whole && budget > 0 {
				exchange()
			}
			next := wait
			if s.waits { // and not for the server, which would be a matter of milliseconds
				if next = s.tick(); next == repeat {
					exchange()
				}
			}
			switch {
			case whole:
				programs++
				l.leave(s.client, true, now)
			case next == giveUp:
				if s.gone {
					programs++
				}
				l.leave(s.client, s.gone, now)
			default:
				still = append(still, s)
				if s.halted() {
					halted++
				}
			}
		}
		running = still
	}
	return programs, most
}

// Where packets are lost, most of a transfer is waiting for what does not come.
func TestALossyNetworkDoesNotLeaveTheServerIdle(t *testing.T) {
	t.Parallel()
	const spare = spareTimes * defaultSessions
	for _, c := range []struct {
		lost  int
		times float64
	}{{0, 1}, {10, 3}} {
		without, before := programsIn(t, 0, c.lost)
		with, most := programsIn(t, spare, c.lost)
		t.Logf("%d of 100 exchanges lost: %d programs, %d at a time; with %d more at a time %d, %d", c.lost, without, before, spare, with, most)
		if float64(with) < c.times*float64(without) {
			t.Errorf("%d of 100 exchanges lost: %d programs instead of %d, want %.1f times as many", c.lost, with, without, c.times)
		}
		if c.lost == 0 && most > defaultSessions {
			t.Errorf("nothing is lost: %d run at a time", most)
		}
		if before > defaultSessions || most > defaultSessions+spare {
			t.Errorf("%d of 100 exchanges lost: %d and %d run at a time", c.lost, before, most)
		}
	}
}
