package cli

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
)

func option4(code uint8, v string) dhcpv4.Modifier {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), []byte(v))
}

func pxe4(arch byte) []dhcpv4.Modifier {
	return []dhcpv4.Modifier{option4(60, fmt.Sprintf("PXEClient:Arch:%05d:UNDI:003016", arch)), option4(93, "\x00"+string(arch)), option4(97, "\x00"+strings.Repeat("u", 16))}
}

// waysToBoot are what a machine adds to its messages by what it runs.
func waysToBoot() map[string][]dhcpv4.Modifier {
	return map[string][]dhcpv4.Modifier{
		"BIOS": pxe4(0), "UEFI": pxe4(7), "UEFI on arm64": pxe4(11),
		"HTTP boot":          {option4(60, "HTTPClient:Arch:00016:UNDI:003016"), option4(93, "\x00\x10")},
		"HTTP boot on arm64": {option4(60, "HTTPClient:Arch:00019:UNDI:003016"), option4(93, "\x00\x13")},
		"iPXE":               append(pxe4(7), option4(77, "iPXE"), option4(175, "\x12\x01\x01\x13\x01\x01\x21\x01\x01\x10\x01\x02\x15\x01\x01\x17\x01\x01\x18\x01\x01")),
	}
}

// everyOption asks for all that a server may have to say.
func everyOption() dhcpv4.Modifier {
	return dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName, dhcpv4.OptionDomainName, dhcpv4.OptionNTPServers,
		dhcpv4.OptionLogServer, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, dhcpv4.OptionVendorSpecificInformation, dhcpv4.GenericOptionCode(252))
}

// walkDHCP lets every machine and a stranger ask for an address in all ways of booting.
func (r *rack) walkDHCP() {
	r.Helper()
	booting := waysToBoot()
	booting["a system"] = nil
	for _, last := range []byte{0, 1, 2, 0x99} {
		card := net.HardwareAddr{0x52, 0x54, 0, 0, 0, last}
		for how, shown := range booting {
			ask := func(kind dhcpv4.MessageType, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
				return r.dhcp.ask(r.T, append(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(card), everyOption(), dhcpv4.WithMessageType(kind)}, shown...), more...)...)
			}
			offer := ask(dhcpv4.MessageTypeDiscover)
			if offer == nil {
				r.Errorf("%s by %s is offered nothing", card, how)
				continue
			}
			own := offer.YourIPAddr
			ack := ask(dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(own)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())))
			if ack.MessageType() != dhcpv4.MessageTypeAck {
				r.Errorf("%s by %s was offered %s and is answered %s", card, how, own, ack)
			}
			ask(dhcpv4.MessageTypeInform, dhcpv4.WithClientIP(own))
		}
	}
	r.answered("DHCP", r.dhcp.answers)
}

// answered keeps what came back, which has to be something.
func (r *rack) answered(by string, answers [][]byte) {
	r.Helper()
	if len(answers) == 0 {
		r.Errorf("%s answered nothing", by)
	}
	for _, b := range answers {
		r.found.add(by, b)
	}
	r.Logf("%s: %d answers", by, len(answers))
}

// dhcpWire is a network with one DHCP server, and fence what that answers at once.
type dhcpWire struct {
	link
	fence   []dhcpv4.Modifier
	answers [][]byte
}

func newDHCPWire(fence ...dhcpv4.Modifier) *dhcpWire {
	return &dhcpWire{link: newLink(&net.UDPAddr{IP: net.IPv4zero, Port: 68}), fence: append(fence, dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 1}))}
}

// ask returns the answer to a message, nil for silence. What needs no lease is answered in
// its order, so that an answer to the next one means silence; a request waits for its own.
func (w *dhcpWire) ask(t *testing.T, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	message := func(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(mods...)
		if err != nil {
			t.Fatal(err)
		}
		w.in <- m.ToBytes()
		return m
	}
	m := message(mods...)
	next := m
	if m.MessageType() != dhcpv4.MessageTypeRequest {
		next = message(w.fence...)
	}
	var got *dhcpv4.DHCPv4
	for {
		select {
		case b := <-w.out:
			a, err := dhcpv4.FromBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			w.answers = append(w.answers, b)
			if a.TransactionID == m.TransactionID {
				got = a
			}
			if a.TransactionID == next.TransactionID {
				return got
			}
		case <-time.After(time.Minute):
			t.Fatalf("no answer to %s", next.Summary())
		}
	}
}

// walkProxy lets every machine and a stranger look for a boot program beside another
// server: by broadcast, and on port 4011 from an address that they have.
func (r *rack) walkProxy() {
	r.Helper()
	for _, last := range []byte{0, 1, 2, 0x99} {
		for how, shown := range waysToBoot() {
			mods := append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr{0x52, 0x54, 0, 0, 0, last}), everyOption()}, shown...)
			for _, asked := range []struct {
				wire *dhcpWire
				mods []dhcpv4.Modifier
			}{
				{r.dhcp, []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}},
				{r.bootServer, []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(net.IPv4(192, 0, 2, last))}},
				// An item of a boot menu, and the boot server that it stands for.
				{r.bootServer, []dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(net.IPv4(192, 0, 2, last)), option4(43, "\x47\x04\x00\x01\x00\x00\xff")}},
			} {
				if a := asked.wire.ask(r.T, append(mods, asked.mods...)...); a == nil {
					r.Errorf("52:54:00:00:00:%02x by %s is not answered", last, how)
				}
			}
		}
	}
	r.answered("proxyDHCP", r.dhcp.answers)
	r.answered("port 4011", r.bootServer.answers)
}

