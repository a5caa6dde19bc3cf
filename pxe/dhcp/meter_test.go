package dhcp

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
)

// tally is a meter that remembers. Tests call it from one goroutine.
type tally struct {
	seen  []string
	usage func() []Usage
	other func() []Other
}

func (c *tally) Received(kind, code string, _ int) { c.seen = append(c.seen, kind+" "+code) }
func (c *tally) Sent(int, int)                     {}
func (c *tally) Waiting(int)                       {}
func (c *tally) Pools(f func() []Usage)            { c.usage = f }
func (c *tally) Line(func() admit.Usage)           {}
func (c *tally) Others(f func() []Other)           { c.other = f }

func TestEachPacketIsCountedWithItsCode(t *testing.T) {
	t.Parallel()
	meter, rec := &tally{}, &recorder{}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}, Recorder: rec, Meter: meter, Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{
		discover(node1, pxe(7)).ToBytes(),
		request(node1, pxe(7), wants("10.0.0.11"), toServer("10.0.0.1")).ToBytes(),
		discover(laptop, ipxe).ToBytes(),
		discover(laptop, pxe(11)).ToBytes(),
		discover(laptop, opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), opt(93, 0, 16)).ToBytes(),
		request(laptop, wants("192.0.2.1"), toServer("10.0.0.1")).ToBytes(),
		packet(77, laptop).ToBytes(),
		[]byte("no packet"),
	} {
		s.handle(p, Socket{}, netip.AddrPort{})
	}
	want := []string{"discover offer", "request ack", "discover offer", "discover arch-unsupported", "discover offer", "request nak", "other not-for-us", "other malformed"}
	if diff := cmp.Diff(want, meter.seen); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
	type seen struct {
		Name, Code string
		Firmware   bool
	}
	var got []seen
	for _, e := range rec.events {
		if e.Stage != boot.StageDHCP || (e.Refusal.Code != "") != (e.Refusal.Reason != "") {
			t.Errorf("event %+v", e)
		}
		got = append(got, seen{e.Name, e.Refusal.Code, e.Firmware})
	}
	if diff := cmp.Diff([]seen{{"node1", "", true}, {"node1", "", true}, {"", "", false}, {"", "arch-unsupported", true}, {"", "", true}, {"", "nak", true}}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	usage := meter.usage()
	if i := slices.IndexFunc(usage, func(u Usage) bool { return u.Subnet.Contains(us) }); i < 0 || usage[i].Leased != 1 || usage[i].Reserved != 1 || usage[i].Pool == 0 {
		t.Errorf("usage %+v, want one dynamic and one reserved lease in the network of %s", usage, us)
	}
}

func TestUsageCountsWhatCanBeGiven(t *testing.T) {
	t.Parallel()
	a := netip.MustParseAddr
	network := &boot.Network{
		Subnets: []boot.Subnet{
			{Prefix: netip.MustParsePrefix("10.0.0.0/24"), First: a("10.0.0.100"), Last: a("10.0.0.109")},
			{Prefix: netip.MustParsePrefix("10.0.1.0/24")},
		},
		Reserved: map[netip.Addr]string{a("10.0.0.11"): "node1", a("10.0.0.105"): "node2", a("10.0.1.5"): "node3"},
	}
	lease := func(n byte, addr string, until time.Duration, s State) Lease {
		return Lease{MAC: MAC{2, 0, 0, 0, 0, n}, Addr: a(addr), Until: noon.Add(until), State: s}
	}
	table := NewTable([]Lease{
		lease(1, "10.0.0.11", time.Hour, Bound), lease(2, "10.0.0.105", time.Hour, Bound), lease(3, "10.0.1.5", -time.Hour, Bound),
		lease(4, "10.0.0.100", time.Hour, Bound), lease(5, "10.0.0.101", time.Minute, Held), lease(6, "10.0.0.102", time.Minute, Declined),
		lease(7, "10.0.0.103", -time.Second, Bound), lease(8, "10.9.9.9", time.Hour, Bound),
	})
	want := []Usage{{Subnet: network.Subnets[0].Prefix, Pool: 9, Leased: 3, Reserved: 2}, {Subnet: network.Subnets[1].Prefix}}
	if diff := cmp.Diff(want, table.usage(network, noon), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatIsDroppedIsRecorded(t *testing.T) {
	t.Parallel()
	rec := &recorder{}
	s, err := NewServer(Config{Address: us, Files: files, Source: source(), Store: &memStore{}, Recorder: rec})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := s.handle(request(node1, pxe(7), wants("10.0.0.11"), toServer("10.0.0.1")).ToBytes(), Socket{}, netip.AddrPort{})
	if !ok {
		t.Fatal("no answer")
	}
	s.refuse(p, "overloaded", "leases wait")
	last := rec.events[len(rec.events)-1]
	if last.Name != "node1" || last.Machine.MAC.String() != node1.String() || last.Refusal != (boot.Refusal{Code: "overloaded", Reason: "leases wait"}) {
		t.Errorf("got %+v", last)
	}
}
