package dhcp6

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

var (
	start  = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	server = netip.MustParseAddr("fd00::1")
	// peer is the link-local address of card 52:54:00:98:00:01.
	peer = netip.MustParseAddr("fe80::5054:ff:fe98:1")
	ours = ServerDUID([]byte("seed"))
	uuid = &dhcpv6.DUIDUUID{UUID: [16]byte{0x78, 0x56, 0x34, 0x12, 0xbc, 0x9a, 0xef, 0x4d, 0x81, 0x23, 0, 0, 0, 0, 0, 1}}
)

func network() *boot.Network6 {
	return &boot.Network6{Subnets: []boot.Subnet6{
		{Prefix: netip.MustParsePrefix("fd00::/64"), First: netip.MustParseAddr("fd00::1000"), Last: netip.MustParseAddr("fd00::10ff"),
			DNS: []netip.Addr{netip.MustParseAddr("fd00::53")}, Domain: "example.org", Lease: time.Hour},
		{Prefix: netip.MustParsePrefix("fd01::/64"), First: netip.MustParseAddr("fd01::1000"), Last: netip.MustParseAddr("fd01::10ff"), Lease: time.Hour},
	}}
}

func env() Env {
	return Env{Now: start, From: peer, Server: server, DUID: ours, Network: network(), Leases: NewTable(nil),
		Answer: func(boot.Machine) boot.Answer { return boot.Answer{Action: boot.Discover, Code: "unknown-machine"} },
		Files: BootFiles{UEFI: "tftp://[fd00::1]/snponly.efi", Script: "http://[fd00::1]:8080/boot.ipxe?mac=${mac}",
			HTTP: "http://[fd00::1]:8080", Programs: map[boot.Firmware]string{boot.UEFIx64: "snponly.efi"}}}
}

// message is a client's, with options in the order given.
func message(t dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: t, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

func client() dhcpv6.Option { return dhcpv6.OptClientID(uuid) }
func chosen() dhcpv6.Option { return dhcpv6.OptServerID(ours) }
func rapid() dhcpv6.Option  { return &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit} }

func ia(id byte, addresses ...string) *dhcpv6.OptIANA {
	o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addresses {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
	}
	return o
}

func vendorClass(text string) dhcpv6.Option {
	return &dhcpv6.OptVendorClass{EnterpriseNumber: 343, Data: [][]byte{[]byte(text)}}
}

// pxe is what UEFI adds, http what its HTTP boot does, ipxe what iPXE does.
func pxe() []dhcpv6.Option {
	return []dhcpv6.Option{vendorClass("PXEClient:Arch:00007:UNDI:003016"), dhcpv6.OptClientArchType(7), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionNII, OptionData: []byte{1, 3, 16}}}
}

func http() []dhcpv6.Option {
	return []dhcpv6.Option{vendorClass("HTTPClient:Arch:00016:UNDI:003016"), dhcpv6.OptClientArchType(16)}
}

func ipxe() []dhcpv6.Option {
	return append(pxe(), &dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte("iPXE")}})
}

// text is what a reply says, a line per option.
func text(d dhcpv6.DHCPv6) string {
	var s strings.Builder
	for {
		r, ok := d.(*dhcpv6.RelayMessage)
		if !ok {
			break
		}
		fmt.Fprintf(&s, "%s hops %d link %s peer %s", r.MessageType, r.HopCount, r.LinkAddr, r.PeerAddr)
		if id := r.Options.InterfaceID(); id != nil {
			fmt.Fprintf(&s, " interface %s", id)
		}
		fmt.Fprintln(&s)
		d = r.Options.RelayMessage()
	}
	m, ok := d.(*dhcpv6.Message)
	if !ok || m == nil {
		return "nothing"
	}
	fmt.Fprintln(&s, m.MessageType)
	for _, o := range m.Options.Options {
		switch o := o.(type) {
		case *dhcpv6.OptIANA:
			fmt.Fprintf(&s, "IA %d T1 %s T2 %s:", o.IaId[3], o.T1, o.T2)
			for _, a := range o.Options.Addresses() {
				fmt.Fprintf(&s, " %s %s %s", a.IPv6Addr, a.PreferredLifetime, a.ValidLifetime)
			}
			if st := o.Options.Status(); st != nil {
				fmt.Fprintf(&s, " %s", st.StatusCode)
			}
			fmt.Fprintln(&s)
		case *dhcpv6.OptVendorClass:
			fmt.Fprintf(&s, "class %d %s\n", o.EnterpriseNumber, o.Data)
		case *dhcpv6.OptStatusCode:
			fmt.Fprintln(&s, "status", o.StatusCode)
		default:
			switch o.Code() {
			case dhcpv6.OptionClientID, dhcpv6.OptionServerID:
				fmt.Fprintln(&s, map[dhcpv6.OptionCode]string{dhcpv6.OptionClientID: "client", dhcpv6.OptionServerID: "server"}[o.Code()])
			default:
				fmt.Fprintln(&s, o)
			}
		}
	}
	return strings.TrimSuffix(s.String(), "\n")
}

