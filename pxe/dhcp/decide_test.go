package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/pxe/boot"
)

var (
	noon   = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	us     = netip.MustParseAddr("10.0.0.1")
	node1  = MAC{0x52, 0x54, 0, 0, 0, 1}
	node2  = MAC{0x52, 0x54, 0, 0, 0, 2}
	laptop = MAC{0x52, 0x54, 0, 0, 0, 0xee}
)

const uuid3 = "33333333-3333-3333-3333-333333333333"

// fakeSource knows node1 and node2 by card, node3 by UUID.
type fakeSource struct {
	action  map[string]boot.Action
	network *boot.Network
	program boot.Program
	// theirs is a machine of another cluster.
	theirs MAC
}

func (f fakeSource) Network() *boot.Network { return f.network }

func (f fakeSource) Ignition(boot.Machine) ([]byte, error) { return nil, nil }

func (f fakeSource) Decide(m boot.Machine) boot.Answer {
	a := boot.Answer{Action: boot.Discover, Code: "unknown-machine", Reason: "it is not in cluster.yaml"}
	switch {
	case m.MAC.String() == node1.String():
		a = boot.Answer{Action: boot.Local, Name: "node1", Address: netip.MustParseAddr("10.0.0.11"), Code: "not-armed", Reason: "it is not armed"}
	case m.MAC.String() == node2.String(), m.MAC.String() == "52:54:00:00:02:02":
		a = boot.Answer{Action: boot.Install, Name: "node2", Address: netip.MustParseAddr("10.0.0.12"), Code: "armed", Reason: "it is armed"}
	case f.theirs != MAC{} && m.MAC.String() == f.theirs.String():
		a = boot.Answer{Action: boot.None, Code: boot.CodeNeighbour, Refused: true, Reason: "it is a machine of another cluster"}
	case m.UUID == uuid3:
		a = boot.Answer{Action: boot.Install, Name: "node3", Address: netip.MustParseAddr("10.0.0.13"), Code: "armed", Reason: "it is armed"}
	}
	if action, ok := f.action[a.Name]; ok {
		a.Action = action
	}
	a.Program = f.program
	return a
}

func source() fakeSource {
	return fakeSource{network: &boot.Network{
		Subnets: []boot.Subnet{
			{Prefix: netip.MustParsePrefix("10.0.0.0/24"), First: netip.MustParseAddr("10.0.0.100"), Last: netip.MustParseAddr("10.0.0.102"),
				Router: netip.MustParseAddr("10.0.0.254"), DNS: []netip.Addr{netip.MustParseAddr("10.0.0.53")},
				NTP: []netip.Addr{netip.MustParseAddr("10.0.0.123")}, Domain: "rack.example", Lease: time.Hour},
			{Prefix: netip.MustParsePrefix("10.0.7.0/24"), First: netip.MustParseAddr("10.0.7.100"), Last: netip.MustParseAddr("10.0.7.200"), Lease: time.Hour},
		},
		Reserved: map[netip.Addr]string{
			netip.MustParseAddr("10.0.0.11"): "node1", netip.MustParseAddr("10.0.0.12"): "node2",
			netip.MustParseAddr("10.0.0.13"): "node3", netip.MustParseAddr("10.0.0.101"): "node9",
		},
	}}
}

var files = BootFiles{BIOS: "undionly.kpxe", UEFI: "snponly.efi", Shim: "shimx64.efi", Script: ScriptURL(netip.AddrPortFrom(us, 8080)),
	HTTP: "http://10.0.0.1:8080", Programs: map[boot.Firmware]string{boot.UEFIx64: "snponly.efi"}}

// lab is a table with a clock: what a test does to it one packet after another.
type lab struct {
	t      *testing.T
	server netip.Addr
	link   netip.Addr
	src    fakeSource
	table  *Table
	now    time.Time
	// bootServer and from say that packets come to port 4011, and whence.
	bootServer bool
	from       netip.AddrPort
	// line lets machines in; shown is the last that the source was asked about.
	line, httpLine Line
	shown          boot.Machine
	// peers share the table; share is what this server offers first.
	peers []netip.Addr
	share Share
	files BootFiles
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, server: us, src: source(), table: NewTable(nil), now: noon, files: files}
}

