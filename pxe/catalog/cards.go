package catalog

import (
	"net"
	"slices"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

type card [6]byte

// cardsPerMachine bounds what is learned: who shows the marks of a machine with ever more
// cards takes the place of that machine's cards, and of no other's.
const cardsPerMachine = 8

// freshTime is how much older than the truth the time may be at which a card was seen.
const freshTime = time.Minute

// cards are network cards that cluster.yaml does not list, by the machine that showed its
// UUID or serial number with them. An operating system's DHCP shows neither, and yet its
// machine must get the reserved address.
type cards struct {
	known map[card]sighting
	// of are the cards of a machine.
	of map[string][]card
}

// sighting is whose a card was taken for last, and when about.
type sighting struct {
	name string
	at   time.Time
}

func newCards() cards { return cards{known: map[card]sighting{}, of: map[string][]card{}} }

// set takes a card for a machine's. Of one that has too many it forgets the card that was
// not seen for longest.
func (c cards) set(k card, name string, now time.Time) {
	if c.known[k].name != name {
		c.forget(k)
		if of := c.of[name]; len(of) >= cardsPerMachine {
			c.forget(slices.MinFunc(of, func(a, b card) int { return c.known[a].at.Compare(c.known[b].at) }))
		}
		c.of[name] = append(c.of[name], k)
	}
	c.known[k] = sighting{name, now}
}

func (c cards) forget(k card) {
	name := c.known[k].name
	delete(c.known, k)
	if c.of[name] = slices.DeleteFunc(c.of[name], func(x card) bool { return x == k }); len(c.of[name]) == 0 {
		delete(c.of, name)
	}
}

// forgetAll forgets the cards of a machine.
func (c cards) forgetAll(name string) {
	for _, k := range c.of[name] {
		delete(c.known, k)
	}
	delete(c.of, name)
}

// Named says which machine of cluster.yaml showed itself with a network card that the
// file does not list.
func (c *Catalog) Named(mac net.HardwareAddr) (string, bool) {
	at, ok := c.learned(mac)
	if ok {
		_, ok = c.current.Load().byName[at.name]
	}
	return at.name, ok
}

// Cards are the network cards that a machine showed itself with and the file does not
// list, in no particular order.
func (c *Catalog) Cards(name string) []net.HardwareAddr {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []net.HardwareAddr
	for _, k := range c.cards.of[name] {
		out = append(out, slices.Clone(k[:]))
	}
	return out
}

func (c *Catalog) learned(mac net.HardwareAddr) (sighting, bool) {
	if len(mac) != 6 {
		return sighting{}, false
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	at, ok := c.cards.known[card(mac)]
	return at, ok
}

// learn remembers the card of a machine that is here and was recognised by something else.
// A card does not change its machine while it has the other one's address: a running system
// would lose that at its next renewal, and anybody can send a packet in its name. Then
// learn says whose the card stays.
func (c *Catalog) learn(s *snapshot, m boot.Machine, name string, fits bool) (other string) {
	if !m.Here || len(m.MAC) != 6 {
		return ""
	}
	now := s.now()
	at, known := c.learned(m.MAC)
	if known && at.name == name && now.Sub(at.at) < freshTime {
		return ""
	}
	if shows := m.UUID != "" || m.Serial != "" || fits; !shows && !(known && at.name == name) {
		return ""
	}
	if _, listed := s.byMAC[card(m.MAC)]; listed {
		return ""
	}
	for _, holds := range m.Holds {
		_, exists := s.byName[holds]
		if exists && holds != name && (holds == at.name || !known && !slices.Contains(m.Holds, name)) {
			return holds
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cards.set(card(m.MAC), name, now)
	return ""
}
