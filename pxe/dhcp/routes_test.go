package dhcp

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

func TestMTUAndRoutesAreForWhoAsks(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	home := &l.src.network.Subnets[0]
	home.MTU, home.Routes = 9000, []boot.Route{
		{To: netip.MustParsePrefix("10.64.0.0/10"), Via: netip.MustParseAddr("10.0.0.253")},
		{To: netip.MustParsePrefix("192.0.2.7/32"), Via: netip.MustParseAddr("10.0.0.252")},
	}
	asks := opt(55, 1, 3, 26, 121)
	for _, c := range []struct {
		name        string
		m           *dhcpv4.DHCPv4
		mtu, routes string
	}{
		{"who does not ask", discover(laptop, opt(55, 1, 3)), "", ""},
		{"who asks for nothing", discover(laptop), "", ""},
		{"who asks", discover(laptop, asks), "2328", "0a0a400a0000fd20c00002070a0000fc000a0000fe"},
		{"who takes it", request(laptop, asks, wants("10.0.0.100")), "2328", "0a0a400a0000fd20c00002070a0000fc000a0000fe"},
		{"a subnet without", discover(laptop, asks, relayed("10.0.7.1")), "", ""},
	} {
		r := l.send(c.m).Reply
		mtu, routes := r.Options.Get(dhcpv4.OptionInterfaceMTU), r.Options.Get(dhcpv4.OptionClasslessStaticRoute)
		if fmt.Sprintf("%x", mtu) != c.mtu || fmt.Sprintf("%x", routes) != c.routes {
			t.Errorf("%s: got MTU %x and routes %x, want %s and %s", c.name, mtu, routes, c.mtu, c.routes)
		}
	}
	home.Router = netip.Addr{}
	if got := fmt.Sprintf("%x", l.send(discover(laptop, asks)).Reply.Options.Get(dhcpv4.OptionClasslessStaticRoute)); got != "0a0a400a0000fd20c00002070a0000fc" {
		t.Errorf("without a router: %s", got)
	}
}
