//go:build root

package server_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

// otherAddr is the address of the DHCP server that is not ours.
const otherAddr = "10.98.0.2"

// asProxy makes the rack one that gives out no address.
func asProxy(l *listen.Config, _ *server.Config) { l.BootServer = true }

func startDnsmasq(t *testing.T, h *host, more ...string) {
	t.Helper()
	h.start(append([]string{"dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--port=0", "--no-ping", "--dhcp-authoritative",
		"--dhcp-range=10.98.0.50,10.98.0.59,1h", "--dhcp-leasefile=" + filepath.Join(t.TempDir(), "leases")}, more...)...).wait("DHCP, IP range")
}

// proxied boots a machine with an address of the other server and our boot files.
func (r *rack) proxied(t *testing.T, fw vm.Firmware, n int, how string) {
	t.Helper()
	r.startsKernel(t, fw, n, nil, how, "from the server "+otherAddr)
}

func TestProxyBesideDnsmasq(t *testing.T) {
	r := startRack(t, nil, nil, asProxy)
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	startDnsmasq(t, other)
	t.Run("dhclient and udhcpc are left alone", func(t *testing.T) {
		client := newHost(t, "client")
		client.plug("eth0", bridge, "")
		client.start(dhclient(t)...).wait(`^bound to 10\.98\.0\.5`)
		client.start(udhcpc()...).wait(`lease of 10\.98\.0\.5\d obtained from 10\.98\.0\.2`)
	})
	t.Run("BIOS", func(t *testing.T) { r.proxied(t, vm.SeaBIOS, 37, "iPXE goes on with its script") })
	t.Run("UEFI", func(t *testing.T) { r.proxied(t, vm.OVMF, 38, "answered on port 4011, boot program snponly.efi") })
}

// dhclient is patient: by itself it asks for one minute.
func dhclient(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "conf")
	if err := os.WriteFile(config, []byte("timeout 900;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return []string{copied(t, "dhclient"), "-4", "-d", "-1", "-cf", config, "-sf", "/bin/true",
		"-lf", filepath.Join(dir, "leases"), "-pf", filepath.Join(dir, "pid"), "eth0"}
}

// udhcpc is busybox's, as patient.
func udhcpc() []string {
	return []string{"busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "900", "-T", "1", "-s", "/bin/true"}
}

// farBridge is the network behind the relay.
const farBridge = "br1"

// relayed puts a relay of ISC's between our network and the machines' of farBridge.
func relayed(t *testing.T) *host {
	t.Helper()
	relay := newHost(t, "relay")
	for _, args := range [][]string{{"link", "add", farBridge, "type", "bridge", "forward_delay", "0"}, {"link", "set", farBridge, "up"}} {
		relay.must(append([]string{"ip"}, args...)...)
	}
	t.Cleanup(func() { vm.Unplug(farBridge) })
	relay.plug("wan", bridge, "10.98.0.254/24")
	relay.plug("lan", farBridge, relayAddr+"/24")
	relay.must(relay.inside("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")...)
	relay.must("ip", "route", "replace", "10.97.0.0/24", "via", "10.98.0.254")
	relay.start("dhcrelay", "-4", "-d", "-a", "-id", "lan", "-iu", "wan", serverAddr).wait("Socket/fallback")
	return relay
}

// bootsBehind boots a machine in the network behind the relay.
func (r *rack) bootsBehind(t *testing.T, relay *host, fw vm.Firmware, n int, byHTTP bool, want ...string) {
	t.Helper()
	r.startsKernel(t, fw, n, func(c *vm.Config) {
		c.HTTPBoot = byHTTP
		relay.must("ip", "link", "set", c.Tap, "master", farBridge)
	}, append(want, "gave 10.97.0.1", "script: discover")...)
}

func TestMachinesBehindARelay(t *testing.T) {
	r := startRack(t, nil, nil)
	relay := relayed(t)
	client := newHost(t, "client")
	client.plug("eth0", farBridge, "")
	client.start(dhclient(t)...).wait(`^bound to 10\.97\.0\.1[01]\d`)
	r.bootsBehind(t, relay, vm.SeaBIOS, 41, false)
}

// A second card of the server is in a network of its own.
func TestSecondInterface(t *testing.T) {
	const second = "br2"
	if err := vm.Bridge(second, relayAddr+"/24"); err != nil {
		t.Fatal(err)
	}
	startRack(t, nil, nil, func(l *listen.Config, _ *server.Config) {
		l.Links = []listen.Link{{Interface: second, Prefix: netip.MustParsePrefix("10.97.0.0/24")}}
	})
	for _, c := range []struct{ on, want, udhcpc string }{
		{bridge, `^DHCPACK of 10\.98\.0\.1[01]\d from 10\.98\.0\.1$`, `lease of 10\.98\.0\.1[01]\d obtained from 10\.98\.0\.1,`},
		{second, `^DHCPACK of 10\.97\.0\.1[01]\d from 10\.97\.0\.1$`, `lease of 10\.97\.0\.1[01]\d obtained from 10\.97\.0\.1,`},
	} {
		client := newHost(t, "on"+c.on)
		client.plug("eth0", c.on, "")
		client.start(dhclient(t)...).wait(c.want)
		client.start(udhcpc()...).wait(c.udhcpc)
	}
}
