package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/boot"
)

// fileLen is the longest name that fits the fixed file field with its NUL.
const fileLen = 127

// options is about how many an answer has: a map of eight is searched and not hashed, and
// one that has to grow is filled twice.
func (r *query) options() int {
	n := 7 // type, server, the lease's three times, subnet mask, broadcast address
	for _, has := range []bool{r.subnet.Router.IsValid(), len(r.subnet.DNS) > 0, len(r.subnet.NTP) > 0, r.subnet.Domain != "",
		r.answer.Name != "", r.relay.agent.IsValid(), r.Options.Has(dhcpv4.OptionClientIdentifier)} {
		if has {
			n++
		}
	}
	if r.client.boots() {
		n += 4 // boot file, TFTP server, UUID, what iPXE or UEFI want
	}
	return n
}

// reply makes an offer or an acknowledgement. The zero address answers INFORM.
func (r *query) reply(t dhcpv4.MessageType, yours netip.Addr) *dhcpv4.DHCPv4 {
	m := r.skeleton(t)
	m.ServerIPAddr = ip(r.Server)
	if t == dhcpv4.MessageTypeAck {
		m.ClientIPAddr = r.ClientIPAddr
	}
	if yours.IsValid() {
		m.YourIPAddr = ip(yours)
		putTime(m, dhcpv4.OptionIPAddressLeaseTime, r.subnet.Lease)
		putTime(m, dhcpv4.OptionRenewTimeValue, r.subnet.Lease/2)
		putTime(m, dhcpv4.OptionRebindingTimeValue, r.subnet.Lease/8*7)
	}
	s := r.subnet
	putUint32(m, dhcpv4.OptionSubnetMask, ^uint32(0)<<(32-s.Prefix.Bits()))
	putAddrs(m, dhcpv4.OptionBroadcastAddress, lastOf(s.Prefix))
	if s.Router.IsValid() {
		putAddrs(m, dhcpv4.OptionRouter, s.Router)
	}
	if len(s.DNS) > 0 {
		putAddrs(m, dhcpv4.OptionDomainNameServer, s.DNS...)
	}
	if len(s.NTP) > 0 {
		putAddrs(m, dhcpv4.OptionNTPServers, s.NTP...)
	}
	if s.Domain != "" {
		putBytes(m, dhcpv4.OptionDomainName, []byte(s.Domain))
	}
	if r.answer.Name != "" {
		putBytes(m, dhcpv4.OptionHostName, []byte(r.answer.Name))
	}
	if r.asksFor(dhcpv4.OptionInterfaceMTU) && s.MTU != 0 {
		putBytes(m, dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(s.MTU)))
	}
	if r.asksFor(dhcpv4.OptionClasslessStaticRoute) && len(s.Routes) > 0 {
		m.UpdateOption(dhcpv4.OptClasslessStaticRoute(routes(s)...))
	}
	r.addBootFile(m)
	return m
}

// asksFor says whether a client names an option among those that it wants: firmware, which
// does not, is not made to read more than it has to.
func (r *query) asksFor(code dhcpv4.OptionCode) bool {
	return slices.Contains(r.Options.Get(dhcpv4.OptionParameterRequestList), code.Code())
}

// routes are all of a subnet's. Who takes them passes over option 3 (RFC 3442), so the
// default route is among them.
func routes(s boot.Subnet) []*dhcpv4.Route {
	var out []*dhcpv4.Route
	for _, r := range s.Routes {
		out = append(out, &dhcpv4.Route{Dest: &net.IPNet{IP: ip(r.To.Addr()), Mask: net.CIDRMask(r.To.Bits(), 32)}, Router: ip(r.Via)})
	}
	if s.Router.IsValid() {
		out = append(out, &dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: ip(s.Router)})
	}
	return out
}