func (l *lab) send(m *dhcpv4.DHCPv4) Decision {
	l.t.Helper()
	// Through the wire format, so that only what is encoded counts.
	req, err := dhcpv4.FromBytes(m.ToBytes())
	if err != nil {
		l.t.Fatal(err)
	}
	l.table.use(l.src.network, l.now)
	answer := func(m boot.Machine) boot.Answer { l.shown = m; return l.src.Decide(m) }
	d := Decide(req, Env{Now: l.now, Server: l.server, Link: l.link, BootServer: l.bootServer, From: l.from, Network: l.src.network, Leases: l.table, Answer: answer, Files: l.files, Line: l.line, HTTPLine: l.httpLine, Peers: l.peers, Share: l.share})
	if d.Code == "" || d.Reason == "" {
		l.t.Errorf("%s: no code or reason: %+v", m.MessageType(), d)
	}
	if (d.Reply == nil) == d.To.IsValid() {
		l.t.Errorf("%s: reply and destination disagree: %+v", m.MessageType(), d)
	}
	l.table.apply(d)
	if d.Reply != nil {
		wire := d.Reply.ToBytes()
		if len(wire) < 300 || len(wire) > 576 {
			l.t.Errorf("%s: the reply has %d bytes, want 300 to 576", m.MessageType(), len(wire))
		}
		if d.Reply, err = dhcpv4.FromBytes(wire); err != nil {
			l.t.Fatal(err)
		}
	}
	return d
}

func (l *lab) offered(m *dhcpv4.DHCPv4) string {
	l.t.Helper()
	d := l.send(m)
	if d.Reply == nil {
		return "silence: " + d.Code
	}
	if got := d.Reply.MessageType(); got == dhcpv4.MessageTypeNak {
		return "nak"
	}
	return d.Reply.YourIPAddr.String()
}

type modifier = dhcpv4.Modifier

// packet is a request as a bare operating system sends it.
func packet(t dhcpv4.MessageType, mac MAC, mods ...modifier) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4},
		ClientHWAddr: net.HardwareAddr(mac[:]), Options: dhcpv4.Options{}}
	m.UpdateOption(dhcpv4.OptMessageType(t))
	for _, f := range mods {
		f(m)
	}
	return m
}

func discover(mac MAC, mods ...modifier) *dhcpv4.DHCPv4 {
	return packet(dhcpv4.MessageTypeDiscover, mac, mods...)
}

func request(mac MAC, mods ...modifier) *dhcpv4.DHCPv4 {
	return packet(dhcpv4.MessageTypeRequest, mac, mods...)
}

func opt(code uint8, value ...byte) modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), value)
}

func pxe(archs ...byte) modifier {
	return func(m *dhcpv4.DHCPv4) {
		m.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001"))
		var v []byte
		for _, a := range archs {
			v = append(v, 0, a)
		}
		opt(93, v...)(m)
	}
}

func ipxe(m *dhcpv4.DHCPv4) {
	pxe(0)(m)
	opt(77, []byte("iPXE")...)(m)
}

func uuid(b byte) modifier {
	v := make([]byte, 17)
	for i := range v[1:] {
		v[i+1] = b
	}
	return opt(97, v...)
}

func wants(a string) modifier { return opt(50, net.ParseIP(a).To4()...) }

func from(a string) modifier {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = net.ParseIP(a) }
}

func relayed(a string) modifier {
	return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = net.ParseIP(a) }
}

func udpAddr(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 68) }

func toServer(a string) modifier { return opt(54, net.ParseIP(a).To4()...) }

