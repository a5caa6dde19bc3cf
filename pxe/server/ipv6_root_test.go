//go:build root

package server_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
)

const (
	serverAddr6 = "fd98::1"
	// relayAddr6 is the relay's in the network behind it.
	relayAddr6 = "fd97::1"
)

// byIPv6 lets the rack boot machines by IPv6, too.
func byIPv6(l *listen.Config, _ *server.Config) {
	l.Address6, l.DHCP6 = netip.MustParseAddr(serverAddr6), true
}

// onlyIPv6 lets it boot them by nothing else.
func onlyIPv6(l *listen.Config, c *server.Config) {
	byIPv6(l, c)
	l.DHCP = false
}

// ipv6 gives the bridge its address. There is no other host that could have it, so
// nothing waits until that is proven.
func ipv6(t *testing.T) plan.DHCP6 {
	t.Helper()
	if err := run("ip", "-6", "address", "replace", serverAddr6+"/64", "dev", bridge, "nodad"); err != nil {
		t.Fatal(err)
	}
	return plan.DHCP6{Mode: plan.DHCP6Stateful, Address: netip.MustParseAddr(serverAddr6), Subnets: []plan.Subnet6{
		{Prefix: netip.MustParsePrefix("fd98::/64"), First: netip.MustParseAddr("fd98::1000"), Last: netip.MustParseAddr("fd98::1fff"), LeaseSeconds: 3600},
		{Prefix: netip.MustParsePrefix("fd97::/64"), First: netip.MustParseAddr("fd97::1000"), Last: netip.MustParseAddr("fd97::1fff"), LeaseSeconds: 3600},
	}}
}

// plug6 is plug with an IPv6 address, which may be empty: then the card has its
// link-local one, and that at once.
func (h *host) plug6(card, bridge, cidr string) {
	h.t.Helper()
	h.must(h.inside("sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")...)
	h.plug(card, bridge, "")
	if cidr != "" {
		h.must(h.inside("ip", "-6", "address", "add", cidr, "dev", card, "nodad")...)
	}
}

// router is a host that advertises itself, as a site's router does: machines shall
// ask DHCPv6 for addresses and for all else.
func router(t *testing.T, on string) *host {
	t.Helper()
	h := newHost(t, "router")
	h.plug6("eth0", on, "fd98::ff/64")
	h.must(h.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")...)
	dir := t.TempDir()
	config := filepath.Join(dir, "radvd.conf")
	if err := os.WriteFile(config, []byte(`interface eth0 {
	AdvSendAdvert on; AdvManagedFlag on; AdvOtherConfigFlag on;
	MinRtrAdvInterval 3; MaxRtrAdvInterval 4;
	prefix fd98::/64 { AdvOnLink on; AdvAutonomous off; };
};
`), 0o644); err != nil {
		t.Fatal(err)
	}
	h.start("radvd", "--nodaemon", "--debug=1", "--logmethod=stderr", "--config="+config, "--pidfile="+filepath.Join(dir, "pid")).wait("version")
	return h
}

// dhclient6 asks on a host until it has an address, which it then has in its file.
func dhclient6(t *testing.T, on, want string) {
	t.Helper()
	dir := t.TempDir()
	client := newHost(t, "client6")
	client.plug6("eth0", on, "")
	client.start(copied(t, "dhclient"), "-6", "-d", "-1", "-cf", "/dev/null", "-sf", "/bin/true",
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0").wait(`^PRC: Bound to lease`)
	if got := string(readFile(t, filepath.Join(dir, "leases"))); !strings.Contains(got, "iaaddr "+want) {
		t.Errorf("no address of %s in:\n%s", want, got)
	}
}

func TestClientsGetIPv6Addresses(t *testing.T) {
	startRack(t, nil, nil, onlyIPv6)
	t.Run("dhclient", func(t *testing.T) {
		dhclient6(t, bridge, "fd98::1")
	})
	t.Run("dhcpcd", func(t *testing.T) {
		client := newHost(t, "client")
		client.plug6("eth0", bridge, "")
		client.start("dhcpcd", "-6", "--nobackground", "--debug", "--test", "--script", "/bin/true", "--config", "/dev/null", "--ia_na", "--noipv6rs", "eth0").
			wait(`fd98::1[0-9a-f]{3}`)
	})
}

// A relay of ISC's forwards between the machines' network and ours.
func TestClientsBehindAnIPv6Relay(t *testing.T) {
	startRack(t, nil, nil, onlyIPv6)
	const far = "br6"
	relay := newHost(t, "relay6")
	for _, args := range [][]string{{"link", "add", far, "type", "bridge", "forward_delay", "0"}, {"link", "set", far, "up"}} {
		relay.must(append([]string{"ip"}, args...)...)
	}
	relay.plug6("wan", bridge, "fd98::fe/64")
	relay.plug6("lan", far, relayAddr6+"/64")
	relay.start("dhcrelay", "-6", "-d", "-I", "-l", "lan", "-u", serverAddr6+"%wan").wait("Sending on")
	dhclient6(t, far, "fd97::1")
}
