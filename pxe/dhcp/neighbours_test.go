package dhcp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// theirs is a machine of another cluster, whose server is at 10.0.0.3.
var theirs = MAC{0x52, 0x54, 0, 0, 0, 0xbb}

// besideNeighbour is a lab beside the server of another cluster.
func besideNeighbour(t *testing.T, onlyListed bool) *lab {
	l := newLab(t)
	l.src.network.Neighbours = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
	l.src.network.OnlyListed = onlyListed
	l.src.theirs = theirs
	return l
}

func TestTheMachinesOfANeighbourAreLeftAlone(t *testing.T) {
	t.Parallel()
	for _, onlyListed := range []bool{false, true} {
		for name, m := range map[string]*dhcpv4.DHCPv4{
			"it discovers":                       discover(theirs),
			"its firmware discovers":             discover(theirs, pxe(0)),
			"it takes the neighbour's offer":     request(theirs, wants("10.0.0.150"), toServer("10.0.0.3")),
			"it comes back with its address":     request(theirs, wants("10.0.0.150")),
			"it comes back with one of our pool": request(theirs, wants("10.0.0.100")),
			"it asks anybody to go on":           request(theirs, from("10.0.0.150")),
			"it comes from another network":      request(theirs, wants("192.0.2.9")),
		} {
			if d := besideNeighbour(t, onlyListed).send(m); d.Reply != nil || d.Code != boot.CodeNeighbour || d.Refused || d.Change != Keep {
				t.Errorf("%s (only listed: %v): %+v", name, onlyListed, d)
			}
		}
	}
}

func TestBesideANeighbourWhoIsNotListed(t *testing.T) {
	t.Parallel()
	l := besideNeighbour(t, false)
	if d := l.send(request(laptop, wants("10.0.0.150"))); d.Reply != nil || d.Code != boot.CodeNeighbour {
		t.Errorf("a stranger with an address of which nothing is known here: %+v", d)
	}
	if got := l.offered(discover(laptop)); got != "10.0.0.100" {
		t.Errorf("whoever discovers offers a stranger %s", got)
	}
	if d := l.send(request(laptop, wants("10.0.0.100"), toServer("10.0.0.3"))); d.Code != boot.CodeNeighbour || d.Change != End || d.Refused {
		t.Errorf("it takes the neighbour's offer: %+v", d)
	}

	l = besideNeighbour(t, true)
	if d := l.send(discover(laptop)); d.Reply != nil || d.Code != boot.CodeNeighbour {
		t.Errorf("whoever ignores strangers answers one: %+v", d)
	}
	l.src.network.Neighbours = nil
	if got := l.offered(discover(laptop)); got != "10.0.0.100" {
		t.Errorf("without a neighbour: %s", got)
	}
}

func TestOurOwnMachinesAreAnsweredBesideANeighbour(t *testing.T) {
	t.Parallel()
	l := besideNeighbour(t, true)
	if got := l.offered(discover(node1)); got != "10.0.0.11" {
		t.Errorf("offered %s", got)
	}
	if d := l.send(request(node1, wants("10.0.0.150"))); d.Code != "nak" {
		t.Errorf("one that comes from the neighbour's cluster with its address there: %+v", d)
	}
	if d := l.send(request(node1, wants("10.0.0.150"), toServer("10.0.0.3"))); d.Code != "listed-twice" || !d.Refused || d.Reply != nil {
		t.Errorf("one that the neighbour answers, too: %+v", d)
	}
	// node3 is known by its UUID, which a system does not send: its lease says whose it is.
	node3 := MAC{0x52, 0x54, 0, 0, 0, 3}
	if d := l.send(request(node3, wants("10.0.0.13"), toServer("10.0.0.1"), pxe(0), uuid(0x33))); d.Code != "ack" {
		t.Fatalf("its firmware: %+v", d)
	}
	if d := l.send(request(node3, wants("10.0.0.13"))); d.Code != "ack" {
		t.Errorf("its system: %+v", d)
	}
}

// A neighbour is named in cluster.yaml; who is not is told of still.
func TestANeighbourIsNoStrangersServer(t *testing.T) {
	t.Parallel()
	for _, proxy := range []bool{false, true} {
		meter := &tally{}
		src := source()
		src.network.Neighbours = []netip.Addr{netip.MustParseAddr("10.0.0.3")}
		cfg := Config{Address: us, Files: files, Source: src, Store: &memStore{}, Meter: meter, Now: func() time.Time { return noon }}
		if proxy {
			cfg.Source = asProxy{cfg.Source}
		}
		s, err := NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, server := range []string{"10.0.0.3", "10.0.0.9", "10.0.0.3"} {
			for _, mac := range []MAC{node1, laptop} {
				s.handle(request(mac, wants("10.0.0.150"), toServer(server)).ToBytes(), Socket{}, netip.AddrPort{})
			}
		}
		if got := meter.other(); len(got) != 1 || got[0].Server != netip.MustParseAddr("10.0.0.9") {
			t.Errorf("proxy %v: told of %+v", proxy, got)
		}
	}
}
