package dhcp

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// step is a packet after a time, and what it gets.
type step struct {
	name  string
	after time.Duration
	m     *dhcpv4.DHCPv4
	want  string
}

func (l *lab) steps(steps []step) {
	l.t.Helper()
	for _, s := range steps {
		l.now = l.now.Add(s.after)
		if got := l.offered(s.m); got != s.want {
			l.t.Fatalf("%s: got %s, want %s", s.name, got, s.want)
		}
	}
}

var other = MAC{2, 0, 0, 0, 0, 9}

// eth0 and eth0.20 of one machine have one MAC address; and anybody behind a relay can send
// a packet in the name of a card. What the card has in one network is not touched by what it
// asks for in another.
func TestACardKeepsItsAddressWhenItAsksInAnotherNetwork(t *testing.T) {
	t.Parallel()
	relay := relayed("10.0.7.1")
	l := newLab(t)
	l.steps([]step{
		{"in one network", 0, request(laptop, wants("10.0.0.100")), "10.0.0.100"},
		{"it is offered an address in the other", 0, discover(laptop, relay), "10.0.7.100"},
		{"another machine in the first", 0, discover(other), "10.0.0.102"},
		{"that takes it", 0, request(other, wants("10.0.0.102")), "10.0.0.102"},
		{"nothing is left", 0, discover(MAC{2, 0, 0, 0, 0, 8}), "silence: pool-exhausted"},
		{"it takes the address in the other", 0, request(laptop, relay, wants("10.0.7.100")), "10.0.7.100"},
		{"and still nothing is left", 0, discover(MAC{2, 0, 0, 0, 0, 8}), "silence: pool-exhausted"},
		{"it renews the first", time.Minute, request(laptop, from("10.0.0.100")), "10.0.0.100"},
		{"it renews the second", 0, request(laptop, from("10.0.7.100")), "10.0.7.100"},
		{"it starts again in the first", 0, discover(laptop), "10.0.0.100"},
		{"it starts again in the second", 0, discover(laptop, relay), "10.0.7.100"},
		{"it gives back the second", 0, packet(dhcpv4.MessageTypeRelease, laptop, from("10.0.7.100")), "silence: release"},
		{"and renews the first", 0, request(laptop, from("10.0.0.100")), "10.0.0.100"},
	})
	l.table = NewTable(slices.Collect(maps.Values(l.table.byAddr))) // as after a restart
	l.steps([]step{
		{"it renews after a restart", 0, request(laptop, from("10.0.0.100")), "10.0.0.100"},
		{"and gets in the other what it had", 0, discover(laptop, relay), "10.0.7.100"},
		{"and nobody gets its first", 0, discover(MAC{2, 0, 0, 0, 0, 8}), "silence: pool-exhausted"},
	})
}

// A card has one dynamic address in a network, and one more in each that it is in.
func TestOneCardDoesNotUseUpARange(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.steps([]step{
		{"its first", 0, request(laptop, wants("10.0.0.100")), "10.0.0.100"},
		{"a second one, by its own choice", 0, request(laptop, wants("10.0.0.102")), "nak"},
		{"a second one, by asking for it", 0, discover(laptop, wants("10.0.0.102")), "10.0.0.100"},
		{"another machine", 0, discover(other), "10.0.0.102"},
		{"when the first has ended, another", 2 * time.Hour, request(laptop, wants("10.0.0.102")), "10.0.0.102"},
		{"the first is free", 0, request(other, wants("10.0.0.100")), "10.0.0.100"},
	})
	// Taking and giving back leaves one trace in memory, and not one of each address.
	r := newLab(t)
	for i := range 50 {
		a := fmt.Sprint("10.0.7.", 100+i)
		r.send(request(laptop, relayed("10.0.7.1"), wants(a)))
		if d := r.send(packet(dhcpv4.MessageTypeRelease, laptop, from(a))); d.Code != "release" {
			t.Fatalf("%s: %s", a, d.Reason)
		}
	}
	if got := len(r.table.ByMAC(laptop)); got != 1 || r.table.Len() != 1 {
		t.Errorf("one card has %d leases of %d", got, r.table.Len())
	}
}

// A card that gets its machine's reserved address may go on with the one that it had: a
// packet with a UUID does not show that its system is gone.
func TestADynamicAddressRestsWhenItsCardGetsAReservedOne(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.steps([]step{
		{"a system", 0, request(laptop, wants("10.0.0.100")), "10.0.0.100"},
		{"shows its UUID", 0, discover(laptop, pxe(7), uuid(0x33)), "10.0.0.13"},
		{"another machine", time.Minute, request(other, wants("10.0.0.102")), "10.0.0.102"},
		{"takes the reserved one", 0, request(laptop, pxe(7), uuid(0x33), wants("10.0.0.13")), "10.0.0.13"},
		{"and one more machine", 0, discover(MAC{2, 0, 0, 0, 0, 8}), "silence: pool-exhausted"},
		{"when the first lease has ended", 59 * time.Minute, discover(MAC{2, 0, 0, 0, 0, 8}), "10.0.0.100"},
	})
}

