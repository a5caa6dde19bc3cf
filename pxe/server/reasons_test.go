package server

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/httpboot"
	"github.com/imagectl/imagectl/pxe/listen"
)

// believed doubts nothing.
func believed(netip.Addr, boot.Machine, string) string { return "" }

// quiet is a Source with one machine, cp1, whose address is one of the loopback interface.
type quiet struct{}

var (
	cp1Card, strangersCard = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 9}
	cp1At, strangerAt      = netip.MustParseAddr("127.0.0.50"), netip.MustParseAddr("127.0.0.60")
)

func (quiet) Decide(m boot.Machine) boot.Answer {
	if m.MAC.String() == cp1Card.String() || m.UUID == "cp1" {
		return boot.Answer{Action: boot.Install, Name: "cp1", Address: cp1At, Code: "armed", Reason: "it is armed"}
	}
	return boot.Answer{Action: boot.Local, Code: "unknown-machine", Reason: "it is not in cluster.yaml"}
}
func (quiet) Ignition(boot.Machine) ([]byte, error) { return []byte("{}"), nil }
func (quiet) Blob(string) (boot.Blob, bool)         { return boot.Blob{}, false }
func (quiet) Network6() *boot.Network6              { return &boot.Network6{} }
func (quiet) Network() *boot.Network {
	return &boot.Network{
		Subnets:  []boot.Subnet{{Prefix: netip.MustParsePrefix("127.0.0.0/24"), First: strangerAt, Last: strangerAt.Next(), Lease: time.Hour}},
		Reserved: map[netip.Addr]string{cp1At: "cp1", netip.MustParseAddr("127.0.0.1"): "syslog"},
	}
}

// air is where DHCP is heard, in memory.
type air struct {
	in, out chan []byte
	done    chan struct{}
	once    sync.Once
}

func (a *air) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case b := <-a.in:
		return copy(p, b), &net.UDPAddr{IP: net.IPv4zero, Port: 68}, nil
	case <-a.done:
		return 0, nil, net.ErrClosed
	}
}
func (a *air) WriteTo(p []byte, _ net.Addr) (int, error) {
	a.out <- append([]byte(nil), p...)
	return len(p), nil
}
func (a *air) Close() error                     { a.once.Do(func() { close(a.done) }); return nil }
func (a *air) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (a *air) SetDeadline(time.Time) error      { return nil }
func (a *air) SetReadDeadline(time.Time) error  { return nil }
func (a *air) SetWriteDeadline(time.Time) error { return nil }

// forgetful keeps no leases.
type forgetful struct{}

func (forgetful) Load() ([]dhcp.Lease, error) { return nil, nil }
func (forgetful) Append([]dhcp.Lease) error   { return nil }

// told is a Journal whose events can be waited for.
type told struct {
	Journal
	came chan boot.Event
}

func (r *told) Record(e boot.Event) {
	r.Journal.Record(e)
	r.came <- e
}

// wait returns the next event that a machine's firmware asked for by no DHCP.
func (r *told) wait(t *testing.T) boot.Event {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		select {
		case e := <-r.came:
			if e.Stage != boot.StageDHCP {
				return e
			}
		case <-limit:
			t.Fatal("there is no event")
		}
	}
}

// small is a boot server on the loopback interface, whose DHCP has given cp1 its address
// and a stranger another.
type small struct {
	*told
	tftp  net.Addr
	http  string
	https string
}