// first is the address that the client's association 1 gets in an empty range.
func first(t *testing.T) netip.Addr {
	t.Helper()
	d := Decide(message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1)), env())
	if len(d.Changes) != 1 {
		t.Fatalf("got %+v", d)
	}
	return d.Changes[0].Addr
}

func TestAnswers(t *testing.T) {
	a := first(t).String()
	options := "client\nserver\nDNS: [fd00::53]\nDomain Search List: [example.org]\n"
	given := "IA 1 T1 30m0s T2 48m0s: " + a + " 1h0m0s 1h0m0s"
	key := Key{"52:54:00:98:00:01", 1}
	with := func(more []dhcpv6.Option, o ...dhcpv6.Option) []dhcpv6.Option { return append(o, more...) }
	leased := func(e *Env) {
		e.Leases = NewTable([]Lease{{Key: key, Addr: netip.MustParseAddr(a), Until: start.Add(time.Minute)}})
	}
	arm64 := func(e *Env) {
		e.Files.UEFIArm64, e.Files.Programs = "tftp://[fd00::1]/snponly-arm64.efi", map[boot.Firmware]string{boot.UEFIarm64: "snponly-arm64.efi"}
	}
	stateless := func(e *Env) { e.Network = &boot.Network6{Stateless: true} }
	for _, c := range []struct {
		name string
		t    dhcpv6.MessageType
		with []dhcpv6.Option
		env  func(*Env)
		code string
		want string
	}{
		{"a system is offered an address", dhcpv6.MessageTypeSolicit, with(nil, client(), ia(1)), nil, "advertise", "ADVERTISE\n" + options + "Preference: 255\n" + given},
		{"rapid commit that nobody allowed is an offer", dhcpv6.MessageTypeSolicit, with(nil, client(), rapid(), ia(1)), nil, "advertise", "ADVERTISE\n" + options + "Preference: 255\n" + given},
		{"rapid commit that is allowed gives the address", dhcpv6.MessageTypeSolicit, with(nil, client(), rapid(), ia(1)), func(e *Env) { e.Network.RapidCommit = true },
			"rapid-commit", "REPLY\n" + options + "Rapid Commit\n" + given},
		{"rapid commit that nobody asked for is an offer", dhcpv6.MessageTypeSolicit, with(nil, client(), ia(1)), func(e *Env) { e.Network.RapidCommit = true },
			"advertise", "ADVERTISE\n" + options + "Preference: 255\n" + given},
		{"a request gets it", dhcpv6.MessageTypeRequest, with(nil, client(), chosen(), ia(1, a)), nil, "reply", "REPLY\n" + options + given},
		{"UEFI gets iPXE by TFTP, and no class, which would mean port 4011", dhcpv6.MessageTypeSolicit, with(pxe(), client(), ia(1)), nil, "advertise",
			"ADVERTISE\n" + options + "Boot File URL: tftp://[fd00::1]/snponly.efi\nPreference: 255\n" + given},
		{"UEFI's HTTP boot gets a URL and its class", dhcpv6.MessageTypeSolicit, with(http(), client(), ia(1)), nil, "advertise",
			"ADVERTISE\n" + options + "Boot File URL: http://[fd00::1]:8080/boot/52-54-00-98-00-01/snponly.efi\nclass 343 [HTTPClient]\nPreference: 255\n" + given},
		{"iPXE gets its script", dhcpv6.MessageTypeSolicit, with(ipxe(), client(), ia(1)), nil, "advertise",
			"ADVERTISE\n" + options + "Boot File URL: http://[fd00::1]:8080/boot.ipxe?mac=${mac}\nPreference: 255\n" + given},
		{"firmware without a vendor class is known by its architecture", dhcpv6.MessageTypeInformationRequest, with(nil, dhcpv6.OptClientArchType(7)), nil, "information",
			"REPLY\nserver\nDNS: [fd00::53]\nDomain Search List: [example.org]\nBoot File URL: tftp://[fd00::1]/snponly.efi"},
		{"HTTP boot is known by its architecture", dhcpv6.MessageTypeInformationRequest, with(nil, client(), dhcpv6.OptClientArchType(16)), nil, "information",
			"REPLY\n" + options + "Boot File URL: http://[fd00::1]:8080/boot/52-54-00-98-00-01/snponly.efi\nclass 343 [HTTPClient]"},
		{"what a client has is prolonged", dhcpv6.MessageTypeRenew, with(nil, client(), chosen(), ia(1, a)), leased, "renew", "REPLY\n" + options + given},
		{"so is what it has by a lease that we lost", dhcpv6.MessageTypeRebind, with(nil, client(), ia(1, "fd00::10aa")), nil, "renew",
			"REPLY\n" + options + "IA 1 T1 30m0s T2 48m0s: fd00::10aa 1h0m0s 1h0m0s"},
		{"what is of another network it shall drop", dhcpv6.MessageTypeRebind, with(nil, client(), ia(1, "fd09::1000")), nil, "no-binding",
			"REPLY\n" + options + "IA 1 T1 0s T2 0s: fd09::1000 0s 0s"},
		{"what another server gave is that one's to prolong", dhcpv6.MessageTypeRebind, with(nil, client(), ia(1, "fd00::2000")), nil, "not-leased", ""},
		{"what somebody else has is not prolonged", dhcpv6.MessageTypeRenew, with(nil, client(), chosen(), ia(1, "fd00::1077")),
			func(e *Env) {
				e.Leases = NewTable([]Lease{{Key: Key{"other", 1}, Addr: netip.MustParseAddr("fd00::1077"), Until: start.Add(time.Minute)}})
			}, "no-binding", "REPLY\n" + options + "IA 1 T1 0s T2 0s: fd00::1077 0s 0s"},
		{"who names nothing to prolong shall ask", dhcpv6.MessageTypeRenew, with(nil, client(), chosen(), ia(1)), nil, "no-binding", "REPLY\n" + options + "IA 1 T1 0s T2 0s: NoBinding"},
		{"an address of the network is confirmed", dhcpv6.MessageTypeConfirm, with(nil, client(), ia(1, "fd00::1010")), nil, "confirm", "REPLY\n" + options + "status Success"},
		{"one of another is not", dhcpv6.MessageTypeConfirm, with(nil, client(), ia(1, "fd01::1010")), nil, "confirm", "REPLY\n" + options + "status NotOnLink"},
		{"an address is given back", dhcpv6.MessageTypeRelease, with(nil, client(), chosen(), ia(1, a)), leased, "release", "REPLY\n" + options + "status Success"},
		{"what it never had is not", dhcpv6.MessageTypeRelease, with(nil, client(), chosen(), ia(1, "fd00::1010")), leased, "not-leased",
			"REPLY\n" + options + "status Success\nIA 1 T1 0s T2 0s: NoBinding"},
		{"an address that is in use rests", dhcpv6.MessageTypeDecline, with(nil, client(), chosen(), ia(1, a)), leased, "decline", "REPLY\n" + options + "status Success"},
		{"nobody can decline what he never had", dhcpv6.MessageTypeDecline, with(nil, client(), chosen(), ia(1, "fd00::1010")), nil, "not-leased",
			"REPLY\n" + options + "status Success\nIA 1 T1 0s T2 0s: NoBinding"},
		{"an information request", dhcpv6.MessageTypeInformationRequest, with(nil, client()), nil, "information", "REPLY\nclient\nserver\nDNS: [fd00::53]\nDomain Search List: [example.org]"},

		{"beside another server iPXE is told its script", dhcpv6.MessageTypeInformationRequest, with(ipxe(), client()), stateless, "information",
			"REPLY\nclient\nserver\nBoot File URL: http://[fd00::1]:8080/boot.ipxe?mac=${mac}"},
		{"beside another server HTTP boot gets an offer without an address", dhcpv6.MessageTypeSolicit, with(http(), client(), ia(1)), stateless, "proxy-advertise",
			"ADVERTISE\nclient\nserver\nBoot File URL: http://[fd00::1]:8080/boot/52-54-00-98-00-01/snponly.efi\nclass 343 [HTTPClient]"},
		{"beside another server PXE gets nothing", dhcpv6.MessageTypeSolicit, with(pxe(), client(), ia(1)), stateless, "stateless", ""},
		{"beside another server a system gets nothing", dhcpv6.MessageTypeRebind, with(nil, client(), ia(1, a)), stateless, "stateless", ""},

		{"another server was chosen", dhcpv6.MessageTypeRequest, with(nil, client(), dhcpv6.OptServerID(uuid), ia(1)), nil, "other-server", ""},
		{"arm64 has no program", dhcpv6.MessageTypeSolicit, with([]dhcpv6.Option{vendorClass("PXEClient:Arch:00011:UNDI:003016"), dhcpv6.OptClientArchType(11)}, client(), ia(1)), nil, "arch-unsupported", ""},
		{"unless somebody names one", dhcpv6.MessageTypeInformationRequest, with([]dhcpv6.Option{vendorClass("PXEClient:Arch:00011:UNDI:003016"), dhcpv6.OptClientArchType(11)}, client()), arm64, "information",
			"REPLY\n" + options + "Boot File URL: tftp://[fd00::1]/snponly-arm64.efi"},
		{"and of HTTP boot, too", dhcpv6.MessageTypeInformationRequest, with([]dhcpv6.Option{dhcpv6.OptClientArchType(19)}, client()), arm64, "information",
			"REPLY\n" + options + "Boot File URL: http://[fd00::1]:8080/boot/52-54-00-98-00-01/snponly-arm64.efi\nclass 343 [HTTPClient]"},
		{"GRUB is no matter of arm64", dhcpv6.MessageTypeInformationRequest, with([]dhcpv6.Option{dhcpv6.OptClientArchType(11)}, client()), func(e *Env) {
			arm64(e)
			e.Answer = func(boot.Machine) boot.Answer { return boot.Answer{Action: boot.Discover, Program: boot.GRUB} }
		}, "information", "REPLY\n" + options + "Boot File URL: tftp://[fd00::1]/snponly-arm64.efi"},
		{"BIOS knows no IPv6", dhcpv6.MessageTypeSolicit, with([]dhcpv6.Option{dhcpv6.OptClientArchType(0)}, client(), ia(1)), nil, "arch-unsupported", ""},
		{"nor has HTTP boot of it", dhcpv6.MessageTypeSolicit, with([]dhcpv6.Option{dhcpv6.OptClientArchType(19)}, client(), ia(1)), nil, "arch-unsupported", ""},
		{"HTTP boot where there is only HTTPS", dhcpv6.MessageTypeSolicit, with(http(), client(), ia(1)), func(e *Env) { e.Files.HTTP = "" }, "https-only", ""},
		{"a machine to leave alone", dhcpv6.MessageTypeSolicit, with(pxe(), client(), ia(1)),
			func(e *Env) {
				e.Answer = func(boot.Machine) boot.Answer {
					return boot.Answer{Action: boot.None, Code: "unknown-machine", Reason: "it is not in cluster.yaml"}
				}
			}, "unknown-machine", ""},
		{"its system is no machine to leave alone", dhcpv6.MessageTypeRequest, with(nil, client(), chosen(), ia(1)),
			func(e *Env) {
				e.Answer = func(boot.Machine) boot.Answer {
					return boot.Answer{Action: boot.None, Code: "unknown-machine", Reason: "it is not in cluster.yaml"}
				}
			}, "reply", "REPLY\n" + options + given},
		{"no address is asked for", dhcpv6.MessageTypeSolicit, with(nil, client()), nil, "no-address-asked", ""},
		{"the range is used up", dhcpv6.MessageTypeSolicit, with(nil, client(), ia(1)), func(e *Env) {
			e.Network.Subnets[0].First, e.Network.Subnets[0].Last = server, server
		}, "pool-exhausted", ""},
		{"too many addresses at a time", dhcpv6.MessageTypeSolicit, with(nil, client(), ia(1), ia(2), ia(3), ia(4), ia(5), ia(6), ia(7), ia(8), ia(9)), nil, "malformed", ""},
		{"a client without a name", dhcpv6.MessageTypeSolicit, with(nil, ia(1)), nil, "malformed", ""},
		{"a solicit that names a server", dhcpv6.MessageTypeSolicit, with(nil, client(), chosen(), ia(1)), nil, "malformed", ""},
		{"a request that names none", dhcpv6.MessageTypeRequest, with(nil, client(), ia(1)), nil, "malformed", ""},
		{"an information request for an address", dhcpv6.MessageTypeInformationRequest, with(nil, client(), ia(1)), nil, "malformed", ""},
		{"a confirm about nothing", dhcpv6.MessageTypeConfirm, with(nil, client()), nil, "malformed", ""},
		{"a server's message", dhcpv6.MessageTypeAdvertise, with(nil, client()), nil, "not-for-us", ""},
		{"a message past the relay", dhcpv6.MessageTypeSolicit, with(nil, client(), ia(1)), func(e *Env) { e.From = netip.MustParseAddr("fd00::1234") }, "not-link-local", ""},
	} {
		e := env()
		if c.env != nil {
			c.env(&e)
		}
		d := Decide(message(c.t, c.with...), e)
		got := ""
		if d.Reply != nil {
			got = text(d.Reply)
		}
		if diff := cmp.Diff(got, c.want); d.Code != c.code || diff != "" {
			t.Errorf("%s: code %q (%s), want %q; reply (got is -):\n%s", c.name, d.Code, d.Reason, c.code, diff)
		}
		if d.Reason == "" || strings.Contains(d.Reason, "%!") {
			t.Errorf("%s: no reason: %q", c.name, d.Reason)
		}
	}
}

