package server

import (
	"cmp"
	"net"
	"slices"
	"sync"

	"github.com/imagectl/imagectl/pxe/boot"
)

const (
	// eventsPerCard is the length of each card's memory.
	eventsPerCard = 64
	// maxCards bounds the cards of machines that cluster.yaml does not name, and maxListed
	// those of the others, which are a few for each of its machines: the card that was
	// quiet longest is forgotten.
	maxCards  = 4096
	maxListed = 4 * maxCards
	// cardsPerName bounds the cards of one machine: whoever shows its UUID or its serial
	// number with invented cards takes the room of this machine only.
	cardsPerName = 8
)

// Journal keeps the last boot events of each network card in memory, for those
// who ask why a machine boots what it boots. Cards of machines that cluster.yaml names
// are kept apart: a flood of invented ones does not wipe out what was seen of them. The
// zero value is ready; it is safe for concurrent use.
type Journal struct {
	mu sync.Mutex
	// listed have events with a name, others have none.
	listed, others shelf
	// named are the listed cards by name.
	named map[string][]cardKey
	// pinned are cards that cluster.yaml lists.
	pinned map[cardKey]bool
}

type cardKey [6]byte

// shelf is a bounded number of cards.
type shelf struct {
	cards map[cardKey]*ring
	// clock orders the cards by their last event.
	clock uint64
}

type ring struct {
	// name is the machine's, empty among the others.
	name   string
	events []boot.Event
	// next is where the next event goes once events is full.
	next int
	last uint64
}

// Pin says which cards cluster.yaml lists: of the cards of one machine, these are
// forgotten last.
func (j *Journal) Pin(cards []net.HardwareAddr) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pinned == nil {
		j.pinned = map[cardKey]bool{}
	}
	for _, c := range cards {
		if len(c) == 6 {
			j.pinned[cardKey(c)] = true
		}
	}
}

// Record implements boot.Recorder. Events without a network card are dropped.
func (j *Journal) Record(e boot.Event) {
	if len(e.Machine.MAC) != 6 {
		return
	}
	key := cardKey(e.Machine.MAC)
	j.mu.Lock()
	defer j.mu.Unlock()
	if r := j.listed.cards[key]; r != nil {
		j.listed.add(r, e) // also when it is a contradiction now, and has no name
		return
	}
	was := j.others.cards[key]
	switch {
	case e.Name == "" && was != nil:
		j.others.add(was, e)
		return
	case e.Name == "":
		r := j.others.put(key, maxCards, nil)
		j.others.add(r, e)
		return
	}
	j.makeRoom(e.Name)
	r := j.listed.put(key, maxListed, j.unname)
	r.name = e.Name
	if was != nil { // it was learned whose it is
		r.events, r.next = was.events, was.next
		delete(j.others.cards, key)
	}
	if j.named == nil {
		j.named = map[string][]cardKey{}
	}
	j.named[e.Name] = append(j.named[e.Name], key)
	j.listed.add(r, e)
}

// makeRoom forgets a card of a machine that has as many as it may: one that cluster.yaml
// does not list, the one that was quiet longest.
func (j *Journal) makeRoom(name string) {
	cards := j.named[name]
	if len(cards) < cardsPerName {
		return
	}
	first := slices.MinFunc(cards, func(a, b cardKey) int {
		if j.pinned[a] != j.pinned[b] {
			if j.pinned[a] {
				return 1
			}
			return -1
		}
		return cmp.Compare(j.listed.cards[a].last, j.listed.cards[b].last)
	})
	j.unname(first, j.listed.cards[first])
	delete(j.listed.cards, first)
}

// unname takes a card from the machine that it belongs to.
func (j *Journal) unname(key cardKey, r *ring) {
	j.named[r.name] = slices.DeleteFunc(j.named[r.name], func(k cardKey) bool { return k == key })
	if len(j.named[r.name]) == 0 {
		delete(j.named, r.name)
	}
}

// put makes a place for a card. Those that are forgotten for it are told to gone.
func (s *shelf) put(key cardKey, most int, gone func(cardKey, *ring)) *ring {
	if s.cards == nil {
		s.cards = map[cardKey]*ring{}
	}
	if len(s.cards) >= most {
		s.forgetQuarter(most, gone)
	}
	r := &ring{}
	s.cards[key] = r
	return r
}

func (s *shelf) add(r *ring, e boot.Event) {
	s.clock++
	r.last = s.clock
	if len(r.events) < eventsPerCard {
		r.events = append(r.events, e)
		return
	}
	r.events[r.next] = e
	r.next = (r.next + 1) % eventsPerCard
}

// forgetQuarter drops the cards without an event among the last three quarters of
// so many; if all had one, it drops any: only a flood of invented cards does that.
func (s *shelf) forgetQuarter(most int, gone func(cardKey, *ring)) {
	drop := func(key cardKey, r *ring) {
		if gone != nil {
			gone(key, r)
		}
		delete(s.cards, key)
	}
	for key, r := range s.cards {
		if s.clock-r.last >= uint64(most)*3/4 {
			drop(key, r)
		}
	}
	for key, r := range s.cards {
		if len(s.cards) < most {
			return
		}
		drop(key, r)
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
	r := j.listed.cards[cardKey(mac)]
	if r == nil {
		r = j.others.cards[cardKey(mac)]
	}
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
