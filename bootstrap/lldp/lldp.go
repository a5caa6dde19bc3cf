// Package lldp reads what the neighbour of a network card says about itself by the
// Link Layer Discovery Protocol (IEEE 802.1AB): the switch and the port that a machine
// is plugged into. It only listens. What it hears is for display: anybody on the cable
// may say anything.
package lldp

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// EtherType is LLDP's.
const EtherType = 0x88cc

// maxText bounds what is kept of a text; the protocol allows 511 bytes.
const maxText = 255

// Neighbour is who is at the other end of the cable. Texts are printable; unknown ones
// are empty.
type Neighbour struct {
	// Chassis and Port identify both; mostly a MAC address and an interface name.
	Chassis, Port string
	// System is the neighbour's name, PortDescription its words for the port.
	System, PortDescription string
	// VLAN is the port's own (untagged) one, 0 for none said.
	VLAN int
}

// The types of TLVs (802.1AB table 8-1), and of chassis and port IDs (8-2, 8-3).
const (
	tlvEnd             = 0
	tlvChassis         = 1
	tlvPort            = 2
	tlvPortDescription = 4
	tlvSystem          = 5
	tlvOrganisation    = 127

	chassisMAC     = 4
	chassisAddress = 5
	portMAC        = 3
	portAddress    = 4
)

// portVLAN begins the TLV of the port's VLAN (802.1Q annex D, formerly 802.1AB annex E).
const portVLAN = "\x00\x80\xc2\x01"

// Parse reads a frame with its Ethernet header.
func Parse(frame []byte) (Neighbour, error) {
	if len(frame) < 14 || binary.BigEndian.Uint16(frame[12:]) != EtherType {
		return Neighbour{}, errors.New("reading an LLDP frame: it is another protocol's")
	}
	n, err := parse(frame[14:])
	if err != nil {
		return Neighbour{}, fmt.Errorf("reading an LLDP frame: %w", err)
	}
	return n, nil
}

func parse(b []byte) (n Neighbour, err error) {
	for {
		if len(b) < 2 {
			return n, errors.New("it is cut off")
		}
		head := binary.BigEndian.Uint16(b)
		kind, size := int(head>>9), int(head&0x1ff)
		if len(b) < 2+size {
			return n, fmt.Errorf("its field of type %d has %d bytes, and %d are left", kind, size, len(b)-2)
		}
		value := b[2 : 2+size]
		b = b[2+size:]
		switch kind {
		case tlvEnd:
			if n.Chassis == "" || n.Port == "" {
				return n, errors.New("it names no chassis and port")
			}
			return n, nil
		case tlvChassis:
			n.Chassis = identifier(value, chassisMAC, chassisAddress)
		case tlvPort:
			n.Port = identifier(value, portMAC, portAddress)
		case tlvPortDescription:
			n.PortDescription = printable(value)
		case tlvSystem:
			n.System = printable(value)
		case tlvOrganisation:
			if v, ok := strings.CutPrefix(string(value), portVLAN); ok && len(v) == 2 {
				n.VLAN = int(v[0])<<8 | int(v[1])
			}
		}
	}
}

// identifier is an ID after its subtype: a MAC address, a network address, or a text.
func identifier(value []byte, mac, address byte) string {
	if len(value) < 2 {
		return ""
	}
	kind, id := value[0], value[1:]
	switch {
	case kind == mac && len(id) == 6:
		return net.HardwareAddr(id).String()
	case kind == address && len(id) > 1: // the first byte is its family
		if a, ok := netip.AddrFromSlice(id[1:]); ok {
			return a.String()
		}
	}
	for _, c := range id {
		if c < ' ' || c > '~' {
			return hex.EncodeToString(id[:min(len(id), maxText/2)])
		}
	}
	return printable(id)
}

// printable keeps a neighbour's text fit for consoles, logs and protobuf.
func printable(b []byte) string {
	b = b[:min(len(b), maxText)]
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, string(b)))
}
