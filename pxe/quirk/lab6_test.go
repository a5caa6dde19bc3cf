package quirk_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	bootserver "github.com/imagectl/imagectl/pxe/server"
)

var (
	server6 = netip.MustParseAddrPort("[fd00::1]:8080")
	// linkLocal is the address of card 52:54:00:00:00:01 that all packets come from.
	linkLocal = netip.MustParseAddr("fe80::5054:ff:fe00:1")
	network6  = boot.Network6{Subnets: []boot.Subnet6{{Prefix: netip.MustParsePrefix("fd00::/64"),
		First: netip.MustParseAddr("fd00::1000"), Last: netip.MustParseAddr("fd00::1fff"), Lease: time.Hour}}}
)

// replay6 answers DHCPv6 in the transcript's network.
func (t transcript) replay6(decide func(boot.Machine) boot.Answer) *dhcp6.Replay {
	network := network6
	network.Stateless = t.proxy
	return dhcp6.NewReplay(dhcp6.Env{Server: server6.Addr(), Network: &network, Answer: decide,
		Files: bootserver.BootFiles6(server6, bootserver.UEFIURL(server6, t.tlsPort), programs, bootserver.Extras{})})
}

func playDHCP6(r *dhcp6.Replay, now time.Time, lines []string) ([][]string, error) {
	packet, err := encodeDHCP6(lines)
	if err != nil {
		return nil, err
	}
	_, d, err := r.Packet(now, linkLocal, packet)
	if err != nil {
		return nil, err
	}
	if d.Reply == nil {
		return [][]string{{"< silence code " + d.Code, "# " + d.Reason}}, nil
	}
	b := d.Reply.ToBytes()
	answer := append([]string{"< dhcp6 code " + d.Code}, decodeDHCP6(b)...)
	if again, err := encodeDHCP6(answer[1:]); err != nil || !bytes.Equal(again, b) {
		return nil, errors.Join(fmt.Errorf("the answer does not survive its own text: %x", b), err)
	}
	return [][]string{answer}, nil
}
