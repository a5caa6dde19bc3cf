package server

import (
	"net"
	"sync"

	"github.com/imagectl/imagectl/pxe/boot"
)

const (
	// eventsPerCard is the length of each card's memory.
	eventsPerCard = 64
	// maxCards bounds the memory: the card that was quiet longest is forgotten.
	maxCards = 4096
)

// Journal keeps the last boot events of each network card in memory, for those
// who ask why a machine boots what it boots. The zero value is ready; it is safe
// for concurrent use.
type Journal struct {
	mu    sync.Mutex
	cards map[[6]byte]*ring
	// clock orders the cards by their last event.
	clock uint64
}

type ring struct {
	events []boot.Event
	// next is where the next event goes once events is full.
	next int
	last uint64
}

// Record implements boot.Recorder. Events without a network card are dropped.
func (j *Journal) Record(e boot.Event) {
	if len(e.Machine.MAC) != 6 {
		return
	}
	key := [6]byte(e.Machine.MAC)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cards == nil {
		j.cards = map[[6]byte]*ring{}
	}
	r := j.cards[key]
	if r == nil {
		if len(j.cards) >= maxCards {
			j.forgetQuarter()
		}
		r = &ring{}
		j.cards[key] = r
	}
	j.clock++
	r.last = j.clock
	if len(r.events) < eventsPerCard {
		r.events = append(r.events, e)
		return
	}
	r.events[r.next] = e
	r.next = (r.next + 1) % eventsPerCard
}

// forgetQuarter drops the cards without an event among the last three quarters of
// maxCards; if all had one, it drops any: only a flood of invented cards does that.
func (j *Journal) forgetQuarter() {
	for key, r := range j.cards {
		if j.clock-r.last >= maxCards*3/4 {
			delete(j.cards, key)
		}
	}
	for key := range j.cards {
		if len(j.cards) < maxCards {
			return
		}
		delete(j.cards, key)
	}
}

// Events returns a card's events, oldest first.
func (j *Journal) Events(mac net.HardwareAddr) []boot.Event { return j.Tail(mac, eventsPerCard) }

// Tail returns a card's last events, at most n, oldest first.
func (j *Journal) Tail(mac net.HardwareAddr, n int) []boot.Event {
	if len(mac) != 6 || n <= 0 {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	r := j.cards[[6]byte(mac)]
	if r == nil {
		return nil
	}
	n = min(n, len(r.events))
	out := make([]boot.Event, 0, n)
	for i := len(r.events) - n; i < len(r.events); i++ {
		out = append(out, r.events[(r.next+i)%len(r.events)])
	}
	return out
}
