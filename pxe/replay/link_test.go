package replay

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// hexLines is a capture as text.
func hexLines(packets ...[]byte) *bytes.Reader {
	var s strings.Builder
	for _, p := range packets {
		fmt.Fprintf(&s, "%x\n", p)
	}
	return bytes.NewReader([]byte(s.String()))
}

// offer is a server's, that answers from an address and has boot files at another.
func offer(t *testing.T, from, files net.IP) []byte {
	t.Helper()
	return message(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithServerIP(files), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(from)),
		func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply })
}

func TestACaptureSaysWhereItIsFrom(t *testing.T) {
	t.Parallel()
	us, second, third, stranger := net.IPv4(10, 0, 0, 1), net.IPv4(10, 0, 7, 1), net.IPv4(10, 0, 8, 1), net.IPv4(10, 0, 7, 9)
	links := []netip.Prefix{netip.MustParsePrefix("10.0.7.0/24"), netip.MustParsePrefix("10.0.8.0/24")}
	ask := message(t, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(stranger)))
	for _, c := range []struct {
		name    string
		packets [][]byte
		want    string
		fails   string
	}{
		{"none of our answers", [][]byte{ask}, "invalid IP", ""},
		{"the network of server.address", [][]byte{ask, offer(t, us, us)}, "invalid IP", ""},
		{"a second network", [][]byte{ask, offer(t, second, us), offer(t, second, us)}, "10.0.7.1", ""},
		{"another server beside ours", [][]byte{offer(t, stranger, stranger), offer(t, second, us)}, "10.0.7.1", ""},
		{"two at once", [][]byte{offer(t, second, us), offer(t, third, us)}, "invalid IP", "10.0.7.1 and 10.0.8.1"},
	} {
		got, err := Link(hexLines(c.packets...), netip.MustParseAddr("10.0.0.1"), links)
		if got.String() != c.want || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: got %s, %v", c.name, got, err)
		}
	}
	if _, err := Link(strings.NewReader("hello"), netip.Addr{}, nil); err == nil {
		t.Error("what is no capture is read")
	}
}

// A client that asks in the second network gets an address of that one, from the server's
// address there, and who chose that address has chosen us.
func TestAPacketOfTheSecondNetworkIsAnsweredThere(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	network := *cfg.Env.Network
	network.Subnets = append(slices.Clone(network.Subnets), boot.Subnet{Prefix: netip.MustParsePrefix("10.0.7.0/24"),
		First: netip.MustParseAddr("10.0.7.100"), Last: netip.MustParseAddr("10.0.7.110"), Lease: network.Subnets[0].Lease})
	cfg.Env.Network = &network
	stranger := dhcpv4.WithHwAddr(router)
	capture := hexLines(message(t, stranger, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)),
		message(t, stranger, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 7, 1))),
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 7, 100)))))
	for link, want := range map[string]string{"10.0.7.1": "offer ack", "": "offer other-server"} {
		if cfg.Env.Link = (netip.Addr{}); link != "" {
			cfg.Env.Link = netip.MustParseAddr(link)
		}
		if _, err := capture.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		steps, err := Read(capture, cfg)
		if err != nil || len(steps) != 2 {
			t.Fatal(steps, err)
		}
		if got := steps[0].Code + " " + steps[1].Code; got != want {
			t.Errorf("at %q: %s: %s; %s", link, got, steps[0].Reason, steps[1].Reason)
		}
		if got := slices.Contains(steps[0].Answer, "address 10.0.7.100"); got != (link != "") {
			t.Errorf("at %q it is offered %v", link, steps[0].Answer)
		}
	}
}