func TestBootFileByFirmware(t *testing.T) {
	script := files.Script
	for _, c := range []struct {
		name string
		mods []modifier
		// want is the fixed file field, or the code of the refusal.
		want string
	}{
		{"BIOS", []modifier{pxe(0)}, "undionly.kpxe"},
		{"UEFI on x86-64", []modifier{pxe(7)}, "snponly.efi"},
		{"quirk 8: EBC and x86-64 are swapped in RFC 4578", []modifier{pxe(9)}, "snponly.efi"},
		{"quirk 8: a laptop says Itanium", []modifier{pxe(2)}, "snponly.efi"},
		{"quirk 8: a laptop says Xscale", []modifier{pxe(8)}, "snponly.efi"},
		{"quirk 9: option 93 is a list", []modifier{pxe(6, 7)}, "snponly.efi"},
		{"no option 93 but the vendor class says it", []modifier{opt(60, []byte("PXEClient:Arch:00007:UNDI:003016")...)}, "snponly.efi"},
		{"nothing about the architecture", []modifier{opt(60, []byte("PXEClient")...)}, "undionly.kpxe"},
		{"quirk 15: iPXE's user class as plain text", []modifier{pxe(0), opt(77, []byte("iPXE")...)}, script},
		{"quirk 15: iPXE's user class by RFC 3004", []modifier{pxe(7), opt(77, []byte("\x04iPXE")...)}, script},
		{"another user class", []modifier{pxe(0), opt(77, []byte("gPXE")...)}, "undionly.kpxe"},
		{"quirk 14: iPXE that came by HTTP boot", []modifier{opt(60, []byte("HTTPClient:Arch:00016")...), opt(93, 0, 7), opt(77, []byte("iPXE")...)}, script},
		{"arm64", []modifier{pxe(11)}, "arch-unsupported"},
		{"32 bit UEFI", []modifier{pxe(6)}, "arch-unsupported"},
		{"UEFI HTTP boot", []modifier{opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), opt(93, 0, 16)}, "http://10.0.0.1:8080/boot/52-54-00-00-00-01/snponly.efi"},
		{"UEFI HTTP boot on arm64", []modifier{opt(60, []byte("HTTPClient:Arch:00019:UNDI:003001")...), opt(93, 0, 19)}, "arch-unsupported"},
		{"UEFI HTTP boot of 32 bits", []modifier{opt(60, []byte("HTTPClient:Arch:00015:UNDI:003001")...), opt(93, 0, 15)}, "arch-unsupported"},
		{"an operating system", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newLab(t).send(discover(node1, c.mods...))
			if d.Reply == nil {
				if d.Code != c.want {
					t.Fatalf("got silence %q (%s), want %q", d.Code, d.Reason, c.want)
				}
				return
			}
			if got := d.Reply.BootFileName; got != c.want {
				t.Errorf("got file %q, want %q", got, c.want)
			}
			option := strings.TrimRight(string(d.Reply.Options.Get(dhcpv4.OptionBootfileName)), "\x00")
			if option != c.want {
				t.Errorf("quirk 10: got option 67 %q, want the same as file, %q", option, c.want)
			}
			if got := d.Reply.YourIPAddr.String(); got != "10.0.0.11" {
				t.Errorf("an unarmed machine needs its address too: got %s", got)
			}
		})
	}
}

func TestGRUBIsForUEFIByPXE(t *testing.T) {
	for _, c := range []struct {
		name string
		mods []modifier
		want string
	}{
		{"UEFI", []modifier{pxe(7)}, "shimx64.efi"}, {"BIOS", []modifier{pxe(0)}, "undionly.kpxe"}, {"iPXE in the card's ROM", []modifier{ipxe}, files.Script},
		{"arm64", []modifier{pxe(11)}, "arch-unsupported"},
	} {
		l := newLab(t)
		l.src.program = boot.GRUB
		d := l.send(discover(node1, c.mods...))
		got := d.Code
		if d.Reply != nil {
			got = d.Reply.BootFileName
		}
		if got != c.want {
			t.Errorf("%s: got %q (%s), want %q", c.name, got, d.Reason, c.want)
		}
	}
}

func TestReplyToFirmware(t *testing.T) {
	firmware := newLab(t).send(discover(node1, pxe(7), uuid(0x11))).Reply
	chain := newLab(t).send(discover(node1, ipxe)).Reply
	system := newLab(t).send(discover(node1)).Reply

	if firmware.Options.Has(dhcpv4.OptionClassIdentifier) || firmware.Options.Has(dhcpv4.OptionVendorSpecificInformation) {
		t.Error("quirk 1: options 60 and 43 would send UEFI to port 4011")
	}
	if got := firmware.Options.Get(dhcpv4.OptionBootfileName); string(got) != "snponly.efi\x00" {
		t.Errorf("quirk 11: option 67 for a ROM is %q, want it to end with NUL", got)
	}
	if got := chain.Options.Get(dhcpv4.OptionBootfileName); got[len(got)-1] == 0 {
		t.Errorf("quirk 12: option 67 for iPXE is %q, want no NUL", got)
	}
	if got := string(firmware.Options.Get(dhcpv4.OptionTFTPServerName)); got != "10.0.0.1" {
		t.Errorf("quirk 12: option 66 is %q", got)
	}
	if got := firmware.ServerIPAddr.String(); got != "10.0.0.1" {
		t.Errorf("siaddr is %s", got)
	}
	if firmware.Options.Has(dhcpv4.OptionBootFileSize) {
		t.Error("quirk 30: option 13 would be believed")
	}
	if got := string(firmware.Options.Get(dhcpv4.OptionClientMachineIdentifier)); got != "\x00"+strings.Repeat("\x11", 16) {
		t.Errorf("option 97 is not mirrored: %x", got)
	}
	if chain.Options.Has(dhcpv4.OptionClientMachineIdentifier) {
		t.Error("quirk 7: option 97 is sent to a client without it")
	}
	if got := newLab(t).send(discover(node1, opt(60, []byte("HTTPClient:Arch:00016")...), opt(93, 0, 16))).Reply.ClassIdentifier(); got != "HTTPClient" {
		t.Errorf("quirk 13: option 60 for HTTP boot is %q", got)
	}
	if got := chain.Options.Get(dhcpv4.GenericOptionCode(175)); string(got) != "\xb0\x01\x01" {
		t.Errorf("quirk 16: no-pxedhcp is %x", got)
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionBootfileName, dhcpv4.OptionTFTPServerName, dhcpv4.GenericOptionCode(175)} {
		if system.Options.Has(code) {
			t.Errorf("an operating system gets option %s", code)
		}
	}
}

