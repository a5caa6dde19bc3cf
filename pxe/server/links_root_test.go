//go:build root

package server_test

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
)

// second is a wire to another host whose end here is a further card of the server; plug
// makes it, and whoever calls it again has deleted it.
func second(t *testing.T) (wire *host, card string, plug func()) {
	t.Helper()
	wire, card = newHost(t, "second"), "rack2"
	plug = func() {
		wire.must("ip", "link", "add", card, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(wire.pid))
		wire.must("ip", "address", "add", relayAddr+"/24", "dev", card)
		wire.must("ip", "link", "set", card, "up")
		wire.must(wire.inside("ip", "link", "set", "eth0", "up")...)
	}
	plug()
	startRack(t, nil, nil, func(l *listen.Config, _ *server.Config) {
		l.Links = []listen.Link{{Interface: card, Prefix: netip.MustParsePrefix("10.97.0.0/24")}}
	})
	return wire, card, plug
}

// A card of the server is deleted and made anew while it runs, as a VLAN or bridge whose
// configuration is changed. Clients behind it get addresses after that as before.
func TestAnInterfaceIsMadeAnew(t *testing.T) {
	wire, card, plug := second(t)
	for range 3 {
		wire.start("busybox", "udhcpc", "-i", "eth0", "-f", "-n", "-q", "-t", "60", "-T", "1", "-s", "/bin/true").
			wait(`lease of 10\.97\.0\.1[01]\d obtained from 10\.97\.0\.1,`)
		wire.must("ip", "link", "del", card)
		plug()
	}
	wire.must("ip", "link", "del", card)
}
