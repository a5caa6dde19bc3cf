package dhcp

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// agentSays is what a relay adds: a port and another sub-option.
func agentSays(code byte, value string) modifier {
	a := netip.MustParseAddr(value).As4()
	return opt(82, append([]byte{1, 2, 'e', '1', code, 4}, a[:]...)...)
}

func TestRelay(t *testing.T) {
	only := func(relays ...string) func(*lab) {
		return func(l *lab) {
			for _, r := range relays {
				l.src.network.Relays = append(l.src.network.Relays, netip.MustParseAddr(r))
			}
		}
	}
	for _, c := range []struct {
		name  string
		setup func(*lab)
		m     *dhcpv4.DHCPv4
		want  string
	}{
		{"any relay that is in a subnet", only(), discover(laptop, relayed("10.0.7.1")), "10.0.7.100"},
		{"a relay from elsewhere", only(), discover(laptop, relayed("10.0.8.1")), "silence: relay-unknown"},
		{"a relay that is not listed", only("10.0.0.9"), discover(laptop, relayed("10.0.7.1")), "silence: relay-unknown"},
		{"a listed one", only("10.0.0.9", "10.0.7.1"), discover(laptop, relayed("10.0.7.1")), "10.0.7.100"},
		{"a listed one without a subnet", only("10.0.8.1"), discover(laptop, relayed("10.0.8.1")), "silence: no-subnet"},
		{"RFC 3527: the client is in another subnet than the relay", only("10.0.8.1"), discover(laptop, relayed("10.0.8.1"), agentSays(5, "10.0.7.0")), "10.0.7.100"},
		{"RFC 3527: from a client itself", only(), discover(laptop, agentSays(5, "10.0.7.0")), "10.0.0.100"},
		{"RFC 3527: half an address", only(), discover(laptop, relayed("10.0.7.1"), opt(82, 5, 2, 10, 0)), "10.0.7.100"},
		{"the relay's own address is not given out", only(), discover(laptop, relayed("10.0.7.100")), "10.0.7.101"},
		{"a server in no subnet, and no relay", func(l *lab) { l.server = netip.MustParseAddr("10.9.9.9") }, discover(laptop), "silence: no-subnet"},
		{"a server in no subnet, and a relay", func(l *lab) { l.server = netip.MustParseAddr("10.9.9.9") }, discover(laptop, relayed("10.0.7.1")), "10.0.7.100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			c.setup(l)
			if got := l.offered(c.m); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestRelayThatStandsInForTheServer(t *testing.T) {
	l := newLab(t)
	through := []modifier{relayed("10.0.7.1"), agentSays(11, "10.0.7.2")}
	offer := l.send(discover(laptop, through...)).Reply
	if got := offer.ServerIdentifier().String(); got != "10.0.7.2" {
		t.Errorf("RFC 5107: option 54 is %s", got)
	}
	if got := string(offer.Options.Get(dhcpv4.OptionRelayAgentInformation)); got != "\x01\x02e1\x0b\x04\x0a\x00\x07\x02" {
		t.Errorf("quirk 21: option 82 comes back as %q", got)
	}
	d := l.send(request(laptop, append(through, wants("10.0.7.100"), toServer("10.0.7.2"))...))
	if d.Code != "ack" || d.To.String() != "10.0.7.1:67" {
		t.Errorf("the request for the relay's server: %s to %s", d.Code, d.To)
	}
	if got := l.offered(request(laptop, wants("10.0.7.100"), toServer("10.0.7.2"))); got != "silence: other-server" {
		t.Errorf("without a relay that is another server: got %s", got)
	}
}

// A client behind a relay renews without it.
func TestRenewalPastTheRelay(t *testing.T) {
	l := newLab(t)
	if got := l.offered(discover(laptop, relayed("10.0.7.1"))); got != "10.0.7.100" {
		t.Fatal(got)
	}
	l.offered(request(laptop, relayed("10.0.7.1"), wants("10.0.7.100"), toServer("10.0.0.1")))
	d := l.send(request(laptop, from("10.0.7.100")))
	if d.Code != "ack" || d.To.String() != "10.0.7.100:68" || d.Lease.Addr.String() != "10.0.7.100" {
		t.Errorf("got %s to %s: %s", d.Code, d.To, d.Reason)
	}
	if got := l.offered(request(node2, from("10.0.7.101"))); got != "nak" {
		t.Errorf("a machine that brings an address which it never had: got %s", got)
	}
	if d := l.send(packet(dhcpv4.MessageTypeInform, laptop, from("10.0.7.100"))); d.Reply == nil || d.Reply.SubnetMask().String() != "ffffff00" || d.Reply.Router() != nil {
		t.Errorf("an inform from the other subnet: %s", d.Reason)
	}
}

// The address of the interface chooses the subnet, and is the server's there.
func TestSecondInterface(t *testing.T) {
	l := newLab(t)
	l.link = netip.MustParseAddr("10.0.7.100")
	offer := l.send(discover(laptop, pxe(7))).Reply
	if got := offer.YourIPAddr.String(); got != "10.0.7.101" {
		t.Errorf("got %s", got)
	}
	if offer.ServerIdentifier().String() != "10.0.7.100" || offer.ServerIPAddr.String() != "10.0.0.1" {
		t.Errorf("the server is %s, and boot files come from %s", offer.ServerIdentifier(), offer.ServerIPAddr)
	}
	if got := l.offered(request(laptop, wants("10.0.7.101"), toServer("10.0.7.100"))); got != "10.0.7.101" {
		t.Errorf("got %s", got)
	}
}

// What the relay says of the switch port is what a machine shows, and people see it.
func TestOption82IsShownToSelectors(t *testing.T) {
	l := newLab(t)
	info := opt(82, append([]byte{1, 4, 's', 'w', 'p', '7', 2, 3}, 0, 6, 0xff)...)
	d := l.send(discover(laptop, pxe(7), relayed("10.0.7.1"), info))
	if seen := l.shown; seen.CircuitID != "swp7" || seen.RemoteID != "0x0006ff" || seen.Network.String() != "10.0.7.1" {
		t.Errorf("shown is %+v", seen)
	}
	if want := ` (option 82: circuit "swp7", remote "0x0006ff")`; !strings.HasSuffix(d.Reason, want) {
		t.Errorf("the reason is %s, want it to end with%s", d.Reason, want)
	}
	l.send(discover(laptop, pxe(7), info)) // nobody but a relay may say so
	if seen := l.shown; seen.CircuitID != "" || seen.RemoteID != "" || seen.Network.String() != "10.0.0.1" {
		t.Errorf("without a relay shown is %+v", seen)
	}
}
