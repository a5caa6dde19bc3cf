package cli

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/pin/tftp/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/pxe/server"
)

// routeList is a log that hears what servers say that they serve.
type routeList struct {
	slog.Handler
	mu       sync.Mutex
	patterns map[string][]string
}

// Handle implements slog.Handler.
func (l *routeList) Handle(ctx context.Context, rec slog.Record) error {
	if rec.Message == "routes" {
		var name string
		var patterns []string
		rec.Attrs(func(a slog.Attr) bool {
			switch v := a.Value.Any().(type) {
			case string:
				name = v
			case []string:
				patterns = v
			}
			return true
		})
		l.mu.Lock()
		l.patterns[name] = patterns
		l.mu.Unlock()
	}
	return l.Handler.Handle(ctx, rec)
}

func (l *routeList) of(name string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.patterns[name]
}

// nothingLeftOut looks for sockets that serve could have and that nobody walks.
func (r *rack) nothingLeftOut() {
	r.Helper()
	// These have the handlers of their namesakes, or answer nobody; port 4011 is a proxy's.
	left := []string{"HTTP6", "TFTP6", "DHCP6", "Routers", "BootServer", "Links", "MTU"}
	all := reflect.ValueOf(r.on.sockets)
	for i := range all.NumField() {
		if name := all.Type().Field(i).Name; all.Field(i).IsZero() != slices.Contains(left, name) && name != "MTU" {
			r.Errorf("%s of listen.Sockets is walked: %v", name, !all.Field(i).IsZero())
		}
	}
}

// examples are what a stranger would put into patterns that have places for it, and behind
// those that take more.
func (r *rack) examples() map[string][]string {
	r.Helper()
	out := map[string][]string{
		"/boot.ipxe": {"/boot.ipxe", "/boot.ipxe?mac=52:54:00:00:00:01&uuid=x&serial=y&platform=efi", "/boot.ipxe?mac=52:54:00:00:00:02"},
		"/ignition":  {"/ignition", "/ignition?mac=52:54:00:00:00:01", "/ignition?mac=52:54:00:00:00:02"},
	}
	const program, file = "/boot/{mac}/{name}", "/files/{sha256}/{name}"
	for _, last := range []string{"00", "01", "02", "99"} {
		out[program] = append(out[program], "/boot/52:54:00:00:00:"+last+"/snponly.efi")
	}
	for _, b := range r.on.site.public {
		out[file] = append(out[file], "/files/"+b.SHA256+"/"+b.Name)
	}
	for _, path := range []string{"notes.txt", "secrets/w1-bmc", "state/identity.age", "context.json"} {
		sha, _, err := store.HashFile(r.Context(), filepath.Join(r.dir, path))
		if err != nil {
			r.Fatal(err)
		}
		out[file] = append(out[file], "/files/"+sha+"/"+filepath.Base(path))
	}
	for _, f := range []protoreflect.FileDescriptor{api.File_imagectl_v1_enrol_proto, api.File_imagectl_v1_agent_proto, api.File_imagectl_v1_operator_proto, api.File_imagectl_v1_node_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			service := fmt.Sprintf("/%s/", s.FullName())
			for j := range s.Methods().Len() {
				out[service] = append(out[service], service+string(s.Methods().Get(j).Name()))
			}
		}
	}
	return out
}

// paths are what is asked for because of a pattern.
func (r *rack) paths(pattern string, examples map[string][]string) []string {
	r.Helper()
	path := pattern[strings.Index(pattern, "/"):]
	if all := examples[path]; all != nil {
		return all
	}
	exact := strings.TrimSuffix(path, "{$}")
	if exact == path && (strings.Contains(path, "{") || strings.HasSuffix(path, "/")) {
		r.Errorf("%s is served, and there is no example of what to ask for: add some", pattern)
	}
	return []string{exact}
}

