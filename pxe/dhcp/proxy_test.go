package dhcp

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// newProxyLab is beside another server, with machines that may not netboot too.
func newProxyLab(t *testing.T) *lab {
	l := newLab(t)
	l.src.network.Proxy = true
	l.src.action = map[string]boot.Action{"node3": boot.None}
	return l
}

// at4011 makes the lab's next packets come to the boot server.
func (l *lab) at4011(from string) *lab {
	l.bootServer, l.from = true, netip.MustParseAddrPort(from)
	return l
}

func TestProxySpeaksToThoseOnlyWhoNetboot(t *testing.T) {
	http := opt(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...)
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"BIOS", discover(laptop, pxe(0)), "proxy-offer"},
		{"UEFI", discover(node1, pxe(7)), "proxy-offer"},
		{"iPXE", discover(laptop, ipxe), "proxy-offer"},
		{"HTTP boot", discover(laptop, http, opt(93, 0, 16)), "proxy-offer"},
		{"behind a relay", discover(laptop, pxe(7), relayed("10.0.7.1")), "proxy-offer"},
		{"behind a relay of somebody else's", discover(laptop, pxe(7), relayed("10.1.7.1")), "relay-unknown"},
		{"an operating system", discover(node1), "not-netbooting"},
		{"an operating system asks for an address", request(node1, wants("10.0.0.11"), toServer("10.0.0.1")), "not-netbooting"},
		{"an operating system with an address that we reserve for another one", request(node1, wants("10.0.0.12")), "not-netbooting"},
		{"an operating system wants to know the options", packet(dhcpv4.MessageTypeInform, node1, from("10.0.0.11")), "not-netbooting"},
		{"an operating system declines", packet(dhcpv4.MessageTypeDecline, node1, wants("10.0.0.11")), "not-netbooting"},
		{"a machine that shall be left alone", discover(laptop, pxe(7), uuid(0x33)), "armed"},
		{"firmware without a boot program", discover(laptop, pxe(11)), "arch-unsupported"},
		{"firmware takes the other server's address", request(node1, pxe(7), wants("10.0.0.77"), toServer("10.0.0.2")), "address-elsewhere"},
		{"firmware asks for an address of nobody", request(node1, pxe(7), wants("192.168.1.1")), "not-for-us"},
		{"firmware releases", packet(dhcpv4.MessageTypeRelease, node1, pxe(7), from("10.0.0.77")), "not-for-us"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newProxyLab(t).send(c.m)
			if d.Code != c.want {
				t.Fatalf("got %q (%s), want %q", d.Code, d.Reason, c.want)
			}
			if (d.Reply != nil) != (c.want == "proxy-offer") {
				t.Errorf("the reply is %v", d.Reply)
			}
		})
	}
}

// givesNothing checks that an answer is a proxy's.
func givesNothing(t *testing.T, r *dhcpv4.DHCPv4) {
	t.Helper()
	if !r.YourIPAddr.IsUnspecified() {
		t.Errorf("a proxy gives out %s", r.YourIPAddr)
	}
	for _, code := range []uint8{1, 3, 6, 12, 15, 28, 42, 51, 58, 59, 175} {
		if r.Options.Has(dhcpv4.GenericOptionCode(code)) {
			t.Errorf("a proxy sends option %d", code)
		}
	}
	if got := r.ServerIdentifier().String(); got != "10.0.0.1" {
		t.Errorf("option 54 is %s", got)
	}
	if got := r.ServerIPAddr.String(); got != "10.0.0.1" {
		t.Errorf("siaddr is %s", got)
	}
}