func startSmall(t *testing.T) small {
	t.Helper()
	dhcpAir := &air{in: make(chan []byte), out: make(chan []byte, 16), done: make(chan struct{})}
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp := func() net.Listener {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	s := small{told: &told{came: make(chan boot.Event, 1000)}, tftp: udp.LocalAddr()}
	sockets := listen.Sockets{DHCP: dhcpAir, TFTP: udp, HTTP: tcp(), BootTLS: tcp(), MTU: 1500}
	s.http, s.https = "http://"+sockets.HTTP.Addr().String(), "https://"+sockets.BootTLS.Addr().String()
	server := netip.MustParseAddr("127.0.0.1")
	tlsConfig, err := selfSigned(server)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := BootTasks(Config{Sockets: sockets, Address: server, HTTPPort: 80, Source: quiet{}, Open: func(string) (io.ReadSeekCloser, error) { return nil, errors.New("there is none") },
		BootTLS: tlsConfig, BootTLSPort: 8444, IPXEBIOS: make([]byte, 5000), IPXEUEFI: make([]byte, 5000), Leases: forgetful{}, Recorder: s, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, tasks...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for at, mac := range map[netip.Addr]net.HardwareAddr{cp1At: cp1Card, strangerAt: strangersCard} {
		p, err := dhcpv4.New(dhcpv4.WithHwAddr(mac), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(at.AsSlice())),
			dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")))
		if err != nil {
			t.Fatal(err)
		}
		dhcpAir.in <- p.ToBytes()
		ack, err := dhcpv4.FromBytes(<-dhcpAir.out)
		if err != nil || ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(at.AsSlice()) {
			t.Fatalf("%s got %v, %v", mac, ack, err)
		}
	}
	return s
}

// selfSigned is what no firmware has the CA of.
func selfSigned(address netip.Addr) (*tls.Config, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	c := x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "boot"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{address.AsSlice()}}
	der, err := x509.CreateCertificate(rand.Reader, &c, &c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return httpboot.TLS(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k}), address, time.Now())
}

// A transfer by TFTP that begins and fails has its reason, with the machine's name.
func TestWhyATransferFailedIsKnownOfTheMachine(t *testing.T) {
	t.Parallel()
	s := startSmall(t)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: cp1At.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("\x00\x01snponly.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00"), s.tftp); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, from, err := conn.ReadFrom(make([]byte, 2048))
	if err != nil {
		t.Fatal(err)
	}
	if e := s.wait(t); e.Detail != "fetches snponly.efi by TFTP" {
		t.Fatalf("got %+v", e)
	}
	if _, err := conn.WriteTo([]byte("\x00\x05\x00\x03out of memory\x00"), from); err != nil {
		t.Fatal(err)
	}
	const want = `snponly.efi: its firmware gave up with TFTP error 3 (no room for it: "out of memory") after 0 of 4 blocks of 1468 bytes: look at its screen (broken-off)`
	e := s.wait(t)
	if e.Name != "cp1" || e.Stage != boot.StageNBP || e.Refusal.Code != "broken-off" || e.Detail != want {
		t.Errorf("got %+v", e)
	}
	if all := s.Events(cp1Card); len(all) == 0 || all[len(all)-1].Detail != want {
		t.Errorf("why has %v", all)
	}
}

// curl's OpenSSL says of an unknown CA what EDK2's says.
func TestFirmwareWithoutTheCAIsTold(t *testing.T) {
	t.Parallel()
	s := startSmall(t)
	curl := func(from netip.Addr, argv ...string) {
		t.Helper()
		argv = append([]string{"--silent", "--fail", "--interface", from.String(), "--max-time", "60", "--output", t.TempDir() + "/out"}, argv...)
		if err := exec.CommandContext(t.Context(), "curl", argv...).Run(); err == nil || errors.Is(err, exec.ErrNotFound) {
			t.Fatalf("curl %q: %v (apt-get install curl)", argv, err)
		}
	}
	curl(netip.MustParseAddr("127.0.0.77"), s.https) // of nobody: no event
	for _, c := range []struct {
		argv []string
		want string
	}{
		{[]string{s.https}, "its firmware broke off when it saw the certificate, and its alert cannot be read: most likely it does not have the CA of --boot-tls-cert; give it that one"}, // TLS 1.3
		{[]string{"--tls-max", "1.2", s.https}, "its firmware does not have the CA of --boot-tls-cert: give it that one in its setup (TLS Auth Configuration, Server CA), as docs/netboot.md says (TLS alert 48, tls: unknown certificate authority)"},
		{[]string{strings.Replace(s.https, "https:", "http:", 1)}, "it does not speak TLS; a URL in its setup has to begin with https:// (tls: first record does not look like a TLS handshake)"},
		{[]string{"--tls-max", "1.2", "--ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256", s.https}, "its firmware and this server do not agree: it needs TLS 1.2 or newer with RSA (tls: no cipher suite supported by both client and server"},
	} {
		curl(cp1At, c.argv...)
		e := s.wait(t)
		if e.Name != "cp1" || e.Stage != boot.StageNBP || e.Refusal.Code != codeTLS || !strings.HasPrefix(e.Detail, "HTTPS boot does not come about: "+c.want) || !strings.HasSuffix(e.Detail, " ("+codeTLS+")") {
			t.Errorf("%q: got %+v", c.argv, e)
		}
	}
	// One that is through is no event of this kind, nor when it ends.
	curl(cp1At, "--insecure", s.https)
	if len(s.came) > 0 {
		t.Errorf("and %+v", <-s.came)
	}
}

