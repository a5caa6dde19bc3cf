package replay

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/quirk"
)

var update = flag.Bool("update", false, "rewrite the goldens in testdata")

var (
	card   = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	router = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0xfe}
	start  = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

func config(t testing.TB) Config {
	t.Helper()
	quirks, err := quirk.Load()
	if err != nil {
		t.Fatal(err)
	}
	us := netip.MustParseAddr("10.0.0.1")
	return Config{
		Env: dhcp.Env{
			Server: us, Quirks: quirks,
			Network: &boot.Network{Subnets: []boot.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/24"),
				First: netip.MustParseAddr("10.0.0.100"), Last: netip.MustParseAddr("10.0.0.110"), Lease: time.Hour}}},
			Answer: func(m boot.Machine) boot.Answer {
				if m.MAC.String() != card.String() {
					return boot.Answer{Action: boot.Discover, Code: "unknown-machine"}
				}
				return boot.Answer{Action: boot.Local, Name: "node1", Address: netip.MustParseAddr("10.0.0.11"), Code: "not-armed", Quirks: []string{"small-blocks", "late-answer"}}
			},
			Files: dhcp.BootFiles{BIOS: "undionly.kpxe", UEFI: "snponly.efi", Script: dhcp.ScriptURL(netip.AddrPortFrom(us, 8080))},
		},
		TFTP: []string{"undionly.kpxe", "snponly.efi", "autoexec.ipxe"}, MTU: 1500,
	}
}

// frame is a UDP packet on the wire.
func frame(t *testing.T, mac net.HardwareAddr, from, to string, payload []byte) []byte {
	t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: mac, DstMAC: net.HardwareAddr{255, 255, 255, 255, 255, 255}, EthernetType: layers.EthernetTypeIPv4},
		ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func message(t *testing.T, mods ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(card), dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4})}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

func generic(code uint8, v string) dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), []byte(v))
}

// story is a boot beside another server, a request through a router, and what is
// not ours.
func story(t *testing.T) [][]byte {
	t.Helper()
	pxe := []dhcpv4.Modifier{generic(60, "PXEClient:Arch:00007:UNDI:003016"), generic(93, "\x00\x07")}
	other := func(kind dhcpv4.MessageType) []byte {
		return message(t, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(net.IPv4(10, 0, 0, 254)), dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 50)),
			func(m *dhcpv4.DHCPv4) { m.OpCode, m.BootFileName = dhcpv4.OpcodeBootReply, "pxelinux.0" }, generic(54, "\x0a\x00\x00\xfe"))
	}
	const any, all = "0.0.0.0:68", "255.255.255.255:67"
	return [][]byte{
		frame(t, card, any, all, message(t, append(pxe, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))...)),
		frame(t, router, "10.0.0.254:67", "255.255.255.255:68", other(dhcpv4.MessageTypeOffer)),
		frame(t, card, any, all, message(t, append(pxe, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), generic(54, "\x0a\x00\x00\xfe"), generic(50, "\x0a\x00\x00\x32"))...)),
		frame(t, router, "10.0.0.254:67", "255.255.255.255:68", other(dhcpv4.MessageTypeAck)),
		frame(t, router, "10.0.0.50:2070", "10.0.0.1:69", []byte("\x00\x01pxelinux.0\x00octet\x00tsize\x000\x00")),
		frame(t, router, "10.0.0.50:2071", "10.0.0.1:69", []byte("\x00\x01Boot\\SNPONLY.EFI\x00octet\x00blksize\x001468\x00")),
		frame(t, card, "10.0.0.50:2071", "10.0.0.1:53", []byte("not ours")),
		frame(t, card, any, all, []byte("rubbish")),
	}
}

func TestCaptureIsAnsweredAgain(t *testing.T) {
	frames := story(t)
	var pcap, ng bytes.Buffer
	w := pcapgo.NewWriter(&pcap)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	n, err := pcapgo.NewNgWriter(&ng, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range frames {
		info := gopacket.CaptureInfo{Timestamp: start.Add(time.Duration(i) * time.Second), CaptureLength: len(f), Length: len(f)}
		if err := w.WritePacket(info, f); err != nil {
			t.Fatal(err)
		}
		if err := n.WritePacket(info, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*bytes.Buffer{"pcap": &pcap, "pcapng": &ng} {
		steps, err := Read(b, config(t))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range steps {
			steps[i].At = steps[i].At.UTC()
		}
		got, err := json.MarshalIndent(steps, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		const golden = "testdata/story.json"
		if *update {
			if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if string(got)+"\n" != string(want) {
			t.Errorf("%s: %s differs (go test -update rewrites it):\n%s", name, golden, got)
		}
	}
}

// What OVMF sent; see pxe/dhcp/testdata.
func TestTextOfACaptureIsAnsweredAgain(t *testing.T) {
	f, err := os.Open("../dhcp/testdata/seabios-ipxe-rom.hex")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	steps, err := Read(f, config(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range steps {
		got = append(got, s.Asked+": "+s.Code)
	}
	want := "DISCOVER from ipxe, PXEClient:Arch:00000:UNDI:002001: offer; REQUEST from ipxe, PXEClient:Arch:00000:UNDI:002001: other-server"
	if strings.Join(got, "; ") != want {
		t.Errorf("got %q", got)
	}
}

func TestWhatIsNoCaptureIsSaid(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "reading the capture: it has no packet",
		"# nothing\n0102\nhello\n":         "reading the capture: it is neither pcap nor pcapng, and line 3 is not in hexadecimal: encoding/hex: invalid byte: U+0068 'h'",
		"\xd4\xc3\xb2\xa1\x02\x00\x04\x00": "reading the capture as pcap: unexpected EOF",
	} {
		if _, err := Read(strings.NewReader(in), config(t)); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
		}
	}
}

// A stranger made the capture.
func FuzzRead(f *testing.F) {
	f.Add([]byte("0101060001020304\n"))
	f.Add([]byte("\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x01\x00\x00\x00"))
	f.Add([]byte("\x0a\x0d\x0d\x0a\x1c\x00\x00\x00\x4d\x3c\x2b\x1a\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x1c\x00\x00\x00"))
	f.Add([]byte(hex.EncodeToString(bytes.Repeat([]byte{1, 255}, 200))))
	cfg := config(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		steps, _ := Read(bytes.NewReader(b), cfg)
		for _, s := range steps {
			if s.Code == "" || s.Reason == "" || s.Asked == "" {
				t.Errorf("a step without words: %+v", s)
			}
		}
	})
}
