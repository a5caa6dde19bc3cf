// Package dhcp answers DHCPv4 requests (RFC 2131) as the authority of its
// subnets, and points netbooting machines (RFC 4578) at their boot program. As a
// proxy (boot.Network.Proxy) it only does the latter, beside another server.
//
// A packet's life is decode, decide, encode. Decide is pure: it sees the request
// and an Env, and returns a reply or the reason for silence. Server is the only
// one that touches a socket and the lease store. An address is acknowledged only
// after its lease is durable.
//
// It is not a general DHCP server: Ethernet and IPv4 only, no BOOTP, no dynamic
// DNS, no probing of addresses before they are offered (the netbooted system may
// itself answer the probe).
package dhcp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/quirk"
)

// holdTime is how long an offered address waits for its request. UEFI sends the
// request within its first time-out of 4 s; a later request is still honoured
// when nobody else took the address.
const holdTime = 30 * time.Second

// declineTime is how long an address rests after a client found it in use.
const declineTime = 10 * time.Minute

// Leases is the view of the lease table that a decision needs.
type Leases interface {
	// ByMAC are the leases of a card in any order, ended or not, but not what it has
	// declined. They are the table's, and good until it changes.
	ByMAC(MAC) []Lease
	ByAddr(netip.Addr) (Lease, bool)
	// Free names an address from first to last that is in share, nobody has and skip
	// does not reject, preferring those that were never given out, then the one whose
	// lease ended first.
	Free(first, last netip.Addr, share Share, skip func(netip.Addr) bool, now time.Time) (netip.Addr, bool)
}

// Env is everything a decision depends on besides the packet.
type Env struct {
	Now time.Time
	// Server is our address on the boot network: boot files come from it.
	Server netip.Addr
	// Link is our address in the network that the packet came from when no relay
	// sent it; the zero value means Server.
	Link netip.Addr
	// BootServer says that the packet came to port 4011, From whence.
	BootServer bool
	From       netip.AddrPort
	Network    *boot.Network
	Leases     Leases
	// Answer is boot.Source's Decide.
	Answer func(boot.Machine) boot.Answer
	Files  BootFiles
	// Quirks are the firmware habits to mind; the zero value minds none.
	Quirks quirk.Set
	// Line says which machines may begin to boot now, HTTPLine which of those that boot
	// by HTTP; nil lets all of them.
	Line, HTTPLine Line
	// Peers are servers that share our leases; Share is what we offer first.
	Peers []netip.Addr
	Share Share
}

// Line is the part of admit.Line that a decision needs.
type Line interface {
	Ask(mac admit.MAC, listed bool, now time.Time) admit.Verdict
}

// BootFiles are the network boot programs.
type BootFiles struct {
	// BIOS, UEFI and UEFIArm64 are TFTP names of iPXE, and Shim is what loads GRUB. UEFI is
	// for x86-64; UEFIArm64 is empty where there is none.
	BIOS, UEFI, UEFIArm64, Shim string
	// Script is the URL that iPXE continues with; iPXE expands ${...} in it.
	Script string
	// HTTP begins the URL that UEFI HTTP boot gets, such as http://10.0.0.1:8080, and
	// Programs are the names of what it loads there; see ProgramURL.
	HTTP     string
	Programs map[boot.Firmware]string
	// Syslog is where iPXE sends what it says; the zero value for nowhere.
	Syslog netip.Addr
}

// Change is what a decision does to the lease table.
type Change string

// The changes. Bind, End and Decline are durable; See is not even certain.
const (
	Keep Change = ""
	// Hold keeps an offered address for its client.
	Hold Change = "hold"
	// Bind gives the address.
	Bind Change = "bind"
	// End gives it back.
	End Change = "end"
	// Decline puts the address aside.
	Decline Change = "decline"
	// See remembers whose address it is that another server gave.
	See Change = "see"
)

// Decision is the outcome for one packet.
type Decision struct {
	// Client is the sender; Answer is what it boots when it netboots.
	Client Client
	Answer boot.Answer
	// Reply is nil for silence. To is where it goes.
	Reply *dhcpv4.DHCPv4
	To    netip.AddrPort
	// Delay is how long the reply waits before it leaves.
	Delay time.Duration
	// Quirks are the names of those that changed the outcome.
	Quirks []string
	// Verdict is the Line's; nil when the Line was not asked.
	Verdict *admit.Verdict
	// Change and Lease are for the table.
	Change Change
	Lease  Lease
	// Code is a stable word; Reason is one sentence. Refused says that the client
	// does not get what it needs to go on.
	Code    string
	Reason  string
	Refused bool
}