func TestProxyOffer(t *testing.T) {
	for _, c := range []struct {
		name         string
		mods         []modifier
		file, vendor string
	}{
		{"quirk 3: BIOS is told to take the file from the offer", []modifier{pxe(0), uuid(0x11)}, "undionly.kpxe", "\x06\x01\x08\xff"},
		{"quirks 1, 2: UEFI gets no option 43 and comes to port 4011", []modifier{pxe(7), uuid(0x11)}, "snponly.efi", ""},
		{"iPXE takes the script from the offer", []modifier{ipxe, uuid(0x11)}, files.Script, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newProxyLab(t).send(discover(laptop, c.mods...))
			r := d.Reply
			givesNothing(t, r)
			if r.MessageType() != dhcpv4.MessageTypeOffer || d.To.String() != "255.255.255.255:68" {
				t.Errorf("got %s to %s", r.MessageType(), d.To)
			}
			if r.ClassIdentifier() != "PXEClient" {
				t.Errorf("option 60 is %q", r.ClassIdentifier())
			}
			if got := string(r.Options.Get(dhcpv4.OptionVendorSpecificInformation)); got != c.vendor {
				t.Errorf("option 43 is %q, want %q", got, c.vendor)
			}
			option := strings.TrimRight(string(r.Options.Get(dhcpv4.OptionBootfileName)), "\x00")
			if r.BootFileName != c.file || option != c.file {
				t.Errorf("the file is %q and %q, want %q", r.BootFileName, option, c.file)
			}
			if !slices.Equal(r.Options.Get(dhcpv4.OptionClientMachineIdentifier)[1:], slices.Repeat([]byte{0x11}, 16)) {
				t.Error("option 97 is not mirrored")
			}
		})
	}
	l := newProxyLab(t)
	if got := l.send(discover(laptop, opt(60, []byte("HTTPClient:Arch:00016")...), opt(93, 0, 16))).Reply.ClassIdentifier(); got != "HTTPClient" {
		t.Errorf("option 60 for HTTP boot is %q", got)
	}
}

func TestBootServer(t *testing.T) {
	// WDS's and EDK2's form of the request, and a menu item that is asked for.
	item := opt(43, 71, 4, 0x80, 0, 0, 0, 255)
	for _, c := range []struct {
		name         string
		m            *dhcpv4.DHCPv4
		file, vendor string
	}{
		{"UEFI", request(node1, pxe(7), from("10.0.0.77")), "snponly.efi", ""},
		{"UEFI asks for a menu item", request(node1, pxe(7), from("10.0.0.77"), item), "snponly.efi", "\x47\x04\x80\x00\x00\x00\xff"},
		{"quirk 3: an old ROM", request(node1, pxe(0), from("10.0.0.77")), "undionly.kpxe", "\x06\x01\x08\xff"},
		{"iPXE", request(node1, ipxe, from("10.0.0.77")), files.Script, ""},
		{"a torn option 43", request(node1, pxe(7), from("10.0.0.77"), opt(43, 71, 9, 1)), "snponly.efi", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newProxyLab(t).at4011("10.0.0.77:4011").send(c.m)
			if d.Reply == nil {
				t.Fatalf("silence: %s: %s", d.Code, d.Reason)
			}
			givesNothing(t, d.Reply)
			if d.Reply.MessageType() != dhcpv4.MessageTypeAck || d.To.String() != "10.0.0.77:4011" || d.Reply.ClientIPAddr.String() != "10.0.0.77" {
				t.Errorf("got %s to %s for %s", d.Reply.MessageType(), d.To, d.Reply.ClientIPAddr)
			}
			if d.Reply.BootFileName != c.file {
				t.Errorf("the file is %q, want %q", d.Reply.BootFileName, c.file)
			}
			if got := string(d.Reply.Options.Get(dhcpv4.OptionVendorSpecificInformation)); got != c.vendor {
				t.Errorf("option 43 is %q, want %q", got, c.vendor)
			}
		})
	}
	for _, c := range []struct {
		name string
		m    *dhcpv4.DHCPv4
		want string
	}{
		{"an operating system", request(node1, from("10.0.0.77")), "not-netbooting"},
		{"a search for servers", discover(node1, pxe(7)), "not-for-us"},
		{"a machine that shall be left alone", request(laptop, pxe(7), uuid(0x33), from("10.0.0.77")), "armed"},
	} {
		if d := newProxyLab(t).at4011("10.0.0.77:68").send(c.m); d.Code != c.want || d.Reply != nil {
			t.Errorf("%s: got %q (%s), want %q", c.name, d.Code, d.Reason, c.want)
		}
	}
	if d := newProxyLab(t).at4011("0.0.0.0:68").send(request(node1, pxe(7))); d.Code != "malformed" {
		t.Errorf("a request from nowhere: %s", d.Code)
	}
	if d := newProxyLab(t).at4011("10.0.0.5:68").send(request(node1, pxe(7), from("203.0.113.9"))); d.To.Addr().String() != "10.0.0.5" {
		t.Errorf("an answer was turned to %s by what the packet says", d.To)
	}
}