// addBootFile points a netbooting client at its program.
//
// Where we give the address too, options 60 and 43 are left out on purpose: with
// option 60 but without a boot menu in option 43, UEFI takes the answer for a
// redirection to port 4011. Without both, UEFI, old ROMs and iPXE all read a plain BOOTP answer. Option 13 (size) is
// left out because it is believed.
func (r *query) addBootFile(m *dhcpv4.DHCPv4) {
	var name string
	switch r.stage() {
	case IPXE:
		name = r.Files.Script
		// The encapsulated option 176, no-pxedhcp, spares iPXE its two seconds of
		// waiting for a proxy.
		if !r.Network.Proxy {
			putBytes(m, optionIPXE, []byte{176, 1, 1})
		}
		putBytes(m, dhcpv4.OptionBootfileName, []byte(name))
		if a := r.Files.Syslog; a.IsValid() {
			putAddrs(m, dhcpv4.OptionLogServer, a)
		}
	case Firmware:
		name = r.program()
		// ROMs read the option as a C string and otherwise ask for name\xff.
		putBytes(m, dhcpv4.OptionBootfileName, append([]byte(name), 0))
	case HTTPBoot:
		// UEFI takes only an offer of its own class. A machine that boots its own disk
		// gets the URL too: its refusal by HTTP is better than a minute of silence.
		name = ProgramURL(r.Files.HTTP, r.client.MAC, r.Files.Programs[r.client.Firmware])
		putBytes(m, dhcpv4.OptionClassIdentifier, []byte("HTTPClient"))
		putBytes(m, dhcpv4.OptionBootfileName, []byte(name))
	default:
		return
	}
	// Old ROMs and U-Boot read only the fixed field, UEFI prefers the option.
	if len(name) <= fileLen {
		m.BootFileName = name
	}
	putBytes(m, dhcpv4.OptionTFTPServerName, []byte(r.Server.String()))
	if id := r.Options.Get(dhcpv4.OptionClientMachineIdentifier); id != nil {
		putBytes(m, dhcpv4.OptionClientMachineIdentifier, id)
	}
	comply(m, r.effect)
}

// program is the TFTP name of what firmware loads.
func (r *query) program() string {
	switch {
	case r.client.Firmware == boot.UEFIarm64:
		return r.Files.UEFIArm64
	case r.client.Firmware != boot.UEFIx64:
		return r.Files.BIOS
	case r.answer.Program == boot.GRUB:
		return r.Files.Shim
	}
	return r.Files.UEFI
}

// stage is what the client is answered as.
func (r *query) stage() Stage {
	if r.client.Stage == IPXE && r.effect.Program {
		return Firmware
	}
	return r.client.Stage
}

func (r *query) bootNote() string {
	switch r.stage() {
	case HTTPBoot:
		return ", boot program " + r.Files.Programs[r.client.Firmware] + " by HTTP"
	case IPXE:
		return ", iPXE goes on with its script"
	case Firmware:
		return ", boot program " + r.program()
	}
	return ""
}

func (r *query) nak(why string) *dhcpv4.DHCPv4 {
	m := r.skeleton(dhcpv4.MessageTypeNak)
	putBytes(m, dhcpv4.OptionMessage, []byte(why))
	if m.GatewayIPAddr != nil && !m.GatewayIPAddr.IsUnspecified() {
		m.SetBroadcast() // the relay must not unicast to an address that is wrong
	}
	return m
}

// skeleton holds what every answer has (RFC 2131 table 3).
func (r *query) skeleton(t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	zero := net.IPv4zero
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: r.HWType, TransactionID: r.TransactionID, Flags: r.Flags,
		ClientIPAddr: zero, YourIPAddr: zero, ServerIPAddr: zero,
		GatewayIPAddr: r.GatewayIPAddr, ClientHWAddr: r.ClientHWAddr,
		Options: make(dhcpv4.Options, r.options()),
	}
	putBytes(m, dhcpv4.OptionDHCPMessageType, []byte{byte(t)})
	putAddrs(m, dhcpv4.OptionServerIdentifier, r.identifier())
	// RFC 6842 wants the client identifier back; RFC 3046 the relay's information,
	// which the codec puts last.
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation} {
		if v := r.Options.Get(code); v != nil {
			putBytes(m, code, v)
		}
	}
	return m
}

// ScriptURL is where iPXE continues. iPXE puts its own values in; the serial
// number is escaped because boards have blanks in theirs. platform and arch say what iPXE
// was built for; builds that know no arch leave it empty.
func ScriptURL(server netip.AddrPort) string {
	return fmt.Sprintf("http://%s/boot.ipxe?mac=${mac}&uuid=${uuid}&serial=${serial:uristring}&platform=${platform}&arch=${buildarch}", server)
}

// ProgramURL is what UEFI HTTP boot of a machine loads. UEFI puts nothing of its own
// into a URL, so the card is in there; and some BMCs take neither colons nor queries.
func ProgramURL(base string, mac MAC, name string) string {
	return base + "/boot/" + strings.ReplaceAll(mac.String(), ":", "-") + "/" + name
}

func ip(a netip.Addr) net.IP { return a.AsSlice() }