// refused marks a decision as one that stops its client.
func (d Decision) refused() Decision { d.Refused = true; return d }

// Decide says what to do with a request. It touches nothing.
func Decide(req *dhcpv4.DHCPv4, env Env) Decision {
	client, err := identify(req)
	if err != nil {
		return silent("not-for-us", "the packet is ignored: %v", err)
	}
	d := decideFor(req, client, env)
	d.Client = client
	return d
}

func decideFor(req *dhcpv4.DHCPv4, client Client, env Env) Decision {
	r := &query{DHCPv4: req, Env: env, client: client, own: env.Leases.ByMAC(client.MAC), relay: relayOf(req), kind: messageType(req),
		requested: optionAddr(req, dhcpv4.OptionRequestedIPAddress), chosen: optionAddr(req, dhcpv4.OptionServerIdentifier)}
	if why := r.strangeRelay(); why != "" {
		return silent("relay-unknown", "%s", why).refused()
	}
	r.answer = env.Answer(r.machine())
	var quirks []string
	if client.boots() {
		r.effect, quirks = env.Quirks.Apply(quirk.DHCP, shows(req, client), r.answer.Quirks)
	}
	d := r.decide()
	d.Answer, d.Quirks = r.answer, quirks
	if d.Reply != nil {
		d.Delay = r.effect.Delay
	}
	if id := r.relay.circuit + r.relay.remote; id != "" && client.boots() {
		d.Reason += fmt.Sprintf(" (option 82: circuit %q, remote %q)", r.relay.circuit, r.relay.remote)
	}
	if len(quirks) > 0 {
		d.Reason += " (quirk " + strings.Join(quirks, ", ") + ")"
	}
	return d
}

// query is one packet with all it is judged by.
type query struct {
	*dhcpv4.DHCPv4
	Env
	client Client
	// own are the client's leases.
	own   []Lease
	relay relay
	// kind is the message's type, requested the address of option 50, chosen the server of
	// option 54; the zero value where they are missing.
	kind              dhcpv4.MessageType
	requested, chosen netip.Addr
	answer            boot.Answer
	// effect is of the client's quirks; the zero value unless it netboots.
	effect quirk.Effect
	// subnet is the client's; unset for a proxy.
	subnet boot.Subnet
}

