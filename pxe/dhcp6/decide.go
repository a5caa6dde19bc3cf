// Package dhcp6 answers DHCPv6 requests (RFC 8415) and points netbooting machines
// (RFC 5970) at their boot program: UEFI by TFTP or HTTP, and iPXE. Where another
// server gives out the addresses (boot.Network6.Stateless) it only does the latter.
//
// A packet's life is decode, decide, encode, as in package dhcp. Decide is pure: it
// sees the packet and an Env, and returns a reply or the reason for silence. Server is
// the only one that touches a socket and the lease store. An address is given only
// after its lease is durable; an offer is not kept, since the choice of an address
// comes out the same again.
//
// It is not a general DHCPv6 server: no temporary addresses, no prefixes, no
// reconfiguration, no authentication, no dynamic DNS. It does not advertise itself as
// a router: without the router's advertisements no client asks DHCPv6 for anything.
package dhcp6

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

const (
	// declineTime is how long an address rests after a client found it in use.
	declineTime = 10 * time.Minute
	// maxIAs bounds the identity associations of one message: a host asks for one
	// address of each card.
	maxIAs = 8
	// maxRelays is RFC 8415's HOP_COUNT_LIMIT.
	maxRelays = 8
)

// Env is everything a decision depends on besides the packet.
type Env struct {
	Now time.Time
	// From is who sent the packet: the client, or the relay nearest to us.
	From netip.Addr
	// Server is our address on the boot network, which boot files come from; DUID is
	// our name in DHCPv6.
	Server netip.Addr
	DUID   dhcpv6.DUID
	// Peers are the names of further servers that share the leases.
	Peers   []dhcpv6.DUID
	Network *boot.Network6
	Leases  Leases
	// Answer is boot.Source's Decide.
	Answer func(boot.Machine) boot.Answer
	Files  BootFiles
	// Line says which machines may begin to netboot, HTTPLine which of those that boot by
	// HTTP; nil lets all of them.
	Line, HTTPLine dhcp.Line
}

// BootFiles are the network boot programs.
type BootFiles struct {
	// UEFI and UEFIArm64 are URLs of iPXE by TFTP, for x86-64 and, empty where there is
	// none, for arm64; Script is what iPXE continues with, which expands ${...} in it.
	UEFI, UEFIArm64, Script string
	// HTTP begins the URL that UEFI HTTP boot gets, such as http://[fd00::1]:8080, and
	// Programs are the names of what it loads there; see dhcp.ProgramURL.
	HTTP     string
	Programs map[boot.Firmware]string
}

// Decision is the outcome for one packet.
type Decision struct {
	// Client is the sender; Answer is what it boots when it netboots. Type is its
	// message's, without the relays'.
	Client Client
	Answer boot.Answer
	Type   dhcpv6.MessageType
	// Reply is nil for silence. It goes back to who sent the packet.
	Reply dhcpv6.DHCPv6
	// Verdict is the Line's; nil when the Line was not asked.
	Verdict *admit.Verdict
	// Changes are for the lease table, and durable before the reply leaves.
	Changes []Lease
	// Other is the server that the client chose, where that is none of ours.
	Other dhcpv6.DUID
	// Code is a stable word; Reason is one sentence. Refused says that the client
	// does not get what it needs to go on.
	Code    string
	Reason  string
	Refused bool
}

// refused marks a decision as one that stops its client.
func (d Decision) refused() Decision { d.Refused = true; return d }

