package replay

import (
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// dhcp6 does for DHCPv6 what dhcp does for DHCPv4. What passes between a relay and a
// server is told as the client's message that it contains.
func (s *session) dhcp6(d datagram) {
	step := Step{At: d.at}
	defer func() { s.steps = append(s.steps, step) }()
	broken := func(err error) {
		step.Asked, step.Code, step.Reason = "a broken DHCPv6 packet", "malformed", printable(err.Error())
	}
	packet, err := dhcpv6.FromBytes(d.payload)
	if err != nil {
		broken(err)
		return
	}
	m, err := packet.GetInnerMessage()
	if err != nil {
		broken(err)
		return
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply, dhcpv6.MessageTypeReconfigure:
		step.Asked = fmt.Sprintf("%s from %s", m.MessageType, d.from.Addr())
		step.Code, step.Reason, step.Answer = CodeSeen, "this is what was answered when it was captured", bootParts6(m)
		return
	}
	m, decision, err := s.replay6.Packet(d.at, d.from.Addr(), d.payload)
	if err != nil {
		broken(err)
		return
	}
	step.Client, step.Machine = decision.Client.Key, decision.Answer.Name
	step.Asked = fmt.Sprintf("%s from %s by IPv6", m.MessageType, decision.Client.Stage)
	for _, v := range m.Options.VendorClasses() {
		for _, class := range v.Data {
			step.Asked += ", " + printable(string(class))
		}
	}
	step.Code, step.Reason = decision.Code, decision.Reason
	for _, l := range decision.Changes {
		if decision.Client.MAC != [6]byte{} {
			s.cards[l.Addr] = decision.Client.MAC[:]
		}
	}
	if decision.Reply == nil {
		return
	}
	if reply, err := decision.Reply.GetInnerMessage(); err == nil {
		step.Answer = bootParts6(reply)
	}
}

// bootParts6 says what of an answer matters for booting.
func bootParts6(m *dhcpv6.Message) []string {
	out := []string{m.MessageType.String()}
	for _, ia := range m.Options.IANA() {
		for _, o := range ia.Options.Addresses() {
			if a, ok := netip.AddrFromSlice(o.IPv6Addr); ok {
				out = append(out, "address "+a.String())
			}
		}
		if status := ia.Options.Status(); status != nil {
			out = append(out, "status "+status.StatusCode.String())
		}
	}
	if url := m.Options.BootFileURL(); url != "" {
		out = append(out, "option 59 "+printable(url))
	}
	for _, v := range m.Options.VendorClasses() {
		for _, class := range v.Data {
			out = append(out, "option 16 "+printable(string(class)))
		}
	}
	return out
}
