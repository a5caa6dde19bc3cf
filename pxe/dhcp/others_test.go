package dhcp

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// asProxy is the same machines where another server gives out the addresses.
type asProxy struct{ Source }

func (a asProxy) Network() *boot.Network {
	n := *a.Source.Network()
	n.Proxy = true
	return &n
}

func TestOtherServersAreTold(t *testing.T) {
	t.Parallel()
	chooses := func(mac MAC, server string) *dhcpv4.DHCPv4 {
		return request(mac, wants("10.0.0.150"), toServer(server))
	}
	for _, c := range []struct {
		name    string
		proxy   bool
		packets []*dhcpv4.DHCPv4
		after   time.Duration
		want    string
	}{
		{"nobody chose another", false, []*dhcpv4.DHCPv4{discover(laptop), request(node1, wants("10.0.0.11"), toServer("10.0.0.1"))}, 0, ""},
		{"one is a stranger", false, []*dhcpv4.DHCPv4{chooses(laptop, "10.0.0.9"), chooses(node1, "10.0.0.9")}, time.Minute,
			"another DHCP server gives out addresses on the boot network: 10.0.0.9 (last taken by " + node1.String() + " at 2026-11-21 12:00:00 UTC); machines may get a wrong address and boot program from it: switch it off, or set boot.dhcp: proxy in cluster.yaml"},
		{"it was switched off", false, []*dhcpv4.DHCPv4{chooses(laptop, "10.0.0.9")}, time.Hour, ""},
		{"a proxy stands beside one", true, []*dhcpv4.DHCPv4{chooses(laptop, "10.0.0.9"), chooses(node1, "10.0.0.9"), discover(node1)}, 0, ""},
		{"a proxy stands beside two", true, []*dhcpv4.DHCPv4{chooses(laptop, "10.0.0.9"), chooses(laptop, "10.0.0.8")}, 0,
			"2 other DHCP servers give out addresses on the boot network: 10.0.0.8, 10.0.0.9 (last taken by " + laptop.String() + " at 2026-11-21 12:00:00 UTC); unless they share their leases, one of them is a stranger's"},
	} {
		now, meter := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), &tally{}
		cfg := Config{Address: us, Files: files, Source: source(), Store: &memStore{}, Meter: meter, Now: func() time.Time { return now }}
		if c.proxy {
			cfg.Source = asProxy{cfg.Source}
		}
		s, err := NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.packets {
			s.handle(p.ToBytes(), Socket{}, netip.AddrPort{})
		}
		now = now.Add(c.after)
		if d := cmp.Diff(c.want, Notice(c.proxy, meter.other())); d != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, d)
		}
	}
}

// Anybody can name servers: neither memory nor log grow with that.
func TestNamesOfServersAreBounded(t *testing.T) {
	t.Parallel()
	o, told := others{}, 0
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for range 3 {
		for i := range 1000 {
			if o.note(at(i), laptop, now) {
				told++
			}
		}
	}
	if len(o) != maxOthers || told != maxOthers {
		t.Errorf("%d are remembered and %d were told, want %d", len(o), told, maxOthers)
	}
	now = now.Add(otherTime)
	if !o.note(at(5000), laptop, now) || len(o.recent(now)) != 1 {
		t.Errorf("an hour later: %v", o)
	}
}
