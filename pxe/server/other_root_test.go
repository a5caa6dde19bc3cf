//go:build root

package server_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/funnel"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/metrics"
	"github.com/imagectl/imagectl/pxe/server"
)

// Two servers give out addresses on one wire. A client hears both and takes the
// stranger's: that is seen.
func TestASecondAuthorityOnTheWireIsSeen(t *testing.T) {
	counted, err := metrics.New(prometheus.NewRegistry(), funnel.New(nil))
	if err != nil {
		t.Fatal(err)
	}
	startRack(t, nil, nil, func(_ *listen.Config, c *server.Config) { c.Meters.DHCP = counted.DHCP() })
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	startDnsmasq(t, other)
	const card = "laptop"
	for _, args := range [][]string{
		{"link", "add", card, "type", "veth", "peer", "name", "port-" + card}, {"link", "set", "port-" + card, "master", bridge, "up"}, {"link", "set", card, "up"},
	} {
		if err := run("ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = run("ip", "link", "delete", card) })
	client, err := nclient4.New(card, nclient4.WithTimeout(5*time.Second), nclient4.WithRetry(60))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	offers := map[string]*dhcpv4.DHCPv4{}
	for _, from := range []string{serverAddr, otherAddr} {
		discover, err := dhcpv4.NewDiscovery(client.InterfaceAddr())
		if err != nil {
			t.Fatal(err)
		}
		if offers[from], err = client.SendAndRead(ctx, nclient4.DefaultServers, discover, nclient4.IsAll(
			nclient4.IsMessageType(dhcpv4.MessageTypeOffer), nclient4.IsCorrectServer(net.ParseIP(from)))); err != nil {
			t.Fatalf("an offer of %s: %v", from, err)
		}
	}
	if seen := counted.DHCP().OtherServers(); len(seen) != 0 {
		t.Errorf("before anybody took its offer: %v", seen)
	}
	if _, err := client.RequestFromOffer(ctx, offers[otherAddr]); err != nil {
		t.Fatal(err)
	}
	// The stranger has answered; the request is on its way to us, too.
	for end := time.Now().Add(time.Minute); len(counted.DHCP().OtherServers()) == 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	seen := counted.DHCP().OtherServers()
	if !slices.ContainsFunc(seen, func(o dhcp.Other) bool {
		return o.Server.String() == otherAddr && o.MAC.String() == client.InterfaceAddr().String()
	}) {
		t.Errorf("it was not seen: %v", seen)
	}
	if got, want := dhcp.Notice(false, seen), "another DHCP server gives out addresses on the boot network: "+otherAddr+" (last taken by "; !strings.HasPrefix(got, want) {
		t.Errorf("got %q", got)
	}
}