func TestWhoAsks(t *testing.T) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x98, 0, 2}
	private := netip.MustParseAddr("fe80::1234:5678:9abc:def0")
	none := dhcp.MAC{}
	for _, c := range []struct {
		name string
		from netip.Addr
		duid dhcpv6.DUID
		key  string
		mac  dhcp.MAC
		uuid string
	}{
		{"UEFI: its card by its address, and its UUID", peer, uuid, "52:54:00:98:00:01", dhcp.MAC{0x52, 0x54, 0, 0x98, 0, 1}, "78563412-bc9a-ef4d-8123-000000000001"},
		{"a board without a UUID", peer, &dhcpv6.DUIDUUID{}, "52:54:00:98:00:01", dhcp.MAC{0x52, 0x54, 0, 0x98, 0, 1}, ""},
		{"an address that is not made of the card's", private, &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: 7, LinkLayerAddr: mac}, "52:54:00:98:00:02", dhcp.MAC(mac), ""},
		{"the same without a time", private, &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac}, "52:54:00:98:00:02", dhcp.MAC(mac), ""},
		{"no card at all", private, &dhcpv6.DUIDEN{EnterpriseNumber: 43793, EnterpriseIdentifier: []byte{1, 2}}, "00020000ab110102", none, ""},
		{"a DUID of another kind of network", private, &dhcpv6.DUIDLL{HWType: iana.HWTypeInfiniband, LinkLayerAddr: mac}, "00030020525400980002", none, ""},
		{"a group's address is no card's", netip.MustParseAddr("fe80::5354:ff:fe98:1"), uuid, "0004" + hex.EncodeToString(uuid.UUID[:]), dhcp.MAC{0x51, 0x54, 0, 0x98, 0, 1}, "78563412-bc9a-ef4d-8123-000000000001"},
	} {
		if c.name == "a group's address is no card's" {
			c.mac = none
		}
		e := env()
		e.From = c.from
		d := Decide(message(dhcpv6.MessageTypeSolicit, dhcpv6.OptClientID(c.duid), ia(1)), e)
		if d.Client.Key != c.key || d.Client.MAC != c.mac || d.Client.UUID != c.uuid {
			t.Errorf("%s: key %s, card %s, UUID %q, want %s, %s, %q", c.name, d.Client.Key, d.Client.MAC, d.Client.UUID, c.key, c.mac, c.uuid)
		}
	}
}

