package dhcp6

import (
	"net"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// httpClient begins the vendor class of UEFI HTTP boot, in both directions.
const httpClient = "HTTPClient"

// enterprise is Intel's number, under which UEFI sends and looks for the class (EDK2
// HttpBootDhcp6.h).
const enterprise = 343

// reply makes an answer with all that does not depend on addresses.
func (q *query) reply(t dhcpv6.MessageType) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: t, TransactionID: q.msg.TransactionID}
	if id := q.msg.GetOneOption(dhcpv6.OptionClientID); id != nil {
		m.AddOption(id)
	}
	m.AddOption(dhcpv6.OptServerID(q.DUID))
	if len(q.subnet.DNS) > 0 {
		m.AddOption(dhcpv6.OptDNS(ips(q.subnet.DNS)...))
	}
	if q.subnet.Domain != "" {
		m.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: []string{q.subnet.Domain}}))
	}
	q.addBootFile(m)
	return m
}

// addBootFile points a netbooting client at its program (RFC 5970). Option 60 is never
// sent: UEFI takes it for a size. Nor is PXE's vendor class sent back: UEFI takes an
// offer that has it for a redirection to port 4011.
func (q *query) addBootFile(m *dhcpv6.Message) {
	switch q.client.Stage {
	case dhcp.IPXE:
		m.AddOption(dhcpv6.OptBootFileURL(q.Files.Script))
	case dhcp.Firmware:
		m.AddOption(dhcpv6.OptBootFileURL(q.program()))
	case dhcp.HTTPBoot:
		// A machine that boots its own disk gets the URL too: its refusal by HTTP is better
		// than a minute of silence.
		m.AddOption(dhcpv6.OptBootFileURL(dhcp.ProgramURL(q.Files.HTTP, q.client.MAC, q.Files.Programs[q.client.Firmware])))
		m.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: enterprise, Data: [][]byte{[]byte(httpClient)}})
	case dhcp.System:
	}
}

// program is the URL of what firmware loads by TFTP; empty when there is none for it.
func (q *query) program() string {
	switch q.client.Firmware {
	case boot.UEFIx64:
		return q.Files.UEFI
	case boot.UEFIarm64:
		return q.Files.UEFIArm64
	case boot.BIOS: // knows no IPv6
	}
	return ""
}

func (q *query) bootNote() string {
	switch q.client.Stage {
	case dhcp.HTTPBoot:
		return ", boot program " + q.Files.Programs[q.client.Firmware] + " by HTTP"
	case dhcp.IPXE:
		return ", iPXE goes on with its script"
	case dhcp.Firmware:
		return ", boot program " + q.program()
	case dhcp.System:
	}
	return ""
}

func ips(as []netip.Addr) []net.IP {
	out := make([]net.IP, len(as))
	for i, a := range as {
		out[i] = a.AsSlice()
	}
	return out
}
