package catalog

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/selector"
)

// ports is a rack whose machines are named by what they show.
func ports(now *time.Time) Config {
	cfg := rack()
	cfg.Now = func() time.Time { return *now }
	for i, of := range []map[selector.Field][]string{
		{selector.CircuitID: {"swp1"}, selector.RemoteID: {"leaf"}},
		{selector.CircuitID: {"swp2"}, selector.RemoteID: {"leaf"}},
		{selector.UUID: {"/4c4c4544-.*/"}},
		{selector.UUID: {"/.*-80c04f202020/"}},
	} {
		cfg.Plan.Machines = append(cfg.Plan.Machines, plan.Machine{Name: fmt.Sprint("p", i+1), Selector: of, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(11 + i)})})
	}
	return cfg
}

func TestMachinesAreKnownByTheirSwitchPort(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	c := newCatalog(t, ports(&now))
	port := func(card int, circuit string) boot.Machine {
		return boot.Machine{Here: true, MAC: mac(card), CircuitID: circuit, RemoteID: "leaf", Network: netip.MustParseAddr("10.0.0.1")}
	}
	decide := func(what string, m boot.Machine, want string) {
		t.Helper()
		m.Here = true
		a := c.Decide(m)
		if got := a.Name + " " + a.Code; got != want {
			t.Errorf("%s: got %q, want %q (%s)", what, got, want, a.Reason)
		}
	}
	if a := c.Look(port(50, "swp1")); a.Name != "p1" || len(c.Cards("p1")) != 0 {
		t.Errorf("who only asks is answered %s, and %v is learned", a.Name, c.Cards("p1"))
	}
	decide("its firmware", port(50, "swp1"), "p1 not-armed")
	decide("by HTTP, where no switch says who it is", boot.Machine{MAC: mac(50), Serial: "X"}, "p1 not-armed")
	decide("its system", port(50, "swp1"), "p1 not-armed")
	if name, ok := c.Named(mac(50)); !ok || name != "p1" || len(c.Cards("p1")) != 1 {
		t.Errorf("its card is %s's; cards %v", name, c.Cards("p1"))
	}
	decide("the next port", port(51, "swp2"), "p2 not-armed")
	decide("a port that nobody has", port(52, "swp3"), " unknown-machine")
	decide("another switch", boot.Machine{MAC: mac(53), CircuitID: "swp1", RemoteID: "spine"}, " unknown-machine")
	decide("a machine that the file names is that one on every port", port(1, "swp1"), "a armed")

	// Another machine in the same port: refused while the first was just there.
	decide("another one in the port", port(60, "swp1"), " conflict")
	if a := c.Decide(port(60, "swp1")); !a.Refused || a.Reason != "it fits the selector of p1, and so does the machine with the card 02:00:00:00:00:32, which was seen less than 15m0s ago: make the selector narrower" {
		t.Errorf("%+v", a)
	}
	now = now.Add(bindTime)
	decide("the same, when the first is gone", port(60, "swp1"), "p1 not-armed")
	decide("the first, elsewhere", boot.Machine{MAC: mac(50)}, " unknown-machine")

	// A machine that is moved takes the name of its new port.
	now = now.Add(bindTime)
	decide("moved to the other port", port(60, "swp2"), "p2 not-armed")
	decide("moved away", port(60, "swp9"), " unknown-machine")
}

func TestSelectorsThatNobodyCouldCompare(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	c := newCatalog(t, ports(&now))
	a := c.Decide(boot.Machine{MAC: mac(50), UUID: "4c4c4544-0000-2010-8020-80c04f202020"})
	if a.Action != boot.None || a.Code != "conflict" || a.Reason != "it fits the selectors of two machines of cluster.yaml, p3 and p4: make them narrower" {
		t.Errorf("got %+v", a)
	}
	// Two cards of one machine are no two machines, in either byte order of its UUID.
	for _, m := range []boot.Machine{
		{MAC: mac(50), UUID: "4c4c4544-0000-2010-8020-80c04f202021"}, {MAC: mac(51), UUID: "4c4c4544-0000-2010-8020-80c04f202021"}, {MAC: mac(51)},
	} {
		m.Here = true
		if a := c.Decide(m); a.Name != "p3" {
			t.Errorf("%v is %q: %s", m, a.Name, a.Reason)
		}
	}
	if a := c.Decide(boot.Machine{MAC: mac(52), UUID: "4c4c4544-0000-2010-8020-80c04f202022"}); a.Code != "conflict" || !strings.Contains(a.Reason, "make the selector narrower") {
		t.Errorf("a second machine: %+v", a)
	}
}