// forward is what a relay makes of a packet.
func forward(packet dhcpv6.DHCPv6, hops uint8, link, peer string, options ...dhcpv6.Option) *dhcpv6.RelayMessage {
	r := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayForward, HopCount: hops, LinkAddr: net.ParseIP(link), PeerAddr: net.ParseIP(peer)}
	for _, o := range options {
		r.Options.Add(o)
	}
	r.Options.Add(dhcpv6.OptRelayMessage(packet))
	return r
}

func TestRelays(t *testing.T) {
	solicit := message(dhcpv6.MessageTypeSolicit, append(http(), client(), ia(1))...)
	private := "fe80::1234:5678:9abc:def0"
	card := dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, net.HardwareAddr{0x52, 0x54, 0, 0x98, 0, 9})
	for _, c := range []struct {
		name   string
		packet dhcpv6.DHCPv6
		code   string
		mac    string
		want   []string
	}{
		{"the card by its address", forward(solicit, 0, "fd01::1", peer.String(), dhcpv6.OptInterfaceID([]byte("eth7"))), "advertise", "52:54:00:98:00:01",
			[]string{"RELAY-REPL hops 0 link fd01::1 peer fe80::5054:ff:fe98:1 interface eth7", "ADVERTISE", ": fd01::10"}},
		{"the card by what the relay says", forward(solicit, 0, "fd01::1", private, card), "advertise", "52:54:00:98:00:09", []string{"/boot/52-54-00-98-00-09/snponly.efi"}},
		{"no card", forward(solicit, 0, "fd01::1", private), "no-card", "00:00:00:00:00:00", nil},
		{"a switch without an address below a relay", forward(forward(solicit, 0, "::", private, card, dhcpv6.OptInterfaceID([]byte("port 3"))), 1, "fd01::1", "fe80::77", dhcpv6.OptInterfaceID([]byte("vlan 9"))),
			"advertise", "52:54:00:98:00:09",
			[]string{"RELAY-REPL hops 1 link fd01::1 peer fe80::77 interface vlan 9\nRELAY-REPL hops 0 link :: peer " + private + " interface port 3\nADVERTISE", ": fd01::10"}},
		{"two relays: the one at the client counts", forward(forward(solicit, 0, "fd01::1", peer.String()), 1, "fd00::1", "fd01::1"), "advertise", "52:54:00:98:00:01", []string{": fd01::10"}},
		{"a network that is not ours", forward(solicit, 0, "fd07::1", peer.String()), "no-subnet", "52:54:00:98:00:01", nil},
		{"a relay's message with nothing in it", &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayForward, LinkAddr: net.ParseIP("fd01::1"), PeerAddr: net.ParseIP("fe80::1")}, "not-for-us", "00:00:00:00:00:00", nil},
		{"a relay's answer", &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayReply}, "not-for-us", "00:00:00:00:00:00", nil},
		{"too many relays", func() dhcpv6.DHCPv6 {
			var p dhcpv6.DHCPv6 = solicit
			for i := range 9 {
				p = forward(p, uint8(i), "fd01::1", peer.String())
			}
			return p
		}(), "malformed", "00:00:00:00:00:00", nil},
	} {
		e := env()
		e.From = netip.MustParseAddr("fd01::1")
		answer := e.Answer
		e.Answer = func(m boot.Machine) boot.Answer {
			if m.Network.String() != "fd01::1" && m.Network.String() != "fd07::1" {
				t.Errorf("%s: it is said to be in the network of %s", c.name, m.Network)
			}
			return answer(m)
		}
		// Through the wire: the answer must be what a relay can read.
		packet, err := dhcpv6.FromBytes(c.packet.ToBytes())
		if err != nil {
			t.Fatal(err)
		}
		d := Decide(packet, e)
		got := ""
		if d.Reply != nil {
			back, err := dhcpv6.FromBytes(d.Reply.ToBytes())
			if err != nil {
				t.Fatal(err)
			}
			got = text(back)
		}
		if d.Code != c.code || d.Client.MAC.String() != c.mac || (c.want == nil) != (got == "") {
			t.Errorf("%s: code %q (%s), card %s, want %q, %s; reply:\n%s", c.name, d.Code, d.Reason, d.Client.MAC, c.code, c.mac, got)
		}
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, got)
			}
		}
	}
}

