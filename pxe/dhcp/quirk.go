package dhcp

import (
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// optionIPXE encapsulates what iPXE says about itself, and what it is told.
const optionIPXE = dhcpv4.GenericOptionCode(175)

// shows is what a request shows of its sender's firmware.
func shows(req *dhcpv4.DHCPv4, c Client) quirk.Client {
	q := quirk.Client{
		MAC: c.machine().MAC, VendorClass: req.ClassIdentifier(),
		UserClass: strings.TrimPrefix(string(req.Options.Get(dhcpv4.OptionUserClassInformation)), "\x04"),
		Features:  features(req.Options.Get(optionIPXE)),
	}
	for _, a := range c.Archs {
		q.Archs = append(q.Archs, uint16(a))
	}
	return q
}

// features are the codes inside option 175, nil when it is not there.
func features(v []byte) []byte {
	var codes []byte
	for len(v) >= 2 && len(v) >= 2+int(v[1]) {
		codes = append(codes, v[0])
		v = v[2+int(v[1]):]
	}
	return codes
}

// comply changes a complete answer to a netbooting client.
func comply(m *dhcpv4.DHCPv4, e quirk.Effect) {
	if e.PlainName {
		name := m.Options.Get(dhcpv4.OptionBootfileName)
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionBootfileName, []byte(strings.TrimRight(string(name), "\x00"))))
	}
	if e.VendorClass != "" {
		m.UpdateOption(dhcpv4.OptClassIdentifier(e.VendorClass))
	}
	if e.VendorOptions != nil {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, e.VendorOptions))
	}
}