func TestReplyOptions(t *testing.T) {
	l := newLab(t)
	r := l.send(discover(node1, opt(61, 1, 2, 3), relayed("10.0.0.9"), opt(82, 1, 2, 'e', '1'))).Reply
	for _, c := range []struct {
		code uint8
		want string
	}{
		{1, "\xff\xff\xff\x00"}, {3, "\x0a\x00\x00\xfe"}, {6, "\x0a\x00\x00\x35"}, {12, "node1"}, {15, "rack.example"},
		{28, "\x0a\x00\x00\xff"}, {42, "\x0a\x00\x00\x7b"}, {51, "\x00\x00\x0e\x10"}, {54, "\x0a\x00\x00\x01"},
		{58, "\x00\x00\x07\x08"}, {59, "\x00\x00\x0c\x4e"}, {61, "\x01\x02\x03"}, {82, "\x01\x02e1"},
	} {
		if got := string(r.Options.Get(dhcpv4.GenericOptionCode(c.code))); got != c.want {
			t.Errorf("option %d is %q, want %q", c.code, got, c.want)
		}
	}
	wire := r.ToBytes()
	if want := "\x52\x04\x01\x02e1\xff"; !strings.Contains(string(wire), want) {
		t.Errorf("quirk 21: option 82 is not last in %q", wire[240:])
	}
}

func TestDestination(t *testing.T) {
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"quirk 23: a client that forgets the broadcast flag", discover(node1), "255.255.255.255:68"},
		{"the flag set", discover(node1, func(m *dhcpv4.DHCPv4) { m.SetBroadcast() }), "255.255.255.255:68"},
		{"quirk 22: ciaddr in DISCOVER means nothing", discover(node1, from("10.0.0.77")), "255.255.255.255:68"},
		{"renewing", request(node1, from("10.0.0.11")), "10.0.0.11:68"},
		{"through a relay", discover(laptop, relayed("10.0.7.1")), "10.0.7.1:67"},
		{"refused through a relay", request(laptop, relayed("10.0.7.1"), wants("10.9.9.9")), "10.0.7.1:67"},
		{"refused while renewing", request(laptop, from("10.0.0.11")), "255.255.255.255:68"},
		{"inform", packet(dhcpv4.MessageTypeInform, laptop, from("10.0.0.40")), "10.0.0.40:68"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newLab(t).send(c.m)
			if got := d.To.String(); got != c.want {
				t.Errorf("got %s, want %s (%s)", got, c.want, d.Reason)
			}
			if c.m.MessageType() == dhcpv4.MessageTypeDiscover && !d.Reply.ClientIPAddr.IsUnspecified() {
				t.Errorf("quirk 22: ciaddr %s comes back", d.Reply.ClientIPAddr)
			}
		})
	}
}

func TestRequestsAreAcknowledgedOrRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		// before prepares the table.
		before []*dhcpv4.DHCPv4
		m      *dhcpv4.DHCPv4
		want   string
	}{
		{"selecting what was offered", []*dhcpv4.DHCPv4{discover(laptop)}, request(laptop, wants("10.0.0.100"), toServer("10.0.0.1")), "10.0.0.100"},
		{"selecting another server", []*dhcpv4.DHCPv4{discover(laptop)}, request(laptop, wants("10.0.0.100"), toServer("10.0.0.2")), "silence: other-server"},
		{"selecting something else", []*dhcpv4.DHCPv4{discover(laptop)}, request(laptop, wants("10.0.0.77"), toServer("10.0.0.1")), "nak"},
		{"starting again with the reserved address", nil, request(node1, wants("10.0.0.11")), "10.0.0.11"},
		{"starting again with an address of another network", nil, request(node1, wants("192.168.1.5")), "nak"},
		{"starting again with another address than the reserved one", nil, request(node1, wants("10.0.0.100")), "nak"},
		{"a stranger starting again with a reserved address", nil, request(laptop, wants("10.0.0.11")), "nak"},
		{"a stranger starting again with a reserved address of the range", nil, request(laptop, wants("10.0.0.101")), "nak"},
		{"starting again after the leases were lost", nil, request(laptop, wants("10.0.0.102")), "10.0.0.102"},
		{"starting again with somebody's address", []*dhcpv4.DHCPv4{request(laptop, wants("10.0.0.102"))}, request(MAC{2, 9}, wants("10.0.0.102")), "nak"},
		{"renewing", []*dhcpv4.DHCPv4{request(laptop, wants("10.0.0.100"))}, request(laptop, from("10.0.0.100")), "10.0.0.100"},
		{"renewing what is reserved for another one now", nil, request(laptop, from("10.0.0.12")), "nak"},
		{"taking the server's address", nil, request(laptop, wants("10.0.0.1")), "nak"},
		{"naming no address", nil, request(laptop), "silence: malformed"},
		{"inform from nowhere", nil, packet(dhcpv4.MessageTypeInform, laptop), "silence: malformed"},
		{"inform", nil, packet(dhcpv4.MessageTypeInform, laptop, from("10.0.0.40")), "0.0.0.0"},
		{"releasing somebody's address", []*dhcpv4.DHCPv4{request(laptop, wants("10.0.0.100"))}, packet(dhcpv4.MessageTypeRelease, node1, from("10.0.0.100")), "silence: not-leased"},
		{"declining somebody's address", []*dhcpv4.DHCPv4{request(laptop, wants("10.0.0.100"))}, packet(dhcpv4.MessageTypeDecline, node1, wants("10.0.0.100")), "silence: not-leased"},
		{"an offer that came to us", nil, packet(dhcpv4.MessageTypeOffer, node1), "silence: not-for-us"},
		{"no message type (BOOTP)", nil, discover(node1, func(m *dhcpv4.DHCPv4) { m.DeleteOption(dhcpv4.OptionDHCPMessageType) }), "silence: not-for-us"},
		{"a multicast card", nil, discover(MAC{1, 2, 3}), "silence: not-for-us"},
		{"a relay we do not know", nil, discover(laptop, relayed("172.16.0.1")), "silence: relay-unknown"},
		{"a relay we know", nil, discover(laptop, relayed("10.0.7.1")), "10.0.7.100"},
		{"quirk 25: the client identifier changes, the card stays", []*dhcpv4.DHCPv4{request(laptop, wants("10.0.0.102"), opt(61, 1, 1))}, discover(laptop, opt(61, 255, 9)), "10.0.0.102"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			for _, m := range c.before {
				l.send(m)
			}
			if got := l.offered(c.m); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestRefusalSaysWhy(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		m    *dhcpv4.DHCPv4
		want string
	}{
		{request(node1, wants("192.168.1.5")), "192.168.1.5 is not in 10.0.0.0/24"},
		{request(node1, wants("10.0.0.100")), "node1 has the reservation 10.0.0.11"},
		{request(laptop, wants("10.0.0.11")), "10.0.0.11 is reserved for node1"},
		{request(laptop, wants("10.0.0.77")), "10.0.0.77 is not in the dynamic range"},
	} {
		if got := l.send(c.m).Reply.Message(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestPoolIsNeverOvercommitted(t *testing.T) {
	l := newLab(t)
	card := func(n byte) MAC { return MAC{2, 0, 0, 0, 0, n} }
	// 10.0.0.101 is reserved, so two addresses are dynamic.
	for _, c := range []struct {
		after time.Duration
		m     *dhcpv4.DHCPv4
		want  string
	}{
		{0, discover(card(1)), "10.0.0.100"},
		{0, discover(card(2)), "10.0.0.102"},
		{0, discover(card(3)), "silence: pool-exhausted"},
		{0, request(card(1), wants("10.0.0.100"), toServer("10.0.0.1")), "10.0.0.100"},
		{holdTime, discover(card(3)), "10.0.0.102"}, // card 2 never asked
		{0, request(card(2), wants("10.0.0.102"), toServer("10.0.0.1")), "nak"},
		{0, request(card(3), wants("10.0.0.102"), toServer("10.0.0.1")), "10.0.0.102"},
		{0, packet(dhcpv4.MessageTypeRelease, card(1), from("10.0.0.100")), "silence: release"},
		{0, discover(card(4)), "10.0.0.100"},
		{0, request(card(4), wants("10.0.0.100"), toServer("10.0.0.1")), "10.0.0.100"},
		{0, discover(card(5)), "silence: pool-exhausted"},
		{0, packet(dhcpv4.MessageTypeDecline, card(4), wants("10.0.0.100")), "silence: decline"},
		{0, discover(card(4)), "silence: pool-exhausted"},
		{declineTime, discover(card(4)), "10.0.0.100"},
		{time.Hour, discover(card(6)), "10.0.0.100"}, // ended first
		{0, discover(card(3)), "10.0.0.102"},         // its own again
	} {
		l.now = l.now.Add(c.after)
		if got := l.offered(c.m); got != c.want {
			t.Fatalf("%s from %s: got %s, want %s", c.m.MessageType(), c.m.ClientHWAddr, got, c.want)
		}
	}
}

// A client that has declined an address comes back at once and gets another one;
// the declined one must rest all the same.
func TestADeclinedAddressRestsWhenItsClientGotAnotherOne(t *testing.T) {
	l := newLab(t)
	card := func(b byte) MAC { return MAC{0x52, 0x54, 0, 0, 1, b} }
	l.send(request(card(1), wants("10.0.0.100")))
	l.send(packet(dhcpv4.MessageTypeDecline, card(1), wants("10.0.0.100")))
	if got := l.offered(discover(card(1))); got != "10.0.0.102" {
		t.Fatalf("after declining: got %s, want the other address", got)
	}
	l.send(request(card(1), wants("10.0.0.102")))
	if got := l.offered(packet(dhcpv4.MessageTypeDecline, card(1), wants("10.0.0.100"))); got != "silence: not-leased" {
		t.Errorf("the decline once more, late: %s", got)
	}
	for _, m := range []*dhcpv4.DHCPv4{discover(card(2)), discover(card(2), wants("10.0.0.100")), discover(laptop)} {
		if got := l.offered(m); got != "silence: pool-exhausted" {
			t.Errorf("%s is offered %s, which rests", m.ClientHWAddr, got)
		}
	}
	var kept []Lease
	for _, lease := range l.table.byAddr {
		kept = append(kept, lease)
	}
	l.table = NewTable(kept) // as after a restart
	if got := l.offered(discover(card(2))); got != "silence: pool-exhausted" {
		t.Errorf("after a restart: got %s", got)
	}
	l.now = l.now.Add(declineTime)
	if got := l.offered(discover(card(2))); got != "10.0.0.100" {
		t.Errorf("after its rest: got %s", got)
	}
	if got := l.offered(request(card(1), from("10.0.0.102"))); got != "10.0.0.102" {
		t.Errorf("who declined it renews its other address: got %s", got)
	}
}

// An offer that nobody takes up must not keep its address until the next lease ends.
func TestAnOfferNotTakenUpGivesItsAddressBack(t *testing.T) {
	l := newLab(t)
	card := func(b byte) MAC { return MAC{0x52, 0x54, 0, 0, 1, b} }
	l.send(request(card(1), wants("10.0.0.100")))
	l.now = l.now.Add(59 * time.Minute)
	l.send(request(card(2), wants("10.0.0.102")))
	l.now = l.now.Add(2 * time.Minute) // .100 has ended, .102 lives on
	if got := l.offered(discover(card(3))); got != "10.0.0.100" {
		t.Fatalf("got %s, want the address that has ended", got)
	}
	if got := l.offered(discover(card(4))); got != "silence: pool-exhausted" {
		t.Fatalf("got %s while it is held", got)
	}
	l.now = l.now.Add(holdTime)
	if got := l.offered(discover(card(4))); got != "10.0.0.100" {
		t.Errorf("after the offer has ended: got %s, want 10.0.0.100", got)
	}
}

func TestMachineKnownByUUIDKeepsItsAddressInTheSystem(t *testing.T) {
	l := newLab(t)
	if got := l.offered(discover(laptop)); got != "10.0.0.100" {
		t.Fatalf("before it has shown its UUID: got %s", got)
	}
	for _, c := range []struct {
		m    *dhcpv4.DHCPv4
		want string
	}{
		{discover(laptop, pxe(7), uuid(0x33)), "10.0.0.13"},
		{request(laptop, pxe(7), uuid(0x33), wants("10.0.0.13"), toServer("10.0.0.1")), "10.0.0.13"},
		{discover(laptop), "10.0.0.13"},
		{request(laptop, from("10.0.0.13")), "10.0.0.13"},
	} {
		if got := l.offered(c.m); got != c.want {
			t.Errorf("%s: got %s, want %s", c.m.MessageType(), got, c.want)
		}
	}
}

func TestSecondCardDoesNotTakeTheAddressFromARunningSystem(t *testing.T) {
	second := MAC{0x52, 0x54, 0, 0, 2, 2}
	l := newLab(t)
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"first card boots", request(node2, pxe(0), wants("10.0.0.12")), "10.0.0.12"},
		{"second card in the system", discover(second), "10.0.0.100"},
		{"it renews that", request(second, wants("10.0.0.100")), "10.0.0.100"},
		{"first card in the system", request(node2, from("10.0.0.12")), "10.0.0.12"},
		{"next time the second card boots", discover(second, pxe(0)), "10.0.0.12"},
		{"and takes it", request(second, pxe(0), wants("10.0.0.12")), "10.0.0.12"},
		{"first card in the system now, while the second one's other address rests", discover(node2), "10.0.0.102"},
	} {
		if got := l.offered(c.m); got != c.want {
			t.Fatalf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestReplacedCardDoesNotBlockTheNewOne(t *testing.T) {
	l := newLab(t)
	old := MAC{2, 7}
	l.table.put(Lease{MAC: old, Addr: netip.MustParseAddr("10.0.0.11"), Machine: "node1", Until: noon.Add(time.Hour)})
	if got := l.offered(discover(node1)); got != "10.0.0.11" {
		t.Errorf("the new card got %s", got)
	}
}

func TestPolicySilencesBootClientsOnly(t *testing.T) {
	l := newLab(t)
	l.src.action = map[string]boot.Action{"": boot.None, "node1": boot.None}
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"unknown machine that boots", discover(laptop, pxe(0)), "silence: unknown-machine"},
		{"unknown system", discover(laptop), "10.0.0.100"},
		{"known machine in conflict that boots", discover(node1, pxe(0)), "silence: not-armed"},
		{"its running system renews", request(node1, from("10.0.0.11")), "10.0.0.11"},
	} {
		if got := l.offered(c.m); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func TestIdentifyReadsUUID(t *testing.T) {
	for _, c := range []struct {
		name string
		mod  modifier
		want string
	}{
		{"given", opt(97, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xff), "01020304-0506-0708-090a-0b0c0d0e0fff"},
		{"quirk 7: absent", func(*dhcpv4.DHCPv4) {}, ""},
		{"all zero", uuid(0), ""},
		{"all ones", uuid(0xff), ""},
		{"too short", opt(97, 0, 1), ""},
		{"of another type", opt(97, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16), ""},
	} {
		got, err := identify(discover(node1, pxe(0), c.mod))
		if err != nil || got.UUID != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.name, got.UUID, err, c.want)
		}
	}
}

func TestHTTPBootIsAnsweredOnlyWhereItIsOurs(t *testing.T) {
	l := newLab(t)
	l.src.action = map[string]boot.Action{"": boot.None}
	asks := []modifier{opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), opt(93, 0, 16)}
	if d := l.send(discover(laptop, asks...)); d.Reply != nil || d.Code != "unknown-machine" {
		t.Errorf("a machine that is ignored: %s (%s)", d.Code, d.Reason)
	}
	// 05 is an HTTP client's answer to a machine known by its UUID.
	d := l.send(discover(MAC{2, 0, 0, 0, 0, 5}, append(asks, uuid(0x33))...))
	if want := "http://10.0.0.1:8080/boot/02-00-00-00-00-05/snponly.efi"; d.Reply == nil || d.Reply.BootFileName != want {
		t.Errorf("got %+v, want the file %s", d, want)
	}
}