// A machine has many identity associations in its life, and the range is for all.
func TestAMachineDoesNotUseUpTheRange(t *testing.T) {
	table := NewTable(nil)
	e := env()
	e.Leases = table
	for i := range 200 {
		e.Now = start.Add(time.Duration(i) * time.Second)
		d := Decide(message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(byte(i))), e)
		if len(d.Changes) != 1 {
			t.Fatalf("start %d: %s", i, d.Reason)
		}
		table.put(d.Changes[0])
	}
	if table.Len() != maxPerClient {
		t.Errorf("one machine has %d addresses, want %d", table.Len(), maxPerClient)
	}
}

// A machine that is in two networks by one cable uses one name in both; what it has in one
// is not given away because it asks in the other.
func TestAMachineKeepsItsAddressWhenItAsksInAnotherNetwork(t *testing.T) {
	table := NewTable(nil)
	e := env()
	e.Leases = table
	decide := func(p dhcpv6.DHCPv6) Decision {
		t.Helper()
		d := Decide(p, e)
		for _, l := range d.Changes {
			table.put(l)
		}
		return d
	}
	ask := message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1))
	d := decide(ask)
	if len(d.Changes) != 1 {
		t.Fatal(d.Reason)
	}
	first := d.Changes[0]
	d = decide(forward(ask, 0, "fd01::1", peer.String()))
	if len(d.Changes) != 1 || !network().Subnets[1].Prefix.Contains(d.Changes[0].Addr) || d.Changes[0].Key != first.Key {
		t.Fatalf("got %v: %s", d.Changes, d.Reason)
	}
	second := d.Changes[0]
	// Somebody else asks for the first.
	e.From = netip.MustParseAddr("fe80::5054:ff:fe98:2")
	if d := decide(message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1, first.Addr.String()))); len(d.Changes) != 1 || d.Changes[0].Addr == first.Addr {
		t.Errorf("another machine gets %v: %s", d.Changes, d.Reason)
	}
	e.From = peer
	if d := decide(message(dhcpv6.MessageTypeRenew, client(), chosen(), ia(1, first.Addr.String()))); d.Code != "renew" || len(d.Changes) != 1 || d.Changes[0].Addr != first.Addr {
		t.Errorf("it renews the first: %s: %s", d.Code, d.Reason)
	}
	if d := decide(forward(message(dhcpv6.MessageTypeRelease, client(), chosen(), ia(1, second.Addr.String())), 0, "fd01::1", peer.String())); d.Code != "release" || len(d.Changes) != 1 || d.Changes[0].Addr != second.Addr {
		t.Errorf("it gives back the second: %s: %s, %v", d.Code, d.Reason, d.Changes)
	}
	if l, ok := table.ByAddr(first.Addr); !ok || l.Key != first.Key || !l.active(e.Now) {
		t.Errorf("the first is gone: %v", l)
	}
}