// An offer is no lease: the machine whose reserved address it is renews it all the same.
func TestAnOfferTakesTheAddressFromNobody(t *testing.T) {
	t.Parallel()
	second := MAC{0x52, 0x54, 0, 0, 2, 2}
	l := newLab(t)
	l.steps([]step{
		{"the first card has it", 0, request(node2, wants("10.0.0.12")), "10.0.0.12"},
		{"the second is offered it", 0, discover(second, pxe(0)), "10.0.0.12"},
		{"the first renews", 0, request(node2, from("10.0.0.12")), "10.0.0.12"},
	})
}

// What a card has as a machine's stays with it, whatever another packet made of it meanwhile.
func TestARunningSystemRenewsByItsLease(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.table.put(Lease{MAC: laptop, Addr: netip.MustParseAddr("10.0.0.12"), Machine: "node2", Until: noon.Add(30 * time.Minute)})
	l.steps([]step{
		{"in its name another UUID", 0, request(laptop, pxe(7), uuid(0x33), wants("10.0.0.13")), "10.0.0.13"},
		{"the system renews", 0, request(laptop, from("10.0.0.12")), "10.0.0.12"},
	})
	l.send(discover(laptop))
	if got := l.shown; !got.Here || !slices.Equal(slices.Sorted(slices.Values(got.Holds)), []string{"node2", "node3"}) {
		t.Errorf("shown is %+v, want both machines whose addresses it has", got)
	}
}

func TestADeclineCountsWhereTheOfferCameFrom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ server, want string }{
		{"10.0.0.2", "not-for-us"}, {"10.0.0.3", "peer-server"}, {"10.0.0.1", "decline"}, {"", "decline"},
	} {
		l := newLab(t)
		l.peers = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
		l.send(discover(laptop))
		ask := []modifier{wants("10.0.0.100")}
		if c.server != "" {
			ask = append(ask, toServer(c.server))
		}
		d := l.send(packet(dhcpv4.MessageTypeDecline, laptop, ask...))
		rests, _ := l.table.ByAddr(netip.MustParseAddr("10.0.0.100"))
		if d.Code != c.want || (rests.State == Declined) != (c.want == "decline") {
			t.Errorf("declined to %q: %s (%s), and the address is %q", c.server, d.Code, d.Reason, rests.State)
		}
	}
}

// Files of servers that kept one lease a card say of addresses what they always said.
func TestAFileOfOneAddressACardIsRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "leases")
	const content = `{"mac":"52:54:00:00:00:ee","addr":"10.0.0.100","until":"2026-01-02T13:00:00Z"}
{"mac":"52:54:00:00:00:ee","addr":"10.0.7.100","until":"2026-01-02T13:00:00Z","from":0}
{"mac":"02:00:00:00:00:09","addr":"10.0.0.102","until":"2026-01-02T13:00:00Z","from":0}
{"mac":"02:00:00:00:00:09","addr":"10.0.0.102","until":"2026-01-02T12:00:00Z","from":0}
`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	l.table = NewTable(reopen(t, path))
	l.steps([]step{
		{"what was given last", 0, request(laptop, from("10.0.7.100")), "10.0.7.100"},
		{"what was given before it", 0, request(laptop, from("10.0.0.100")), "10.0.0.100"},
		{"what was given back", 0, discover(MAC{2, 0, 0, 0, 0, 8}), "10.0.0.102"},
	})
}

// Whoever sends many packets to a proxy, with any card and from any address, does not make
// it forget where the machines of cluster.yaml are.
func TestAFloodAtAProxyDisplacesStrangersOnly(t *testing.T) {
	t.Parallel()
	now := noon
	s, err := NewServer(Config{Address: us, Files: files, Source: newProxyLab(t).src, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	at4011 := func(m MAC, a netip.Addr) {
		s.handle(request(m, pxe(7), from(a.String())).ToBytes(), Socket{BootServer: true}, udpAddr(a))
	}
	machine, stranger := netip.MustParseAddr("10.0.0.77"), netip.MustParseAddr("10.0.0.78")
	at4011(node1, machine)
	a := netip.MustParseAddr("10.1.0.0")
	for i := range 3 * maxSeen {
		at4011(MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, a)
		a = a.Next()
	}
	at4011(laptop, stranger)
	at4011(laptop, machine) // somebody says that the machine's address is its own
	for want, a := range map[MAC]netip.Addr{node1: machine, laptop: stranger} {
		if mac, ok := s.Card(a); !ok || mac.String() != want.String() {
			t.Errorf("%s is %s's, want %s", a, mac, want)
		}
	}
	if got := s.table.Len(); got > maxSeen {
		t.Errorf("a flood makes it remember %d addresses", got)
	}
	for range 100 {
		at4011(node1, a)
		a = a.Next()
	}
	if got := len(s.table.ByMAC(node1)); got > seenEach {
		t.Errorf("one card has %d addresses", got)
	}
	now = now.Add(seenTime)
	at4011(laptop, machine)
	if mac, ok := s.Card(machine); !ok || mac.String() != laptop.String() {
		t.Errorf("after its time it is %s's", mac)
	}
}