func TestWhatAHandshakeEndsWith(t *testing.T) {
	t.Parallel()
	remote := func(n tls.AlertError) error { return &net.OpError{Op: "remote error", Err: n} }
	for _, c := range []struct {
		err  error
		want string
	}{
		{remote(45), "its firmware takes the certificate of --boot-tls-cert for expired: look at the clock"},
		{remote(80), "its firmware says no (tls: internal error)"},
		{io.EOF, "its firmware closed the connection without a word: it may have no CA at all in its setup"},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), "its firmware and this server do not agree"},
	} {
		if got := handshakeFailure(c.err); !strings.HasPrefix(got, "HTTPS boot does not come about: "+c.want) {
			t.Errorf("%v: %s", c.err, got)
		}
	}
}

// What a request says about its sender counts where nothing is known against it.
func TestWhomARequestIsBelieved(t *testing.T) {
	t.Parallel()
	s := startSmall(t)
	get := func(from string, path string) {
		t.Helper()
		transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}
		defer transport.CloseIdleConnections()
		r, err := (&http.Client{Transport: transport}).Get(s.http + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			t.Errorf("%s from %s: %s", path, from, r.Status)
		}
	}
	script := "/boot.ipxe?mac=" + cp1Card.String()
	for _, c := range []struct {
		name, from, path string
		believed         bool
	}{
		{"the machine itself", cp1At.String(), script, true},
		{"another machine", strangerAt.String(), script, false},
		{"an address that nobody has", "127.0.0.99", script, false},
		{"a stranger himself", strangerAt.String(), "/boot.ipxe?mac=" + strangersCard.String(), true},
		{"a stranger of whom nothing is known", "127.0.0.99", "/boot.ipxe?mac=02:00:00:00:00:77", true},
	} {
		get(c.from, c.path)
		get(cp1At.String(), "/ignition?mac="+cp1Card.String()) // the next event, if there is none before
		first := s.wait(t)
		if got := first.Stage == boot.StageScript; got != c.believed {
			t.Errorf("%s: the event is %+v", c.name, first)
		}
		if first.Stage == boot.StageScript {
			s.wait(t)
		}
	}
}

// The rules by themselves, also those for which there is no packet above.
func TestDoubts(t *testing.T) {
	t.Parallel()
	held := map[string]net.HardwareAddr{cp1At.String(): cp1Card, strangerAt.String(): strangersCard, "fd00::1000": strangersCard}
	w := witness{source: quiet{},
		holder: func(a netip.Addr) (net.HardwareAddr, bool) { mac, ok := held[a.String()]; return mac, ok },
		addressOf: func(mac net.HardwareAddr) (netip.Addr, bool) {
			return cp1At, mac.String() == cp1Card.String()
		}}
	for _, c := range []struct {
		from string
		m    boot.Machine
		name string
		want string
	}{
		{cp1At.String(), boot.Machine{MAC: cp1Card}, "cp1", ""},
		{cp1At.String(), boot.Machine{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}, "cp1", ""}, // its other card
		{cp1At.String(), boot.Machine{UUID: "cp1"}, "cp1", ""},
		{strangerAt.String(), boot.Machine{UUID: "cp1"}, "cp1", "127.0.0.60 is the address of the card 02:00:00:00:00:09"},
		{"127.0.0.99", boot.Machine{UUID: "cp1"}, "cp1", "it names no card, and 127.0.0.99 was given to none; iPXE always names its own"},
		{"127.0.0.99", boot.Machine{MAC: cp1Card}, "cp1", "the card 02:00:00:00:00:01 has the address 127.0.0.50"},
		{"127.0.0.99", boot.Machine{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}, "cp2", ""},
		{"fd00::1000", boot.Machine{MAC: cp1Card}, "cp1", "fd00::1000 is the address of the card 02:00:00:00:00:09"},
		{"fd00::2000", boot.Machine{MAC: cp1Card}, "cp1", ""},
	} {
		if got := w.doubt(netip.MustParseAddr(c.from), c.m, c.name); got != c.want {
			t.Errorf("%s as %v: got %q, want %q", c.from, c.m, got, c.want)
		}
	}
	if got := w.doubt(netip.Addr{}, boot.Machine{MAC: cp1Card}, "cp1"); got != "" {
		t.Errorf("who has no address: %q", got)
	}
}