func TestNoGRUBByIPv6(t *testing.T) {
	e := env()
	e.Answer = func(boot.Machine) boot.Answer {
		return boot.Answer{Action: boot.Install, Code: "armed", Program: boot.GRUB}
	}
	d := Decide(message(dhcpv6.MessageTypeSolicit, append([]dhcpv6.Option{client(), ia(1)}, pxe()...)...), e)
	if d.Reply != nil || d.Code != "arch-unsupported" || !strings.Contains(d.Reason, "nbp: grub") {
		t.Errorf("got %s: %s", d.Code, d.Reason)
	}
}

// Every address of a range is given before one is refused, and none twice.
func TestRangeIsUsedUp(t *testing.T) {
	table := NewTable(nil)
	e := env()
	e.Leases = table
	ask := func(n int) Decision {
		e.From = netip.AddrFrom16([16]byte{0xfe, 0x80, 8: 0x50, 0x54, 0, 0xff, 0xfe, 1, byte(n >> 8), byte(n)})
		d := Decide(message(dhcpv6.MessageTypeRequest, client(), chosen(), ia(1)), e)
		for _, l := range d.Changes {
			if old, ok := table.ByAddr(l.Addr); ok && old.active(e.Now) && old.Key != l.Key {
				t.Fatalf("%s is given to %v and %v", l.Addr, old.Key, l.Key)
			}
			table.put(l)
		}
		return d
	}
	for n := range 256 {
		if d := ask(n); d.Code != "reply" {
			t.Fatalf("client %d: %s", n, d.Reason)
		}
	}
	if d := ask(256); d.Code != "pool-exhausted" || !d.Refused {
		t.Errorf("one more: %+v", d)
	}
	e.Now = start.Add(2 * time.Hour)
	if d := ask(256); d.Code != "reply" {
		t.Errorf("when leases have ended: %s", d.Reason)
	}
}

