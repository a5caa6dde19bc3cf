package replay

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

// frame6 is a UDP packet over IPv6 on the wire.
func frame6(t *testing.T, from, to string, payload []byte) []byte {
	t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: card, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 1, 0, 2}, EthernetType: layers.EthernetTypeIPv6},
		ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func message6(kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range append([]dhcpv6.Option{dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: [16]byte{1}})}, options...) {
		m.AddOption(o)
	}
	return m.ToBytes()
}

func TestCaptureByIPv6IsAnsweredAgain(t *testing.T) {
	class := &dhcpv6.OptVendorClass{EnterpriseNumber: 343, Data: [][]byte{[]byte("PXEClient:Arch:00007")}}
	ia := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, 1}}
	us := dhcpv6.OptServerID(dhcp6.ServerDUID([]byte("any")))
	const client, all = "[fe80::5054:ff:fe00:1]:546", "[ff02::1:2]:547"
	var pcap bytes.Buffer
	w := pcapgo.NewWriter(&pcap)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for _, f := range [][]byte{
		frame6(t, client, all, message6(dhcpv6.MessageTypeSolicit, class, dhcpv6.OptClientArchType(7), ia)),
		frame6(t, "[fe80::1]:547", client, message6(dhcpv6.MessageTypeAdvertise, us, dhcpv6.OptBootFileURL("tftp://[fd00::9]/other.efi"))),
		frame6(t, client, all, message6(dhcpv6.MessageTypeRequest, us, class, dhcpv6.OptClientArchType(7), ia)),
		frame6(t, "[fd00::1000]:2070", "[fd00::1]:69", []byte("\x00\x01snponly.efi\x00octet\x00blksize\x001468\x00")),
		frame6(t, client, all, []byte("rubbish")),
	} {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: start, CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config(t)
	one := netip.MustParseAddr("fd00::1000")
	cfg.Env6 = dhcp6.Env{Server: netip.MustParseAddr("fd00::1"), Answer: cfg.Env.Answer,
		Network: &boot.Network6{Subnets: []boot.Subnet6{{Prefix: netip.MustParsePrefix("fd00::/64"), First: one, Last: one, Lease: time.Hour}}},
		Files:   dhcp6.BootFiles{UEFI: "tftp://[fd00::1]/snponly.efi", Script: dhcp.ScriptURL(netip.MustParseAddrPort("[fd00::1]:8080"))}}
	steps, err := Read(&pcap, cfg)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range steps {
		got = append(got, strings.TrimSpace(strings.Join([]string{s.Machine, s.Asked, s.Code, strings.Join(s.Answer, ", ")}, "|")))
	}
	want := []string{
		"node1|SOLICIT from firmware by IPv6, PXEClient:Arch:00007|advertise|ADVERTISE, address fd00::1000, option 59 tftp://[fd00::1]/snponly.efi",
		"|ADVERTISE from fe80::1|seen|ADVERTISE, option 59 tftp://[fd00::9]/other.efi",
		"node1|REQUEST from firmware by IPv6, PXEClient:Arch:00007|reply|REPLY, address fd00::1000, option 59 tftp://[fd00::1]/snponly.efi",
		`node1|TFTP request for "snponly.efi", blksize 1468|sent|snponly.efi in blocks of 1388 bytes`,
		"|a broken DHCPv6 packet|malformed|",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got (-), want (+):\n%s", diff)
	}
}