// A boot program that is fetched afterwards belongs to a machine all the same.
func TestProxyKnowsWhoHasAnAddress(t *testing.T) {
	s, err := NewServer(Config{Address: us, Files: files, Source: newProxyLab(t).src})
	if err != nil {
		t.Fatal(err)
	}
	s.handle(request(node1, pxe(0), wants("10.0.0.77"), toServer("10.0.0.2")).ToBytes(), Socket{}, netip.AddrPort{})
	if mac, ok := s.Card(netip.MustParseAddr("10.0.0.77")); !ok || mac.String() != node1.String() {
		t.Errorf("got %s", mac)
	}
	if got := s.usage(); got != nil {
		t.Errorf("a proxy has pools: %v", got)
	}
	for i := range maxSeen + 10 {
		mac := MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		s.handle(request(mac, pxe(0), opt(50, 10, byte(i>>16), byte(i>>8), byte(i)), toServer("10.0.0.2")).ToBytes(), Socket{}, netip.AddrPort{})
	}
	if got := s.table.Len(); got > maxSeen {
		t.Errorf("a flood makes it remember %d addresses", got)
	}
}

func FuzzProxy(f *testing.F) {
	for _, m := range []*dhcpv4.DHCPv4{
		discover(node1, pxe(7), uuid(0x33), opt(61, 1, 2)), discover(laptop, ipxe, relayed("10.0.7.1"), opt(82, 5, 4, 10, 0, 7, 1, 11, 4, 10, 0, 7, 2)),
		discover(laptop, opt(60, []byte("HTTPClient:Arch:00016")...), opt(93, 0, 16)), discover(laptop),
		request(node1, pxe(0), wants("10.0.0.11"), toServer("10.0.0.2")), request(node1, pxe(7), from("10.0.0.11"), opt(43, 71, 4, 0, 0, 0, 0, 255)),
		packet(dhcpv4.MessageTypeInform, laptop, pxe(7), from("10.0.0.9")),
	} {
		f.Add(m.ToBytes(), false)
		f.Add(m.ToBytes(), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, bootServer bool) {
		req, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		src := source()
		src.network.Proxy = true
		d := Decide(req, Env{Now: noon, Server: us, BootServer: bootServer, From: netip.MustParseAddrPort("10.0.0.77:68"),
			Network: src.network, Leases: NewTable(nil), Answer: src.Decide, Files: files})
		if d.Code == "" || d.Reason == "" {
			t.Errorf("no code or reason: %+v", d)
		}
		if d.Change != Keep && d.Change != See {
			t.Errorf("a proxy makes the change %s", d.Change)
		}
		if d.Reply == nil {
			return
		}
		if !d.Client.boots() {
			t.Errorf("a proxy answers who does not netboot: %s", d.Reason)
		}
		wire := d.Reply.ToBytes()
		r, err := dhcpv4.FromBytes(wire)
		if err != nil || len(wire) < 300 {
			t.Fatalf("a reply of %d bytes: %v", len(wire), err)
		}
		want := dhcpv4.MessageTypeOffer
		if bootServer {
			want = dhcpv4.MessageTypeAck
		}
		if got := r.MessageType(); got != want || !r.YourIPAddr.IsUnspecified() || r.Options.Has(dhcpv4.OptionIPAddressLeaseTime) {
			t.Errorf("a proxy sends %s with %s", got, r.YourIPAddr)
		}
	})
}