func TestDistanceAndAdvance(t *testing.T) {
	for _, c := range []struct {
		first, last string
		want        uint64
	}{
		{"fd00::1", "fd00::1", 0}, {"fd00::1", "fd00::ff", 254}, {"fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::", 1}, {"fd00::", "fd01::", ^uint64(0)},
	} {
		first, last := netip.MustParseAddr(c.first), netip.MustParseAddr(c.last)
		got := distance(first, last)
		if got != c.want {
			t.Errorf("from %s to %s: got %d, want %d", first, last, got, c.want)
		}
		if got != ^uint64(0) && advance(first, got) != last {
			t.Errorf("%s and %d is %s, want %s", first, got, advance(first, got), last)
		}
	}
}

func FuzzDecide(f *testing.F) {
	solicit := message(dhcpv6.MessageTypeSolicit, append(pxe(), client(), ia(1))...)
	for _, p := range []dhcpv6.DHCPv6{
		solicit, message(dhcpv6.MessageTypeRequest, append(http(), client(), chosen(), ia(1, "fd00::1001"), ia(2))...),
		message(dhcpv6.MessageTypeRebind, client(), ia(1, "fd00::1001", "fd09::1")), message(dhcpv6.MessageTypeDecline, client(), chosen(), ia(1, "fd00::1001")),
		forward(forward(solicit, 0, "::", peer.String()), 1, "fd01::1", "fe80::77", dhcpv6.OptInterfaceID([]byte("vlan 9"))),
	} {
		f.Add(p.ToBytes())
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		req, err := dhcpv6.FromBytes(packet)
		if err != nil {
			return
		}
		table := NewTable([]Lease{{Key: Key{"52:54:00:98:00:01", 1}, Addr: netip.MustParseAddr("fd00::1001"), Until: start.Add(time.Minute)}})
		e := env()
		e.Leases = table
		d := Decide(req, e)
		if d.Code == "" || d.Reason == "" {
			t.Fatalf("no reason: %+v", d)
		}
		if d.Reply != nil {
			if _, err := dhcpv6.FromBytes(d.Reply.ToBytes()); err != nil {
				t.Fatalf("the reply cannot be read: %v", err)
			}
			if got, want := d.Reply.IsRelay(), req.IsRelay(); got != want {
				t.Fatalf("the reply is for a relay: %v, want %v", got, want)
			}
		}
		seen := map[netip.Addr]bool{}
		for _, l := range d.Changes {
			if seen[l.Addr] {
				t.Fatalf("%s twice in one answer", l.Addr)
			}
			seen[l.Addr] = true
			if old, ok := table.ByAddr(l.Addr); ok && old.active(e.Now) && old.Client != l.Client {
				t.Fatalf("%s of %v is given to %v", l.Addr, old.Key, l.Key)
			}
		}
	})
}