// walkTFTP asks for all that is there, and for the files around.
func (r *rack) walkTFTP() {
	r.Helper()
	fetch := func(name string) []byte {
		c, err := tftp.NewClient(r.tftp.String())
		if err != nil {
			r.Fatal(err)
		}
		c.SetTimeout(20 * time.Second)
		var got bytes.Buffer
		from, err := c.Receive(name, "octet")
		if err == nil {
			_, err = from.WriteTo(&got)
		}
		r.found.add("TFTP", got.Bytes())
		r.found.add("TFTP", fmt.Append(nil, err))
		return got.Bytes()
	}
	for _, name := range server.TFTPNames(server.Extras{GRUB: true}) {
		if len(fetch(name)) == 0 {
			r.Errorf("TFTP has no %s", name)
		}
	}
	files := 0
	named := regexp.MustCompile(`\(tftp,[^)]*\)/([^']+)'`)
	for _, last := range []string{"00", "01", "02", "99"} {
		for _, uuid := range []string{"none", "01020304-0506-0708-090a-0b0c0d0e0fff"} {
			config := fetch("imagectl/52:54:00:00:00:" + last + "/" + uuid + "/machine.cfg")
			for _, found := range named.FindAllSubmatch(config, -1) {
				if len(fetch(string(found[1]))) > 0 {
					files++
				}
				// What w1 may load is not for everybody.
				fetch(strings.Replace(string(found[1]), "52:54:00:00:00:"+last, "52:54:00:00:00:00", 1))
			}
		}
	}
	if files == 0 {
		r.Error("GRUB was told of no file that it could load")
	}
	for _, name := range []string{"notes.txt", "../notes.txt", "..\\notes.txt", "/" + r.dir + "/notes.txt", "state/identity.age", "../../../../../../../../" + r.dir + "/secrets/w1-bmc", "..%2fcontext.json",
		"imagectl/52:54:00:00:00:02/kernel/../../../secrets/w1-bmc", "imagectl/52:54:00:00:00:02/none/../machine.cfg"} {
		fetch(name)
	}
}

// walkDHCP lets every machine and a stranger ask for an address in all ways of booting.
func (r *rack) walkDHCP() {
	r.Helper()
	option := func(code uint8, v string) dhcpv4.Modifier {
		return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), []byte(v))
	}
	pxe := func(arch byte) []dhcpv4.Modifier {
		return []dhcpv4.Modifier{option(60, fmt.Sprintf("PXEClient:Arch:%05d:UNDI:003016", arch)), option(93, "\x00"+string(arch)), option(97, "\x00"+strings.Repeat("u", 16))}
	}
	booting := map[string][]dhcpv4.Modifier{
		"a system": nil, "BIOS": pxe(0), "UEFI": pxe(7), "HTTP boot": {option(60, "HTTPClient:Arch:00016:UNDI:003016"), option(93, "\x00\x10")},
		"iPXE": append(pxe(7), option(77, "iPXE"), option(175, "\x12\x01\x01\x13\x01\x01\x21\x01\x01\x10\x01\x02\x15\x01\x01\x17\x01\x01\x18\x01\x01")),
	}
	wants := dhcpv4.WithRequestedOptions(dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer, dhcpv4.OptionHostName, dhcpv4.OptionDomainName, dhcpv4.OptionNTPServers,
		dhcpv4.OptionLogServer, dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName, dhcpv4.OptionVendorSpecificInformation, dhcpv4.GenericOptionCode(252))
	for _, last := range []byte{0, 1, 2, 0x99} {
		card := net.HardwareAddr{0x52, 0x54, 0, 0, 0, last}
		for how, shown := range booting {
			ask := func(kind dhcpv4.MessageType, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
				return r.dhcp.ask(r.T, append(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(card), wants, dhcpv4.WithMessageType(kind)}, shown...), more...)...)
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
	for _, b := range r.dhcp.answers {
		r.found.add("DHCP", b)
	}
	r.Logf("DHCP: %d answers", len(r.dhcp.answers))
}

// dhcpWire is a network with one DHCP server: packets to it, and what it answers.
type dhcpWire struct {
	net.PacketConn
	in, out chan []byte
	closed  chan struct{}
	close   func()
	answers [][]byte
}

func newDHCPWire() *dhcpWire {
	w := &dhcpWire{in: make(chan []byte), out: make(chan []byte, 64), closed: make(chan struct{})}
	w.close = sync.OnceFunc(func() { close(w.closed) })
	return w
}

func (w *dhcpWire) ReadFrom(p []byte) (int, net.Addr, error) {
	select {
	case b := <-w.in:
		return copy(p, b), &net.UDPAddr{IP: net.IPv4zero, Port: 68}, nil
	case <-w.closed:
		return 0, nil, net.ErrClosed
	}
}

func (w *dhcpWire) WriteTo(p []byte, _ net.Addr) (int, error) {
	w.out <- bytes.Clone(p)
	return len(p), nil
}

func (w *dhcpWire) Close() error { w.close(); return nil }

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
		next = message(dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 1}), dhcpv4.WithMessageType(dhcpv4.MessageTypeInform), dhcpv4.WithClientIP(net.IPv4(192, 0, 2, 99)))
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
