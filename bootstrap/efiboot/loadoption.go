package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
)

// Active says that the firmware may boot an option by itself
// (LOAD_OPTION_ACTIVE, section 3.1.3).
const Active = 0x00000001

// LoadOption is what a Boot#### variable holds (EFI_LOAD_OPTION, section 3.1.3).
type LoadOption struct {
	Attributes  uint32
	Description string
	// Path is one device path or several, the nodes that end them included.
	Path []Node
	// Optional is handed to the program.
	Optional []byte
}

// Encode returns the variable's content. It fails when the device path is longer
// than its 16-bit length can say.
func (o LoadOption) Encode() ([]byte, error) {
	path, err := encodePath(o.Path)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint32(nil, o.Attributes)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(path)))
	b = append(b, text(o.Description)...)
	b = append(b, path...)
	return append(b, o.Optional...), nil
}

// Parse decodes a variable's content. Firmware writes what it likes: whatever
// does not follow the specification is an error.
func Parse(b []byte) (LoadOption, error) {
	const fixed = 4 + 2
	if len(b) < fixed {
		return LoadOption{}, fmt.Errorf("parsing a load option: %d bytes, less than %d", len(b), fixed)
	}
	o := LoadOption{Attributes: binary.LittleEndian.Uint32(b)}
	length := int(binary.LittleEndian.Uint16(b[4:]))
	b = b[fixed:]
	var u []uint16
	for {
		if len(b) < 2 {
			return LoadOption{}, errors.New("parsing a load option: its description does not end")
		}
		c := binary.LittleEndian.Uint16(b)
		b = b[2:]
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	o.Description = string(utf16.Decode(u))
	if len(b) < length {
		return LoadOption{}, fmt.Errorf("parsing a load option: its device path has %d bytes, %d are there", length, len(b))
	}
	var err error
	if o.Path, err = parsePath(b[:length]); err != nil {
		return LoadOption{}, fmt.Errorf("parsing a load option: %w", err)
	}
	if b = b[length:]; len(b) > 0 {
		o.Optional = b
	}
	return o, nil
}

// text is a string as UEFI wants it: UCS-2 and a final zero.
func text(s string) []byte {
	var b []byte
	for _, c := range append(utf16.Encode([]rune(s)), 0) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}