func silent(code, format string, args ...any) Decision {
	return Decision{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// ServerDUID is a name for a server that stays the same as long as its seed does.
func ServerDUID(seed []byte) dhcpv6.DUID {
	sum := sha256.Sum256(append([]byte("imagectl DHCPv6 server v1\n"), seed...))
	d := &dhcpv6.DUIDUUID{UUID: [16]byte(sum[:16])}
	d.UUID[6] = d.UUID[6]&0x0f | 0x80 // version 8 and variant of RFC 9562
	d.UUID[8] = d.UUID[8]&0x3f | 0x80
	return d
}

// Decide says what to do with a packet. It touches nothing.
func Decide(packet dhcpv6.DHCPv6, env Env) Decision {
	req, err := unwrap(packet, env.From)
	if err != nil {
		return silent("not-for-us", "the packet is ignored: %v", err)
	}
	if len(req.relays) > maxRelays {
		return silent("malformed", "the packet came through %d relays, more than %d", len(req.relays), maxRelays)
	}
	client, err := identify(req)
	if err != nil {
		return silent("malformed", "the packet is ignored: %v", err)
	}
	q := &query{request: req, Env: env, client: client, given: map[netip.Addr]bool{}}
	m := client.machine()
	if m.Network = req.link(); !m.Network.IsValid() {
		m.Network = env.Server
	}
	q.answer = env.Answer(m)
	d := q.decide()
	d.Client, d.Answer, d.Type = client, q.answer, req.msg.MessageType
	return d
}

// query is one packet with all it is judged by.
type query struct {
	request
	Env
	client Client
	answer boot.Answer
	// subnet is the client's; unset where another server gives out the addresses.
	subnet boot.Subnet6
	// given are the addresses of this answer.
	given map[netip.Addr]bool
}

func (q *query) decide() Decision {
	if len(q.relays) == 0 && !q.peer.IsLinkLocalUnicast() {
		// RFC 8415 lets clients leave out the relay only if their server asks them to.
		return silent("not-link-local", "it comes from %s and not from a link-local address", q.peer)
	}
	if d, wrong := q.misaddressed(); wrong {
		return d
	}
	from := q.link()
	if !from.IsValid() {
		from = q.Server
	}
	var ok bool
	if q.subnet, ok = subnetOf(q.Network, from); !ok && !(q.Network.Stateless && len(q.relays) == 0) {
		return silent("no-subnet", "no subnet of boot.dhcp6 in cluster.yaml contains %s, where the request comes from", from).refused()
	}
	if reason, code := q.refusesBoot(); code != "" {
		return silent(code, "%s", reason).refused()
	}
	if q.msg.MessageType == dhcpv6.MessageTypeInformationRequest {
		return Decision{Reply: q.wrap(q.reply(dhcpv6.MessageTypeReply)), Code: "information", Reason: "told the options of the network" + q.bootNote()}
	}
	if q.Network.Stateless {
		return q.beside()
	}
	if n := len(q.msg.Options.IANA()); n > maxIAs {
		return silent("malformed", "it asks for %d addresses at a time, more than %d", n, maxIAs)
	}
	switch q.msg.MessageType {
	case dhcpv6.MessageTypeSolicit:
		verdict, busy := q.admission(false)
		if busy != nil {
			return *busy
		}
		d := q.solicit()
		if d.Reply != nil {
			d.Verdict = verdict
		}
		return d
	case dhcpv6.MessageTypeRequest:
		return q.bind("reply")
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		return q.renew()
	case dhcpv6.MessageTypeConfirm:
		return q.confirm()
	case dhcpv6.MessageTypeRelease:
		return q.giveUp("release", "gave back", func(l Lease) Lease { l.Until = q.Now; return l })
	default: // Decline; misaddressed lets nothing else through
		return q.giveUp("decline", "found in use by something else on the network:", func(l Lease) Lease {
			l.State, l.Until = Declined, q.Now.Add(declineTime)
			return l
		})
	}
}

// misaddressed says whether a message is for another server, or breaks the rules of
// RFC 8415 section 16 on identifiers.
func (q *query) misaddressed() (Decision, bool) {
	t := q.msg.MessageType
	client, server := q.msg.Options.ClientID(), q.msg.Options.ServerID()
	needsServer := false
	switch t {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if server != nil {
			return silent("malformed", "a %s names no server", t), true
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		needsServer = true
	case dhcpv6.MessageTypeInformationRequest:
		if len(q.msg.Options.IANA()) > 0 {
			return silent("malformed", "an information request asks for no address"), true
		}
	default:
		return silent("not-for-us", "message type %s is not for a server", t), true
	}
	if client == nil && t != dhcpv6.MessageTypeInformationRequest {
		return silent("malformed", "it has no client identifier"), true
	}
	if server == nil {
		return silent("malformed", "a %s names its server", t), needsServer
	}
	if bytes.Equal(server.ToBytes(), q.DUID.ToBytes()) {
		return Decision{}, false
	}
	if slices.ContainsFunc(q.Peers, func(p dhcpv6.DUID) bool { return bytes.Equal(server.ToBytes(), p.ToBytes()) }) {
		return silent("peer-server", "the client chose another server of this cluster"), true
	}
	d := silent("other-server", "the client chose another DHCPv6 server: one gives out addresses here too; switch it off, or set boot.dhcp6.mode: stateless in cluster.yaml")
	d.Refused, d.Other = q.client.boots() && !q.Network.Stateless, server
	return d, true
}

// refusesBoot says why a netbooting machine gets no answer at all: then its firmware
// goes on to the next boot device. What a machine boots never decides over the address
// of a running system.
func (q *query) refusesBoot() (reason, code string) {
	if !q.client.boots() {
		return "", ""
	}
	switch {
	case q.client.Stage == dhcp.HTTPBoot && q.Files.HTTP == "":
		return "UEFI boots by HTTPS here, and that is not served over IPv6", "https-only"
	case q.client.Stage == dhcp.HTTPBoot && q.Files.Programs[q.client.Firmware] == "":
		return fmt.Sprintf("there is no program for HTTP boot of architecture %v of option 61", q.client.Archs), "arch-unsupported"
	case q.client.Stage == dhcp.HTTPBoot && q.client.MAC == dhcp.MAC{}:
		return "nothing tells its network card, by which HTTP boot goes; let its relay say the card (option 79)", "no-card"
	case q.client.Stage == dhcp.Firmware && q.client.Firmware == boot.UEFIarm64 && q.Files.UEFIArm64 == "":
		return dhcp.NoArm64, "arch-unsupported"
	case q.client.Stage == dhcp.Firmware && q.program() == "":
		return fmt.Sprintf("there is no boot program over IPv6 for architecture %v of option 61", q.client.Archs), "arch-unsupported"
	case q.client.Stage == dhcp.Firmware && q.client.Firmware == boot.UEFIx64 && q.answer.Program == boot.GRUB:
		return "its boot program is GRUB (nbp: grub), which is served over IPv4 only", "arch-unsupported"
	case q.answer.Action == boot.None:
		return q.answer.Reason, q.answer.Code
	}
	return "", ""
}

// beside answers a message that asks for addresses where another server gives them
// out. UEFI's HTTP boot joins our offer without an address with that server's; its PXE
// takes such an offer for one to redirect it to port 4011.
func (q *query) beside() Decision {
	if q.msg.MessageType == dhcpv6.MessageTypeSolicit && q.client.Stage == dhcp.HTTPBoot {
		verdict, busy := q.admission(true)
		if busy != nil {
			return *busy
		}
		return Decision{Reply: q.wrap(q.reply(dhcpv6.MessageTypeAdvertise)), Verdict: verdict, Code: "proxy-advertise", Reason: "another server gives the address" + q.bootNote()}
	}
	d := silent("stateless", "another server gives out the addresses (boot.dhcp6.mode: stateless)")
	if q.client.Stage == dhcp.Firmware {
		d.Reason += "; UEFI's PXE takes its boot file from that one only: let it send option 59, " + q.program()
	}
	return d
}

// admission asks the Line for firmware that will load its program; busy is silence. Where
// another server gives out the addresses that would send it to its next boot device, so
// only machines that cluster.yaml does not name are held back there.
func (q *query) admission(beside bool) (verdict *admit.Verdict, busy *Decision) {
	line := q.Line
	if q.client.Stage == dhcp.HTTPBoot {
		line = q.HTTPLine
	}
	if line == nil || q.client.Stage != dhcp.Firmware && q.client.Stage != dhcp.HTTPBoot {
		return nil, nil
	}
	v := line.Ask(q.client.place(), q.answer.Name != "", q.Now)
	if beside && q.answer.Name != "" {
		v.Admitted = true
	}
	if v.Admitted {
		return &v, nil
	}
	d := silent("busy", "%s", v.Refusal()).refused()
	d.Verdict = &v
	return nil, &d
}

func subnetOf(n *boot.Network6, a netip.Addr) (boot.Subnet6, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return boot.Subnet6{}, false
}
