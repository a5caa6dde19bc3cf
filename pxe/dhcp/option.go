package dhcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// What is here does by hand what the library's getters and options do: with two objects less
// for each option, of which there are thirty in an exchange.

// messageType is option 53; MessageTypeNone when it is missing or not a single byte.
func messageType(req *dhcpv4.DHCPv4) dhcpv4.MessageType {
	if v := req.Options.Get(dhcpv4.OptionDHCPMessageType); len(v) == 1 {
		return dhcpv4.MessageType(v[0])
	}
	return dhcpv4.MessageTypeNone
}

// optionAddr is the zero Addr for an option that is missing, that is not a single IPv4
// address, or that has the unspecified one.
func optionAddr(req *dhcpv4.DHCPv4, code dhcpv4.OptionCode) netip.Addr {
	if v := req.Options.Get(code); len(v) == 4 {
		return addr(v)
	}
	return netip.Addr{}
}

func putAddrs(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode, addrs ...netip.Addr) {
	b := make([]byte, 0, 4*len(addrs))
	for _, a := range addrs {
		four := a.As4()
		b = append(b, four[:]...)
	}
	m.Options[code.Code()] = b
}

func putUint32(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode, v uint32) {
	m.Options[code.Code()] = binary.BigEndian.AppendUint32(nil, v)
}

// putTime sets an option in whole seconds.
func putTime(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode, d time.Duration) {
	putUint32(m, code, uint32(d/time.Second))
}

// putBytes sets an option to b, which is the message's from then on.
func putBytes(m *dhcpv4.DHCPv4, code dhcpv4.OptionCode, b []byte) { m.Options[code.Code()] = b }
