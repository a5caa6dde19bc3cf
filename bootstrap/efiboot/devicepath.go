package efiboot

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Node is one node of a device path (section 10.3). Data is without the header.
type Node struct {
	Type, Subtype uint8
	Data          []byte
}

// Types and subtypes of nodes that decide something here (section 10.3.1 to
// 10.3.5).
const (
	typeMessaging = 0x03
	typeMedia     = 0x04
	typeBBS       = 0x05
	typeEnd       = 0x7f

	messagingMAC  = 0x0b
	mediaDrive    = 0x01
	mediaFile     = 0x04
	bbsDevice     = 0x01
	endEntirePath = 0xff
)

// nodeHeader is type, subtype and a 16-bit length that includes itself.
const nodeHeader = 4

// Partition is one partition of a GPT disk.
type Partition struct {
	// Number counts from 1.
	Number uint32
	// First and Sectors are in blocks of the disk.
	First, Sectors uint64
	// GUID is the partition's own, in the byte order of the partition table.
	GUID [16]byte
}

// DiskOption is the load option for a program on a partition of a disk, by the
// short form of a device path that begins with the partition (section 3.1.2): it
// holds whatever port or controller the disk moves to.
func DiskOption(description string, p Partition, program string) LoadOption {
	// Section 10.3.5.1; format 2 is GPT, signature type 2 a GUID.
	d := binary.LittleEndian.AppendUint32(nil, p.Number)
	d = binary.LittleEndian.AppendUint64(d, p.First)
	d = binary.LittleEndian.AppendUint64(d, p.Sectors)
	d = append(d, p.GUID[:]...)
	d = append(d, 2, 2)
	return LoadOption{
		Attributes:  Active,
		Description: description,
		Path: []Node{
			{Type: typeMedia, Subtype: mediaDrive, Data: d},
			{Type: typeMedia, Subtype: mediaFile, Data: text(program)},
			{Type: typeEnd, Subtype: endEntirePath},
		},
	}
}

// Program is where firmware looks for a boot program on a removable medium, and
// where the image has its boot loader (section 3.5.1.1). The architecture is Go's
// name of it; an unknown one gets "".
func Program(arch string) string {
	switch arch {
	case "amd64":
		return `\EFI\BOOT\BOOTX64.EFI`
	case "arm64":
		return `\EFI\BOOT\BOOTAA64.EFI`
	default:
		return ""
	}
}

// network says whether an option boots from a network card: UEFI's own names a
// MAC address (section 10.3.4.11), an old ROM's entry is of type 6 (section
// 10.3.6).
func (o LoadOption) network() bool {
	for _, n := range o.Path {
		switch {
		case n.Type == typeMessaging && n.Subtype == messagingMAC:
			return true
		case n.Type == typeBBS && n.Subtype == bbsDevice && len(n.Data) >= 2 && binary.LittleEndian.Uint16(n.Data) == 6:
			return true
		}
	}
	return false
}

func encodePath(nodes []Node) ([]byte, error) {
	var b []byte
	for _, n := range nodes {
		length := nodeHeader + len(n.Data)
		if len(b)+length > math.MaxUint16 {
			return nil, fmt.Errorf("encoding a device path: more than %d bytes", math.MaxUint16)
		}
		b = append(b, n.Type, n.Subtype)
		b = binary.LittleEndian.AppendUint16(b, uint16(length))
		b = append(b, n.Data...)
	}
	return b, nil
}

func parsePath(b []byte) ([]Node, error) {
	var nodes []Node
	for len(b) > 0 {
		if len(b) < nodeHeader {
			return nil, fmt.Errorf("parsing a device path: %d bytes at its end are no node", len(b))
		}
		length := int(binary.LittleEndian.Uint16(b[2:]))
		if length < nodeHeader || length > len(b) {
			return nil, fmt.Errorf("parsing a device path: a node of %d bytes where %d are there", length, len(b))
		}
		n := Node{Type: b[0], Subtype: b[1]}
		if length > nodeHeader {
			n.Data = b[nodeHeader:length]
		}
		nodes = append(nodes, n)
		b = b[length:]
	}
	return nodes, nil
}
