package dhcp6

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
)

// maxDUID is RFC 8415's limit (section 11.1), the type included.
const maxDUID = 130

// Client is what a request says about its sender, worked out once per packet.
type Client struct {
	// Key is what leases are kept by: the card where it is known, else the DUID. UEFI,
	// iPXE and the operating system of one machine may each send another DUID.
	Key string
	// MAC is zero when nothing tells it.
	MAC   dhcp.MAC
	Stage dhcp.Stage
	// Firmware is empty when the architecture is missing or not a known one.
	Firmware boot.Firmware
	// Archs are the values of option 61, for messages.
	Archs iana.Archs
	// UUID is a DUID-UUID's in text form, empty when absent or a filler.
	UUID string
}

// boots says whether the sender wants a boot file.
func (c Client) boots() bool { return c.Stage != dhcp.System }

func (c Client) machine() boot.Machine {
	m := boot.Machine{UUID: c.UUID, Firmware: c.Firmware}
	if c.MAC != (dhcp.MAC{}) {
		m.MAC = c.MAC[:]
	}
	return m
}

// place is by what the Line knows it: its card, or what stands for one.
func (c Client) place() admit.MAC {
	if c.MAC != (dhcp.MAC{}) {
		return admit.MAC(c.MAC)
	}
	sum := sha256.Sum256([]byte(c.Key))
	return admit.MAC(sum[:6])
}

// identify reads who sent a request.
func identify(r request) (Client, error) {
	c := Client{Stage: stage(r.msg), Archs: r.msg.Options.ArchTypes()}
	duid := r.msg.Options.ClientID()
	var raw []byte
	if duid != nil {
		raw = duid.ToBytes()
	}
	if len(raw) > maxDUID {
		return Client{}, fmt.Errorf("its DUID has %d bytes, more than %d", len(raw), maxDUID)
	}
	if u, ok := duid.(*dhcpv6.DUIDUUID); ok {
		c.UUID = uuidText(u.UUID)
	}
	c.MAC = card(r, duid)
	switch {
	case c.MAC != dhcp.MAC{}:
		c.Key = c.MAC.String()
	case raw != nil:
		c.Key = hex.EncodeToString(raw)
	case r.msg.MessageType != dhcpv6.MessageTypeInformationRequest:
		return Client{}, fmt.Errorf("it has no client identifier")
	}
	for _, a := range c.Archs {
		if c.Firmware = dhcp.FirmwareOf(a); c.Firmware != "" {
			break
		}
	}
	return c, nil
}

// stage tests the user class before the vendor class: iPXE says PXEClient too.
// Firmware that sends no vendor class is known by its architecture.
func stage(m *dhcpv6.Message) dhcp.Stage {
	if slices.ContainsFunc(m.Options.UserClasses(), func(c []byte) bool { return string(c) == "iPXE" }) {
		return dhcp.IPXE
	}
	for _, v := range m.Options.VendorClasses() {
		for _, class := range v.Data {
			switch {
			case strings.HasPrefix(string(class), "PXEClient"):
				return dhcp.Firmware
			case strings.HasPrefix(string(class), httpClient):
				return dhcp.HTTPBoot
			}
		}
	}
	for _, a := range m.Options.ArchTypes() {
		switch {
		case a == iana.EFI_X86_64_HTTP || a == iana.EFI_ARM64_HTTP:
			return dhcp.HTTPBoot
		case dhcp.FirmwareOf(a) != "":
			return dhcp.Firmware
		}
	}
	return dhcp.System
}

// card finds the network card that asks: by the relay that heard it (RFC 6939), by
// its link-local address, which firmware makes of the card's own (RFC 4291 appendix
// A), or by a DUID that was made of one.
func card(r request, duid dhcpv6.DUID) dhcp.MAC {
	if n := len(r.relays); n > 0 {
		if t, a := r.relays[n-1].Options.ClientLinkLayerAddress(); t == iana.HWTypeEthernet && isCard(a) {
			return dhcp.MAC(a)
		}
	}
	if r.peer.IsLinkLocalUnicast() {
		b := r.peer.As16()
		mac := dhcp.MAC{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}
		if b[11] == 0xff && b[12] == 0xfe && isCard(mac[:]) {
			return mac
		}
	}
	switch d := duid.(type) {
	case *dhcpv6.DUIDLLT:
		if d.HWType == iana.HWTypeEthernet && isCard(d.LinkLayerAddr) {
			return dhcp.MAC(d.LinkLayerAddr)
		}
	case *dhcpv6.DUIDLL:
		if d.HWType == iana.HWTypeEthernet && isCard(d.LinkLayerAddr) {
			return dhcp.MAC(d.LinkLayerAddr)
		}
	}
	return dhcp.MAC{}
}

func isCard(a []byte) bool {
	return len(a) == 6 && a[0]&1 == 0 && dhcp.MAC(a) != (dhcp.MAC{})
}

// uuidText is empty for a board that nobody gave a UUID. Its first three fields are
// in SMBIOS's byte order, as in DHCPv4's option 97.
func uuidText(u [16]byte) string {
	h := hex.EncodeToString(u[:])
	if strings.Trim(h, "0") == "" || strings.Trim(h, "f") == "" {
		return ""
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// request is a client's message with the way it came.
type request struct {
	msg *dhcpv6.Message
	// relays are the agents that it passed, the one nearest to us first.
	relays []*dhcpv6.RelayMessage
	// peer is the client's address.
	peer netip.Addr
}

// unwrap takes a message out of what relays put around it.
func unwrap(packet dhcpv6.DHCPv6, from netip.Addr) (request, error) {
	r := request{peer: from.WithZone("")}
	for {
		switch p := packet.(type) {
		case *dhcpv6.Message:
			r.msg = p
			return r, nil
		case *dhcpv6.RelayMessage:
			if p.MessageType != dhcpv6.MessageTypeRelayForward {
				return request{}, fmt.Errorf("%s is not for a server", p.MessageType)
			}
			r.relays = append(r.relays, p)
			r.peer = addr(p.PeerAddr)
			packet = p.Options.RelayMessage()
		default:
			return request{}, fmt.Errorf("a relay's message has nothing in it")
		}
	}
}

// link is an address in the client's network; unset when that is ours. Agents below
// layer three do not say any (RFC 6221), so the next one counts.
func (r request) link() netip.Addr {
	for _, relay := range slices.Backward(r.relays) {
		if a := addr(relay.LinkAddr); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// wrap puts a reply into what its relays expect: the reverse of how it came, with
// each agent's name for its interface (RFC 8415 section 19.3).
func (r request) wrap(reply *dhcpv6.Message) dhcpv6.DHCPv6 {
	var out dhcpv6.DHCPv6 = reply
	for _, relay := range slices.Backward(r.relays) {
		around := &dhcpv6.RelayMessage{MessageType: dhcpv6.MessageTypeRelayReply, HopCount: relay.HopCount, LinkAddr: relay.LinkAddr, PeerAddr: relay.PeerAddr}
		if id := relay.Options.GetOne(dhcpv6.OptionInterfaceID); id != nil {
			around.Options.Add(id)
		}
		around.Options.Add(dhcpv6.OptRelayMessage(out))
		out = around
	}
	return out
}

// addr is the zero Addr for a missing or unspecified address.
func addr(ip []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.IsUnspecified() || !a.Is6() || a.Is4In6() {
		return netip.Addr{}
	}
	return a
}
