package dhcp6

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/pxe/boot"
)

// tally is a meter that remembers what tells of others.
type tally struct {
	unmetered
	others func() []Other
}

func (c *tally) Others6(others func() []Other) { c.others = others }

// beside is a network in which another server gives out the addresses.
type beside struct{ Source }

func (b beside) Network6() *boot.Network6 {
	n := *b.Source.Network6()
	n.Stateless = true
	return &n
}

func TestOtherServersAreTold(t *testing.T) {
	t.Parallel()
	router := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	second := &dhcpv6.DUIDEN{EnterpriseNumber: 9, EnterpriseIdentifier: []byte{1, 2}}
	huge := &dhcpv6.DUIDEN{EnterpriseNumber: 9, EnterpriseIdentifier: make([]byte, maxDUID)}
	chooses := func(server dhcpv6.DUID) *dhcpv6.Message {
		return message(dhcpv6.MessageTypeRequest, client(), dhcpv6.OptServerID(server), ia(1))
	}
	const who = "(last taken by 52:54:00:98:00:01 at 2026-11-21 12:00:00 UTC)"
	for _, c := range []struct {
		name      string
		stateless bool
		packets   []*dhcpv6.Message
		after     time.Duration
		want      string
	}{
		{"nobody chose another", false, []*dhcpv6.Message{message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1))}, 0, ""},
		{"one is a stranger", false, []*dhcpv6.Message{chooses(router), chooses(router)}, 59 * time.Minute,
			"another DHCPv6 server gives out addresses on the boot network: DUID 00:03:00:01:02:00:00:00:00:09 of the card 02:00:00:00:00:09 " + who + "; machines may get a wrong address and boot program from it: switch it off, or set boot.dhcp6.mode: stateless in cluster.yaml"},
		{"it was switched off", false, []*dhcpv6.Message{chooses(router)}, time.Hour, ""},
		{"a name that none can have", false, []*dhcpv6.Message{chooses(huge)}, 0, ""},
		{"a stateless server stands beside one", true, []*dhcpv6.Message{chooses(router)}, 0, ""},
		{"a stateless server stands beside two", true, []*dhcpv6.Message{chooses(router), chooses(second)}, 0,
			"2 other DHCPv6 servers give out addresses on the boot network: DUID 00:02:00:00:00:09:01:02, DUID 00:03:00:01:02:00:00:00:00:09 of the card 02:00:00:00:00:09 " + who + "; unless they share their leases, one of them is a stranger's"},
	} {
		now, meter := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), &tally{}
		cfg := Config{Address: netip.MustParseAddr("fd00::1"), DUID: ours, Source: source{}, Meter: meter, Now: func() time.Time { return now }}
		if c.stateless {
			cfg.Source = beside{source{}}
		}
		s, err := NewServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.packets {
			s.handle(p.ToBytes(), &net.UDPAddr{IP: net.ParseIP("fe80::5054:ff:fe98:1"), Port: 546})
		}
		now = now.Add(c.after)
		if d := cmp.Diff(c.want, Notice(c.stateless, meter.others())); d != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, d)
		}
	}
}

// Anybody can name servers: neither the memory nor the log is theirs.
func TestOtherServersAreBounded(t *testing.T) {
	t.Parallel()
	o, now, told := others{}, time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC), 0
	for i := range 100 {
		if o.note(fmt.Sprint(i), "x", now) {
			told++
		}
	}
	if len(o) != maxOthers || told != maxOthers {
		t.Errorf("%d are remembered and %d told of", len(o), told)
	}
	if o.note("0", "x", now.Add(otherTime-1)) || !o.note("0", "x", now.Add(otherTime)) || !o.note("new", "x", now.Add(2*otherTime)) {
		t.Error("an hour makes no difference")
	}
	if got := (Other{Server: "no DUID"}).name(); !strings.HasSuffix(got, "no DUID") {
		t.Errorf("got %s", got)
	}
}
