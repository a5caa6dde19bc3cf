package catalog

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

const uuidOfP3 = "4c4c4544-0000-2010-8020-80c04f202021"

// What anybody can say by HTTP, from anywhere, changes nothing for those who are here.
func TestWhoIsNotHereLeavesNoTrace(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	c := newCatalog(t, ports(&now))
	here := func(m boot.Machine) boot.Answer { m.Here = true; return c.Decide(m) }
	if a := here(boot.Machine{MAC: mac(98), Serial: "D"}); a.Name != "d" {
		t.Fatalf("it is %q", a.Name)
	}
	// The card of d with the UUID of c: answered by what is said, and forgotten.
	if a := c.Decide(boot.Machine{MAC: mac(98), UUID: uuidOfC}); a.Name != "c" {
		t.Errorf("who says so is %q", a.Name)
	}
	if a := here(boot.Machine{MAC: mac(98)}); a.Name != "d" {
		t.Errorf("d has become %q", a.Name)
	}
	for n := range 100 {
		c.Decide(boot.Machine{MAC: mac(1000 + n), UUID: uuidOfC})
	}
	if got := len(c.Cards("c")); got != 0 {
		t.Errorf("c has %d cards that nobody saw", got)
	}
	// Nor does it keep a machine out that fits a selector.
	if a := c.Decide(boot.Machine{MAC: mac(50), UUID: uuidOfP3}); a.Name != "p3" {
		t.Errorf("who fits is %q", a.Name)
	}
	if a := here(boot.Machine{MAC: mac(51), UUID: strings.Replace(uuidOfP3, "0000", "0001", 1)}); a.Name != "p3" {
		t.Errorf("the real machine is %q (%s)", a.Name, a.Code)
	}
	if a := c.Decide(boot.Machine{MAC: mac(50), UUID: uuidOfP3}); a.Code != "conflict" {
		t.Errorf("and who says so after it gets %s", a.Code)
	}
}

// A card whose system has a machine's address stays that machine's, whatever comes in its
// name; when the lease has ended it may have been moved.
func TestACardThatHasAMachinesAddressStaysWithIt(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{true, false} { // a server that was started anew knows no cards
		c := newCatalog(t, rack())
		if known {
			c.Decide(boot.Machine{MAC: mac(98), Serial: "D", Here: true})
		}
		m := boot.Machine{MAC: mac(98), UUID: uuidOfC, Here: true, Holds: []string{"d"}}
		a := c.Decide(m)
		if want := " (but its card stays with d, whose address it has by a lease that goes on; "; a.Name != "c" || !strings.Contains(a.Reason, want) {
			t.Errorf("known %t: %q: %s", known, a.Name, a.Reason)
		}
		if name, _ := c.Named(mac(98)); name != map[bool]string{true: "d"}[known] {
			t.Errorf("known %t: the card is %q's", known, name)
		}
		m.Holds = []string{"d", "c"} // somebody has taken the offer in its name
		c.Decide(m)
		if name, _ := c.Named(mac(98)); known && name != "d" {
			t.Errorf("with both addresses the card is %q's", name)
		}
		m.Holds = []string{"a machine that cluster.yaml has no more"}
		if a := c.Decide(m); a.Name != "c" || strings.Contains(a.Reason, "but its card") {
			t.Errorf("known %t: %q: %s", known, a.Name, a.Reason)
		}
		if name, _ := c.Named(mac(98)); name != "c" {
			t.Errorf("known %t: after it was moved the card is %q's", known, name)
		}
	}
}

// The card that is forgotten is the one that was not seen for longest.
func TestACardThatIsSeenStays(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	cfg := rack()
	cfg.Now = func() time.Time { return now }
	c := newCatalog(t, cfg)
	c.Decide(boot.Machine{MAC: mac(98), Serial: "D", Here: true})
	for n := range 3 * cardsPerMachine {
		now = now.Add(freshTime)
		c.Decide(boot.Machine{MAC: mac(98), Here: true}) // its system
		c.Decide(boot.Machine{MAC: mac(1000 + n), Serial: "D", Here: true})
	}
	if name, ok := c.Named(mac(98)); !ok || name != "d" {
		t.Errorf("a card that is in use is forgotten")
	}
	if got := fmt.Sprint(len(c.Cards("d")), len(c.cards.known), len(c.cards.of)); got != fmt.Sprint(cardsPerMachine, cardsPerMachine, 1) {
		t.Errorf("remembered are %s", got)
	}
	if a := c.Decide(boot.Machine{MAC: mac(98)}); a.Address != netip.MustParseAddr("10.0.0.4") {
		t.Errorf("its system gets %s", a.Address)
	}
}