// walkDHCP6 lets every machine and a stranger ask for an address and for the options of
// the network, in all ways of booting.
func (r *rack) walkDHCP6() {
	r.Helper()
	class := func(text string) dhcpv6.Option {
		return &dhcpv6.OptVendorClass{EnterpriseNumber: 343, Data: [][]byte{[]byte(text)}}
	}
	booting := map[string][]dhcpv6.Option{
		"a system": nil, "UEFI": {class("PXEClient:Arch:00007:UNDI:003016"), dhcpv6.OptClientArchType(7)},
		"UEFI on arm64":      {class("PXEClient:Arch:00011:UNDI:003016"), dhcpv6.OptClientArchType(11)},
		"HTTP boot":          {class("HTTPClient:Arch:00016:UNDI:003016"), dhcpv6.OptClientArchType(16)},
		"HTTP boot on arm64": {class("HTTPClient:Arch:00019:UNDI:003016"), dhcpv6.OptClientArchType(19)},
		"iPXE":               {class("PXEClient:Arch:00007:UNDI:003016"), dhcpv6.OptClientArchType(7), &dhcpv6.OptUserClass{UserClasses: [][]byte{[]byte("iPXE")}}},
	}
	// Options of RFC 3646, 4075, 5908, 5970 and 8415: resolvers, time, boot file, vendor's.
	every := dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionSNTPServerList, dhcpv6.OptionNTPServer,
		dhcpv6.OptionBootfileURL, dhcpv6.OptionBootfileParam, dhcpv6.OptionVendorOpts, dhcpv6.OptionFQDN)
	for _, last := range []byte{0, 1, 2, 0x99} {
		card := net.HardwareAddr{0x52, 0x54, 0, 0, 0, last}
		for how, shown := range booting {
			if last == 2 && how == "UEFI" {
				continue // its boot program is GRUB, which is for IPv4 only
			}
			ask := func(kind dhcpv6.MessageType, more ...dhcpv6.Option) *dhcpv6.Message {
				return r.dhcp6.ask(r.T, card, kind, append(append([]dhcpv6.Option{every}, shown...), more...)...)
			}
			address := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, last}}
			offer := ask(dhcpv6.MessageTypeSolicit, address)
			if offer == nil || offer.Options.OneIANA() == nil || offer.Options.OneIANA().Options.OneAddress() == nil {
				r.Errorf("%s by %s is offered nothing: %v", card, how, offer)
				continue
			}
			given := ask(dhcpv6.MessageTypeRequest, offer.Options.OneIANA(), dhcpv6.OptServerID(offer.Options.ServerID()))
			if given == nil || given.MessageType != dhcpv6.MessageTypeReply {
				r.Errorf("%s by %s is answered %v", card, how, given)
			}
			for _, more := range [][]dhcpv6.Option{nil, {dhcpv6.OptServerID(offer.Options.ServerID())}} {
				if a := ask(dhcpv6.MessageTypeInformationRequest, more...); a == nil {
					r.Errorf("%s by %s is told nothing about the network", card, how)
				}
			}
		}
	}
	r.answered("DHCPv6", r.dhcp6.answers)
}

// dhcp6Wire is a link with one DHCPv6 server.
type dhcp6Wire struct {
	link
	answers [][]byte
	number  byte
}

// ask returns the answer to a message, nil for silence: each is followed by one that is
// answered at once. What needs a lease is answered when that is durable, and waited for.
func (w *dhcp6Wire) ask(t *testing.T, card net.HardwareAddr, kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	t.Helper()
	message := func(card net.HardwareAddr, kind dhcpv6.MessageType, options ...dhcpv6.Option) dhcpv6.TransactionID {
		w.number++
		m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{0, byte(kind), w.number}}
		m.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: card}))
		for _, o := range options {
			m.AddOption(o)
		}
		w.in <- m.ToBytes()
		return m.TransactionID
	}
	asked := message(card, kind, options...)
	next := asked
	if kind != dhcpv6.MessageTypeRequest {
		next = message(net.HardwareAddr{2, 0, 0, 0, 0, 1}, dhcpv6.MessageTypeInformationRequest)
	}
	var got *dhcpv6.Message
	for {
		select {
		case b := <-w.out:
			a, err := dhcpv6.MessageFromBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			w.answers = append(w.answers, b)
			if a.TransactionID == asked {
				got = a
			}
			if a.TransactionID == next {
				return got
			}
		case <-time.After(time.Minute):
			t.Fatalf("no answer to a %s", kind)
		}
	}
}

// link is a socket: packets to it, and what it sends.
type link struct {
	net.PacketConn
	from    *net.UDPAddr
	in, out chan []byte
	closed  chan struct{}
	close   func()
}

func newLink(from *net.UDPAddr) link {
	w := link{from: from, in: make(chan []byte), out: make(chan []byte, 64), closed: make(chan struct{})}
	w.close = sync.OnceFunc(func() { close(w.closed) })
	return w
}

func (w link) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case b := <-w.in:
		return copy(p, b), w.from, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	}
}

func (w link) WriteTo(p []byte, _ net.Addr) (int, error) {
	w.out <- bytes.Clone(p)
	return len(p), nil
}

func (w link) SetReadDeadline(time.Time) error { return nil }
func (w link) Close() error                    { w.close(); return nil }

// noRouters is a link without a router: whoever waits for one has waited.
type noRouters struct{ link }

func (noRouters) ReadFrom([]byte) (int, net.Addr, error) { return 0, nil, os.ErrDeadlineExceeded }

func (noRouters) WriteTo(p []byte, _ net.Addr) (int, error) { return len(p), nil }
