package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/imagectl/imagectl/pxe/boot"
)

// MAC is an Ethernet address; leases are kept by it. Client identifiers are not
// used: ROM, iPXE and operating system of one machine each send another one.
type MAC [6]byte

// String is the usual lower-case form with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Stage says which program sends a request.
type Stage string

// The senders.
const (
	// System: an operating system, or anything else that does not netboot.
	System Stage = "system"
	// Firmware: a PXE ROM, or UEFI.
	Firmware Stage = "firmware"
	// IPXE: iPXE, whether chainloaded or in the card's ROM.
	IPXE Stage = "ipxe"
	// HTTPBoot: UEFI asking for a URL.
	HTTPBoot Stage = "http-boot"
)

// Client is what a request says about its sender, worked out once per packet.
type Client struct {
	MAC   MAC
	Stage Stage
	// Firmware is empty when the architecture is missing or not a known one.
	Firmware boot.Firmware
	// Archs are the values of option 93, for messages.
	Archs []iana.Arch
	// UUID is option 97 in text form, empty when absent or a filler.
	UUID string
}

// boots says whether the sender wants a boot file.
func (c Client) boots() bool { return c.Stage != System }

func (c Client) machine() boot.Machine {
	mac := c.MAC // or all of the client would be kept with it
	return boot.Machine{MAC: mac[:], UUID: c.UUID, Firmware: c.Firmware}
}

// identify reads who sent a request.
func identify(req *dhcpv4.DHCPv4) (Client, error) {
	if req.OpCode != dhcpv4.OpcodeBootRequest {
		return Client{}, fmt.Errorf("it is not a request")
	}
	if req.HWType != iana.HWTypeEthernet || len(req.ClientHWAddr) != 6 {
		return Client{}, fmt.Errorf("hardware type %d with %d address bytes is not Ethernet", req.HWType, len(req.ClientHWAddr))
	}
	c := Client{MAC: MAC(req.ClientHWAddr), Stage: stage(req), UUID: clientUUID(req)}
	if c.MAC == (MAC{}) || c.MAC[0]&1 == 1 {
		return Client{}, fmt.Errorf("%s is not the address of a network card", c.MAC)
	}
	c.Archs = archs(req)
	for _, a := range c.Archs {
		if c.Firmware = FirmwareOf(a); c.Firmware != "" {
			break
		}
	}
	if c.Firmware == "" && len(c.Archs) == 0 && c.boots() {
		c.Firmware = boot.BIOS // older than RFC 4578
	}
	return c, nil
}

// stage tests the user class before the vendor class: iPXE says PXEClient too,
// even when UEFI HTTP boot has loaded it.
func stage(req *dhcpv4.DHCPv4) Stage {
	// iPXE sends its user class as plain text, others as RFC 3004's counted string.
	switch string(req.Options.Get(dhcpv4.OptionUserClassInformation)) {
	case "iPXE", "\x04iPXE":
		return IPXE
	}
	switch class := req.ClassIdentifier(); {
	case strings.HasPrefix(class, "PXEClient"):
		return Firmware
	case strings.HasPrefix(class, "HTTPClient"):
		return HTTPBoot
	}
	return System
}

// archs reads option 93, which is a list, or else the vendor class of
// PXEClient:Arch:00007:UNDI:003016.
func archs(req *dhcpv4.DHCPv4) []iana.Arch {
	v := req.Options.Get(dhcpv4.OptionClientSystemArchitectureType)
	var out []iana.Arch
	for ; len(v) >= 2; v = v[2:] {
		out = append(out, iana.Arch(binary.BigEndian.Uint16(v)))
	}
	if out != nil {
		return out
	}
	part := strings.Split(req.ClassIdentifier(), ":")
	var n uint16
	if len(part) > 2 && part[1] == "Arch" {
		if _, err := fmt.Sscanf(part[2], "%05d", &n); err == nil {
			return []iana.Arch{iana.Arch(n)}
		}
	}
	return nil
}

// FirmwareOf maps IANA's processor architecture types. RFC 4578 had 7 and 9 the
// wrong way round, and laptops have been seen that send 2 or 8 for UEFI on
// x86-64, so all four are taken as that. 16 and 19 are HTTP boot's.
func FirmwareOf(a iana.Arch) boot.Firmware {
	switch a {
	case 0:
		return boot.BIOS
	case 2, 7, 8, 9, 16:
		return boot.UEFIx64
	case 11, 19:
		return boot.UEFIarm64
	}
	return ""
}

// clientUUID reads option 97. Its absence is legal in practice (Intel ROMs).
func clientUUID(req *dhcpv4.DHCPv4) string {
	v := req.Options.Get(dhcpv4.OptionClientMachineIdentifier)
	if len(v) != 17 || v[0] != 0 {
		return ""
	}
	h := hex.EncodeToString(v[1:])
	if strings.Trim(h, "0") == "" || strings.Trim(h, "f") == "" {
		return "" // a board that nobody gave a UUID
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
