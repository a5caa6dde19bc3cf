// Package replay answers a captured boot again, packet by packet, as a server with
// this configuration would, and says why: for a machine that does not boot at a
// place where nobody can look. Nothing is sent and nothing is kept.
//
// It sees DHCP and DHCPv6 requests and what other servers answered them, and TFTP requests
// for files. It knows no leases but those of the capture, and does not judge whether
// the client liked the answers.
package replay

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
	"github.com/imagectl/imagectl/pxe/grub"
	"github.com/imagectl/imagectl/pxe/quirk"
	"github.com/imagectl/imagectl/pxe/tftp"
)

// Config is what packets are judged by.
type Config struct {
	// Env is without Now and Leases; see Link for its Link. Env6 is, too, and without DUID; where its Network
	// is nil, DHCPv6 is left out.
	Env  dhcp.Env
	Env6 dhcp6.Env
	// TFTP are the names of the files that are served by TFTP, and MTU is the boot
	// network's. GRUB says that it gets what it asks for by further names.
	TFTP []string
	GRUB bool
	MTU  int
}

// Step is one packet and what becomes of it.
type Step struct {
	At time.Time `json:"at"`
	// Client is the address of its card, Machine its name in cluster.yaml; each is
	// empty when not known.
	Client  string `json:"client,omitempty"`
	Machine string `json:"machine,omitempty"`
	// Asked is what the packet says.
	Asked string `json:"asked"`
	// Code is a stable word: the decision's, or "seen" for what another server or
	// this one answered when the capture was made.
	Code   string `json:"code"`
	Reason string `json:"reason"`
	// Answer are the parts of the answer that matter for booting; none for silence.
	Answer []string `json:"answer,omitempty"`
	// Quirks are those that changed the outcome.
	Quirks []Quirk `json:"quirks,omitempty"`
}

// Quirk says why an answer is not the usual.
type Quirk struct {
	Name     string `json:"name"`
	Habit    string `json:"habit"`
	Answer   string `json:"answer"`
	Evidence string `json:"evidence"`
}

// CodeSeen marks what was answered when the capture was made.
const CodeSeen = "seen"

// Read replays a capture: pcap, pcapng, or text with one DHCP message in
// hexadecimal on each line. Packets of other protocols are left out.
func Read(r io.Reader, cfg Config) ([]Step, error) {
	s := &session{Config: cfg, replay: dhcp.NewReplay(cfg.Env), replay6: dhcp6.NewReplay(cfg.Env6), cards: map[netip.Addr]net.HardwareAddr{}}
	if err := read(r, s.see); err != nil {
		return nil, err
	}
	return s.steps, nil
}

type session struct {
	Config
	replay  *dhcp.Replay
	replay6 *dhcp6.Replay
	// cards is who got an address in the capture.
	cards map[netip.Addr]net.HardwareAddr
	steps []Step
}

func (s *session) see(d datagram) {
	switch d.to.Port() {
	case 67, 68, 4011:
		s.dhcp(d)
	case 546, 547:
		if s.Env6.Network != nil {
			s.dhcp6(d)
		}
	case 69:
		s.tftp(d)
	}
}

func (s *session) dhcp(d datagram) {
	step := Step{At: d.at}
	defer func() { s.steps = append(s.steps, step) }()
	req, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		step.Asked, step.Code, step.Reason = "a broken DHCP packet", "malformed", printable(err.Error())
		return
	}
	step.Client = req.ClientHWAddr.String()
	if req.OpCode == dhcpv4.OpcodeBootReply {
		if a, ok := netip.AddrFromSlice(req.YourIPAddr.To4()); ok && !a.IsUnspecified() && req.MessageType() == dhcpv4.MessageTypeAck {
			s.cards[a] = req.ClientHWAddr
		}
		step.Asked = fmt.Sprintf("%s by the server %s", req.MessageType(), req.ServerIdentifier())
		step.Code, step.Reason, step.Answer = CodeSeen, "this is what was answered when it was captured", bootParts(req)
		return
	}
	_, decision, err := s.replay.Packet(d.at, d.from, d.to, d.payload)
	if err != nil {
		step.Asked, step.Code, step.Reason = "a broken DHCP packet", "malformed", printable(err.Error())
		return
	}
	step.Asked = fmt.Sprintf("%s from %s", req.MessageType(), decision.Client.Stage)
	if class := req.ClassIdentifier(); class != "" {
		step.Asked += ", " + printable(class)
	}
	if d.to.Port() == 4011 {
		step.Asked += ", to port 4011"
	}
	step.Machine, step.Code, step.Reason = decision.Answer.Name, decision.Code, decision.Reason
	step.Quirks = s.quirks(decision.Quirks)
	if decision.Reply != nil {
		step.Answer = bootParts(decision.Reply)
		if decision.Delay > 0 {
			step.Answer = append(step.Answer, "after "+decision.Delay.String())
		}
	}
}