// With several servers, who chose another one of them has not met a stranger.
func TestAPeerIsNoOtherServer(t *testing.T) {
	e := env()
	peer := ServerDUID([]byte("another seed"))
	ask := message(dhcpv6.MessageTypeRequest, client(), dhcpv6.OptServerID(peer), ia(1))
	if d := Decide(ask, e); d.Code != "other-server" {
		t.Errorf("a stranger: got %s, %s", d.Code, d.Reason)
	}
	e.Peers = []dhcpv6.DUID{ServerDUID([]byte("a third seed")), peer}
	if d := Decide(ask, e); d.Reply != nil || d.Code != "peer-server" || d.Refused {
		t.Errorf("a peer: got %s, %s", d.Code, d.Reason)
	}
	// Its lease is known here, and goes on here when that server is gone.
	table := NewTable(nil)
	table.Learn([]Lease{{Key: Key{"52:54:00:98:00:01", 1}, Addr: netip.MustParseAddr("fd00::1007"), Until: start.Add(time.Minute)}})
	e.Leases = table
	d := Decide(message(dhcpv6.MessageTypeRebind, client(), ia(1, "fd00::1007")), e)
	if d.Code != "renew" || len(d.Changes) != 1 || d.Changes[0].Addr != netip.MustParseAddr("fd00::1007") {
		t.Errorf("it asks everybody: got %s, %s, %v", d.Code, d.Reason, d.Changes)
	}
	table.Learn([]Lease{{Addr: netip.MustParseAddr("fd00::1007")}})
	if table.Len() != 0 {
		t.Error("a lease that is gone is in the table")
	}
}

// full is a line that lets nobody in.
type full struct{ asked []admit.MAC }

func (f *full) Ask(mac admit.MAC, _ bool, _ time.Time) admit.Verdict {
	f.asked = append(f.asked, mac)
	return admit.Verdict{Wait: 25 * time.Second, Limit: 18 * time.Second, Window: 8 * time.Second}
}

// While a line is full, firmware that has no address yet gets silence; all that has begun
// goes on.
func TestWhoHasToWaitForAdmission(t *testing.T) {
	listed := func(boot.Machine) boot.Answer { return boot.Answer{Action: boot.Install, Name: "w1"} }
	solicit := func(more ...dhcpv6.Option) *dhcpv6.Message {
		return message(dhcpv6.MessageTypeSolicit, append([]dhcpv6.Option{client(), ia(1)}, more...)...)
	}
	for _, c := range []struct {
		name          string
		m             *dhcpv6.Message
		beside, known bool
		code          string
		tftp, http    int // how often the lines are asked
	}{
		{"PXE", solicit(pxe()...), false, true, "busy", 1, 0},
		{"HTTP boot", solicit(http()...), false, true, "busy", 0, 1},
		{"iPXE", solicit(ipxe()...), false, true, "advertise", 0, 0},
		{"a system", solicit(), false, true, "advertise", 0, 0},
		{"PXE that has its offer", message(dhcpv6.MessageTypeRequest, append([]dhcpv6.Option{client(), chosen(), ia(1)}, pxe()...)...), false, true, "reply", 0, 0},
		{"HTTP boot beside another server", solicit(http()...), true, true, "proxy-advertise", 0, 1},
		{"a stranger's there", solicit(http()...), true, false, "busy", 0, 1},
	} {
		e, tftp, byHTTP := env(), &full{}, &full{}
		e.Line, e.HTTPLine, e.Network.Stateless = tftp, byHTTP, c.beside
		if c.known {
			e.Answer = listed
		}
		d := Decide(c.m, e)
		if d.Code != c.code || len(tftp.asked) != c.tftp || len(byHTTP.asked) != c.http || (d.Reply == nil) != (c.code == "busy") || (d.Verdict == nil) != (c.tftp+c.http == 0) {
			t.Errorf("%s: %s, %d and %d questions, verdict %v", c.name, d.Code, len(tftp.asked), len(byHTTP.asked), d.Verdict)
		}
	}
	// Who hides its card is a machine of its own, too.
	hidden, other := Client{Key: "0001"}, Client{Key: "0002"}
	if hidden.place() == other.place() || hidden.place() == (admit.MAC{}) {
		t.Errorf("two clients are one: %v", hidden.place())
	}
}