func silent(code, format string, args ...any) Decision {
	return Decision{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// origin is an address in the client's network: what the relay says, what a
// client that renews has already, or ours there.
func (r *query) origin() netip.Addr {
	if r.relay.agent.IsValid() {
		return r.relay.link
	}
	if a := r.renewed(); a.IsValid() {
		return a
	}
	return r.link()
}

// renewed is the address for which a client writes to us directly, past its relay
// (RFC 2131 section 4.3.2). It must be the client's, or else a machine that was
// moved here from another network would keep the address it had there.
func (r *query) renewed() netip.Addr {
	a, t := addr(r.ClientIPAddr), r.kind
	if t == dhcpv4.MessageTypeInform {
		return a
	}
	if t != dhcpv4.MessageTypeRequest || r.requested.IsValid() {
		return netip.Addr{}
	}
	if _, ok := r.has(a); ok || r.answer.Address == a {
		return a
	}
	return netip.Addr{}
}

// machine is what the client shows, with where it is.
func (r *query) machine() boot.Machine {
	m := r.client.machine()
	m.Here, m.Holds = true, holds(r.own, r.Network, r.Now)
	switch {
	case r.relay.agent.IsValid():
		m.Network, m.CircuitID, m.RemoteID = r.relay.link, r.relay.circuit, r.relay.remote
	case !addr(r.ClientIPAddr).IsValid(): // who renews may do so from afar, past its relay
		m.Network = r.link()
	}
	return m
}

// link is our address in the client's network.
func (r *query) link() netip.Addr {
	if r.Link.IsValid() {
		return r.Link
	}
	return r.Server
}

// identifier is what the client shall take for the server's address.
func (r *query) identifier() netip.Addr {
	if r.relay.identifier.IsValid() {
		return r.relay.identifier
	}
	return r.link()
}

func subnetOf(n *boot.Network, a netip.Addr) (boot.Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(a) {
			return s, true
		}
	}
	return boot.Subnet{}, false
}

func (r *query) decide() Decision {
	if reason := r.foreign(); reason != "" {
		return silent(boot.CodeNeighbour, "%s", reason)
	}
	if r.Network.Proxy {
		return r.proxy()
	}
	from := r.origin()
	var ok bool
	if r.subnet, ok = subnetOf(r.Network, from); !ok {
		return silent("no-subnet", "no subnet of cluster.yaml contains %s, where the request comes from", from).refused()
	}
	if reason, code := r.refusesBoot(); code != "" {
		return silent(code, "%s", reason).refused()
	}
	switch t := r.kind; t {
	case dhcpv4.MessageTypeDiscover:
		return r.discover()
	case dhcpv4.MessageTypeRequest:
		return r.request()
	case dhcpv4.MessageTypeInform:
		return r.inform()
	case dhcpv4.MessageTypeRelease:
		return r.release()
	case dhcpv4.MessageTypeDecline:
		return r.decline()
	default:
		return silent("not-for-us", "message type %s is not for a server", t)
	}
}

// NoArm64 says what a machine lacks that asks for a program for UEFI on arm64 where there
// is none.
const NoArm64 = "there is no boot program for UEFI on arm64: name iPXE for it in boot.ipxe.arm64 of cluster.yaml, then imagectl lock"

// refusesBoot says why a netbooting machine gets no answer at all: then its
// firmware goes on to the next boot device. What a machine boots never decides
// over the address of a running system.
func (r *query) refusesBoot() (reason, code string) {
	if !r.client.boots() {
		return "", ""
	}
	switch {
	case r.effect.Silent != "":
		return r.effect.Silent, "quirk"
	case r.client.Stage == HTTPBoot && r.Files.Programs[r.client.Firmware] == "":
		return fmt.Sprintf("there is no program for HTTP boot of architecture %v of option 93", r.client.Archs), "arch-unsupported"
	case r.stage() == Firmware && r.client.Firmware == boot.UEFIarm64 && r.Files.UEFIArm64 == "":
		return NoArm64, "arch-unsupported"
	case r.client.Firmware == "":
		return fmt.Sprintf("there is no boot program for architecture %v of option 93", r.client.Archs), "arch-unsupported"
	case r.answer.Action == boot.None:
		return r.answer.Reason, r.answer.Code
	}
	return "", ""
}

func (r *query) discover() Decision {
	address, machine, ok := r.choose()
	if !ok {
		return silent("pool-exhausted", "no address of %s is free: the dynamic range %s to %s is used up or not set, and there is no reservation for %s",
			r.subnet.Prefix, r.subnet.First, r.subnet.Last, r.client.MAC).refused()
	}
	verdict := r.admission()
	if verdict != nil && !verdict.Admitted {
		d := silent("busy", "%s", verdict.Refusal()).refused()
		d.Verdict = verdict
		return d
	}
	return Decision{
		Reply: r.reply(dhcpv4.MessageTypeOffer, address), To: r.destination(), Verdict: verdict,
		Change: Hold, Lease: r.lease(address, machine, holdTime),
		Code: "offer", Reason: "offered " + address.String() + r.bootNote(),
	}
}

// admission asks the Line for firmware that will load its program. All that runs already
// goes on: iPXE, systems, and whoever was offered an address.
func (r *query) admission() *admit.Verdict {
	line := r.Line
	if r.client.Stage == HTTPBoot {
		line = r.HTTPLine
	}
	if line == nil || r.client.Stage != Firmware && r.client.Stage != HTTPBoot {
		return nil
	}
	v := line.Ask(admit.MAC(r.client.MAC), r.answer.Name != "", r.Now)
	return &v
}

// request tells RFC 2131's four kinds of DHCPREQUEST apart (section 4.3.2).
func (r *query) request() Decision {
	wanted, server, ciaddr := r.requested, r.chosen, addr(r.ClientIPAddr)
	switch {
	case server.IsValid() && server != r.identifier(): // selecting, but another server
		d := r.elsewhere(server, r.otherServer)
		if l, ok := r.held(); ok {
			d.Change, d.Lease = End, l
		}
		return d
	case !wanted.IsValid(): // renewing or rebinding
		wanted = ciaddr
	}
	if !wanted.IsValid() {
		return silent("malformed", "the request names no address")
	}
	machine, why := r.mayHave(wanted)
	if why != "" && r.unrecorded() {
		return silent(boot.CodeNeighbour, "no answer to its request for %s, of which nothing is known here: it may have it from the server of another cluster", wanted)
	}
	if why != "" {
		return Decision{
			Reply: r.nak(why), To: r.nakDestination(),
			Code: "nak", Reason: fmt.Sprintf("refused %s: %s", wanted, why), Refused: true,
		}
	}
	return Decision{
		Reply: r.reply(dhcpv4.MessageTypeAck, wanted), To: r.destination(),
		Change: Bind, Lease: r.lease(wanted, machine, r.subnet.Lease),
		Code: "ack", Reason: "gave " + wanted.String() + " for " + r.subnet.Lease.String() + r.bootNote(),
	}
}

// elsewhere is for a message to another server: one that shares our leases, or another's.
func (r *query) elsewhere(server netip.Addr, other func(netip.Addr) Decision) Decision {
	if slices.Contains(r.Peers, server) {
		return silent("peer-server", "the client chose the server %s, which shares our leases", server)
	}
	if slices.Contains(r.Network.Neighbours, server) {
		return r.neighbourChosen(server)
	}
	return other(server)
}

// otherServer is for a client that chose a server that is none of ours.
func (r *query) otherServer(server netip.Addr) Decision {
	d := silent("other-server", "the client chose the server %s: it gives out addresses here too; switch it off, or set boot.dhcp: proxy in cluster.yaml", server)
	d.Refused = r.client.boots()
	return d
}

func (r *query) inform() Decision {
	ciaddr := addr(r.ClientIPAddr)
	if !ciaddr.IsValid() {
		return silent("malformed", "the inform message names no address")
	}
	return Decision{Reply: r.reply(dhcpv4.MessageTypeAck, netip.Addr{}), To: r.destination(),
		Code: "inform", Reason: "told the options of the network to " + ciaddr.String()}
}

func (r *query) release() Decision {
	l, ok := r.has(addr(r.ClientIPAddr))
	if !ok {
		return silent("not-leased", "%s released %s, which it does not have", r.client.MAC, r.ClientIPAddr)
	}
	l.Until = r.Now
	return Decision{Change: End, Lease: l, Code: "release", Reason: "gave back " + l.Addr.String()}
}

// decline accepts only what the client was given here, so that nobody can use up the
// pool by declining it: what another server offered is that one's to put aside. A reserved address stays with its owner: there is no
// other one to give, and the event shows the conflict.
func (r *query) decline() Decision {
	declined, server := r.requested, r.chosen
	if server.IsValid() && server != r.identifier() {
		return r.elsewhere(server, func(netip.Addr) Decision {
			return silent("not-for-us", "the client declined %s, which the server %s offered", declined, server)
		})
	}
	l, ok := r.has(declined)
	if !ok {
		return silent("not-leased", "%s declined %s, which it does not have", r.client.MAC, declined)
	}
	const found = "something else on the network uses %s, says %s"
	if r.Network.Reserved[declined] != "" {
		l.Until = r.Now
		return Decision{Change: End, Lease: l, Code: "decline", Refused: true, Reason: fmt.Sprintf(found+"; it is reserved, find the other user", declined, r.client.MAC)}
	}
	l.Until = r.Now.Add(declineTime)
	return Decision{Change: Decline, Lease: l, Code: "decline", Refused: true, Reason: fmt.Sprintf(found, declined, r.client.MAC)}
}

func (r *query) lease(address netip.Addr, machine string, life time.Duration) Lease {
	return Lease{MAC: r.client.MAC, Addr: address, Machine: machine, Until: r.Now.Add(life)}
}

// destination follows RFC 2131 section 4.1, except that we never unicast to an
// address the client does not have yet: that would need a forged ARP entry, and
// clients that forget the broadcast flag exist. A ciaddr in DISCOVER means nothing.
func (r *query) destination() netip.AddrPort {
	if r.relay.agent.IsValid() {
		return netip.AddrPortFrom(r.relay.agent, dhcpv4.ServerPort)
	}
	if ciaddr := addr(r.ClientIPAddr); ciaddr.IsValid() && r.kind != dhcpv4.MessageTypeDiscover {
		return netip.AddrPortFrom(ciaddr, dhcpv4.ClientPort)
	}
	return broadcast()
}

func (r *query) nakDestination() netip.AddrPort {
	if r.relay.agent.IsValid() {
		return netip.AddrPortFrom(r.relay.agent, dhcpv4.ServerPort)
	}
	return broadcast()
}

// broadcast is the limited broadcast; a subnet's own is dropped by some ROMs.
func broadcast() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpv4.ClientPort)
}

// addr is the zero Addr for a missing or unspecified address.
func addr(ip []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