func (s *session) quirks(names []string) []Quirk {
	var out []Quirk
	for _, q := range s.Env.Quirks.All() {
		if slices.Contains(names, q.Name) {
			out = append(out, Quirk{q.Name, q.Habit, q.Answer, strings.Join(strings.Fields(q.Evidence), " ")})
		}
	}
	return out
}

// bootParts says what of an answer matters for booting.
func bootParts(m *dhcpv4.DHCPv4) []string {
	out := []string{m.MessageType().String()}
	add := func(name, value string) {
		if value != "" {
			out = append(out, name+" "+printable(value))
		}
	}
	if !m.YourIPAddr.IsUnspecified() {
		add("address", m.YourIPAddr.String())
	}
	if !m.ServerIPAddr.IsUnspecified() {
		add("siaddr", m.ServerIPAddr.String())
	}
	add("file", m.BootFileName)
	if name := string(m.Options.Get(dhcpv4.OptionBootfileName)); strings.TrimRight(name, "\x00") != m.BootFileName {
		add("option 67", name)
	}
	add("option 60", m.ClassIdentifier())
	if v := m.Options.Get(dhcpv4.OptionVendorSpecificInformation); v != nil {
		add("option 43", fmt.Sprintf("%x", v))
	}
	return out
}

// overhead is what an IPv4 packet with a TFTP block has besides the block, and
// overhead6 an IPv6 packet.
const overhead, overhead6 = 32, 52

func (s *session) tftp(d datagram) {
	req, err := tftp.ParseRequest(d.payload)
	step := Step{At: d.at}
	defer func() { s.steps = append(s.steps, step) }()
	if err != nil {
		step.Asked, step.Code, step.Reason = "a packet to the TFTP port", "malformed", "the packet is ignored: "+err.Error()
		return
	}
	card := s.cards[d.from.Addr()]
	if card == nil {
		card = d.card
	}
	answer := s.Env.Answer(boot.Machine{MAC: card})
	effect, names := s.Env.Quirks.Apply(quirk.TFTP, quirk.Client{MAC: card}, answer.Quirks)
	step.Client, step.Machine = card.String(), answer.Name
	step.Asked = fmt.Sprintf("TFTP request for %q", printable(req.Name))
	for _, o := range req.Options {
		step.Asked += fmt.Sprintf(", %s %s", printable(o.Name), printable(o.Value))
	}
	_, made := grub.Parse(req.Path())
	switch {
	case slices.Contains(s.TFTP, req.File()) || s.GRUB && made:
	case s.GRUB && grub.Spare(req.Path()):
		step.Code, step.Reason = tftp.CodeNoSuchFile, "there is no such file, and shim and GRUB need none"
		return
	default:
		step.Code, step.Reason = tftp.CodeNoSuchFile, fmt.Sprintf("there is no file %q here; there are %s", printable(req.File()), strings.Join(s.TFTP, ", "))
		return
	}
	step.Quirks = s.quirks(names)
	step.Code, step.Reason = "sent", "sends "+req.File()
	over := overhead
	if d.to.Addr().Is6() {
		over = overhead6
	}
	step.Answer = []string{fmt.Sprintf("%s in blocks of %d bytes", req.File(), req.Complying(effect).BlockSize(s.MTU-over))}
}

// printable makes a stranger's text fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, strings.TrimRight(s, "\x00"))
}
