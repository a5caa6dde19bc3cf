package server_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/catalog"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
)

// port67 is a DHCP socket in memory.
type port67 struct {
	in, out chan []byte
	closed  chan struct{}
	once    sync.Once
}

func (p *port67) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-p.in:
		return copy(b, m), &net.UDPAddr{IP: net.IPv4zero, Port: 68}, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

func (p *port67) WriteTo(b []byte, _ net.Addr) (int, error) {
	p.out <- append([]byte(nil), b...)
	return len(b), nil
}

func (p *port67) Close() error                     { p.once.Do(func() { close(p.closed) }); return nil }
func (p *port67) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (p *port67) SetDeadline(time.Time) error      { return nil }
func (p *port67) SetReadDeadline(time.Time) error  { return nil }
func (p *port67) SetWriteDeadline(time.Time) error { return nil }

// nothingKept is a lease store.
type nothingKept struct{}

func (nothingKept) Load() ([]dhcp.Lease, error) { return nil, nil }
func (nothingKept) Append([]dhcp.Lease) error   { return nil }

type quiet struct{}

func (quiet) Record(boot.Event) {}

type unarmed struct{}

func (unarmed) State(string) machine.State { return machine.Approved }

// meeting is a boot server on this host's own network, 127.0.0.0/8, of which every machine
// here has an address: what it learns can be asked of its catalog.
type meeting struct {
	*catalog.Catalog
	t    *testing.T
	dhcp *port67
	http string
}

var cards = map[string]net.HardwareAddr{"w1": {2, 0, 0, 0, 0, 1}, "w2": {2, 0, 0, 0, 0, 2}, "w3": {2, 0, 0, 0, 0, 3}, "other": {2, 0, 0, 0, 0, 9}}

const uuid1, uuid2 = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"

func meet(t *testing.T, mode plan.DHCPMode) *meeting {
	t.Helper()
	blob := func(name, digit string) boot.Blob {
		return boot.Blob{Name: name, SHA256: fmt.Sprintf("%064s", digit), Size: 1}
	}
	a := netip.MustParseAddr
	cat, err := catalog.New(catalog.Config{
		Plan: plan.Plan{
			Boot: plan.Boot{Unknown: plan.Discover, DHCP: mode, Subnets: []plan.Subnet{{Prefix: netip.MustParsePrefix("127.0.0.0/24"),
				First: a("127.0.0.100"), Last: a("127.0.0.110"), LeaseSeconds: 3600}}},
			Machines: []plan.Machine{{Name: "w1", UUID: uuid1, Address: a("127.0.0.11")}, {Name: "w2", UUID: uuid2, Address: a("127.0.0.12")}, {Name: "w3", Serial: "S3"}},
		},
		Kernel: blob("vmlinuz", "1"), States: unarmed{},
		Ignition: func(string) ([]byte, error) { return []byte(`{"ignition":{"version":"3.4.0"}}`), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &meeting{Catalog: cat, t: t, dhcp: &port67{in: make(chan []byte), out: make(chan []byte, 8), closed: make(chan struct{})}}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	files, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.http = "http://" + l.Addr().String()
	sockets := listen.Sockets{HTTP: l, TFTP: files}
	if mode != plan.DHCPOff {
		sockets.DHCP = m.dhcp
	}
	tasks, err := server.BootTasks(server.Config{Sockets: sockets, Address: a("127.0.0.1"), HTTPPort: 80, Source: cat, Leases: nothingKept{}, Recorder: quiet{},
		Open: func(string) (io.ReadSeekCloser, error) { return nil, os.ErrNotExist }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx, tasks...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return m
}

// asks sends a DHCP request of a machine's card; what there is no answer to is not waited for.
func (m *meeting) asks(t dhcpv4.MessageType, card, address string, options ...dhcpv4.Modifier) {
	m.t.Helper()
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: cards[card], Options: dhcpv4.Options{}}
	p.UpdateOption(dhcpv4.OptMessageType(t))
	p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(address)))
	for _, o := range options {
		o(p)
	}
	m.dhcp.in <- p.ToBytes()
}

// given takes an address by DHCP.
func (m *meeting) given(card, address string, options ...dhcpv4.Modifier) {
	m.t.Helper()
	m.asks(dhcpv4.MessageTypeRequest, card, address, options...)
	r, err := dhcpv4.FromBytes(<-m.dhcp.out)
	if err != nil || r.MessageType() != dhcpv4.MessageTypeAck || r.YourIPAddr.String() != address {
		m.t.Fatalf("%s asks for %s and gets %v, %v", card, address, r, err)
	}
}

func shows(uuid byte) dhcpv4.Modifier {
	id := make([]byte, 17)
	for i := range id[1:] {
		id[i+1] = uuid
	}
	return func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003001"))
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id))
	}
}

// gets asks by HTTP from an address.
func (m *meeting) gets(from, path string) {
	m.t.Helper()
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext, DisableKeepAlives: true}
	r, err := (&http.Client{Transport: transport}).Get(m.http + path)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		m.t.Fatal(err)
	}
}

func (m *meeting) named(card, want string) {
	m.t.Helper()
	if name, _ := m.Named(cards[card]); name != want {
		m.t.Errorf("the card of %s is %q's, want %q", card, name, want)
	}
}

func script(card, more string) string { return "/boot.ipxe?mac=" + cards[card].String() + more }

// Who a card is taken for follows from DHCP, and from what comes from the address that
// DHCP gave to that card. Anybody else may ask what it likes.
func TestNobodyIsRenamedByHTTPFromElsewhere(t *testing.T) {
	t.Parallel()
	m := meet(t, plan.DHCPAuthoritative)
	m.given("w2", "127.0.0.12", shows(0x22))
	m.named("w2", "w2")
	m.given("other", "127.0.0.100")
	for _, path := range []string{
		script("w2", "&uuid="+uuid1), "/ignition?mac=" + cards["w2"].String() + "&uuid=" + uuid1,
		"/files/" + fmt.Sprintf("%064s", "1") + "/vmlinuz?stage=kernel&mac=" + cards["w2"].String() + "&uuid=" + uuid1,
		script("w1", "&uuid="+uuid1), script("w3", "&serial=S3"),
	} {
		m.gets("127.0.0.100", path)
	}
	m.named("w2", "w2")
	m.named("w1", "")
	m.named("w3", "")
	// Nor by a machine itself while its system has its address.
	m.gets("127.0.0.12", script("w2", "&uuid="+uuid1))
	m.named("w2", "w2")
	m.given("w2", "127.0.0.12") // its system
	// A serial number is shown by iPXE only, which asks from the address of its card.
	m.given("w3", "127.0.0.101")
	m.gets("127.0.0.101", script("w3", "&serial=S3"))
	m.named("w3", "w3")
}

// Beside another server the addresses are known of those who netboot: they say which one
// they take.
func TestAProxyKnowsWhoNetboots(t *testing.T) {
	t.Parallel()
	m := meet(t, plan.DHCPProxy)
	takes := func(card, address string) {
		m.asks(dhcpv4.MessageTypeRequest, card, address, shows(0), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(127, 0, 0, 2))))
		// Its offer is what there is to wait for.
		m.asks(dhcpv4.MessageTypeDiscover, card, address, shows(0))
		<-m.dhcp.out
	}
	takes("w3", "127.0.0.50")
	m.gets("127.0.0.51", script("w3", "&serial=S3"))
	m.named("w3", "")
	m.gets("127.0.0.50", script("w3", "&serial=S3"))
	m.named("w3", "w3")
}

// Where DHCP is all another server's, nothing but requests by HTTP tell who is there.
func TestWithoutDHCPWhoAsksIsBelieved(t *testing.T) {
	t.Parallel()
	m := meet(t, plan.DHCPOff)
	m.gets("127.0.0.50", script("w3", "&serial=S3"))
	m.named("w3", "w3")
}
