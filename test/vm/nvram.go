package vm

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"unicode/utf16"
)

// NVRAM is the file in which OVMF keeps its variables, while no guest uses it: the
// global ones of the UEFI specification. The layout is EDK2's
// (MdeModulePkg/Include/Guid/VariableFormat.h, authenticated variables).
type NVRAM struct{ Path string }

// Numbers of that layout.
const (
	storeOffset    = 72 // a firmware volume header with one block map entry
	storeHeader    = 28
	variableHeader = 60
	variableStart  = 0x55aa
	variableAdded  = 0x3f
	inDeletion     = 0x3e // being replaced; good until its successor is there
	deletedMask    = 0xfd
	bootVariable   = 7 // attributes: non-volatile, at boot time and at run time
)

// GUIDs as they are stored: of the store, and of UEFI's own variables.
const (
	storeKind  = "\x78\x2c\xf3\xaa\x7b\x94\x9a\x43\xa1\x80\x2e\x14\x4e\xc3\x77\x92"
	globalKind = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
)

// nvramVariable is one global variable and where it begins in the file.
type nvramVariable struct {
	at    int
	name  string
	value []byte
}

// load returns the file, its good global variables and where free space begins
// and ends.
func (n NVRAM) load() (b []byte, vars []nvramVariable, free, end int, err error) {
	if b, err = os.ReadFile(n.Path); err != nil {
		return nil, nil, 0, 0, err
	}
	if len(b) < storeOffset+storeHeader || string(b[storeOffset:storeOffset+16]) != storeKind {
		return nil, nil, 0, 0, fmt.Errorf("reading %s: it is no store of authenticated variables", n.Path)
	}
	end = min(len(b), storeOffset+int(binary.LittleEndian.Uint32(b[storeOffset+16:])))
	at := storeOffset + storeHeader
	for at+variableHeader <= end && binary.LittleEndian.Uint16(b[at:]) == variableStart {
		h := b[at:]
		nameLen, dataLen := int(binary.LittleEndian.Uint32(h[36:])), int(binary.LittleEndian.Uint32(h[40:]))
		if nameLen > end-at || dataLen > end-at || at+variableHeader+nameLen+dataLen > end {
			return nil, nil, 0, 0, fmt.Errorf("reading %s: the variable at %d does not fit", n.Path, at)
		}
		if state := h[2]; (state == variableAdded || state == inDeletion) && string(h[44:60]) == globalKind {
			var u []uint16
			for i := 0; i+2 < nameLen; i += 2 {
				u = append(u, binary.LittleEndian.Uint16(h[variableHeader+i:]))
			}
			vars = append(vars, nvramVariable{at, string(utf16.Decode(u)), h[variableHeader+nameLen:][:dataLen]})
		}
		at += (variableHeader + nameLen + dataLen + 3) &^ 3
	}
	return b, vars, at, end, nil
}

// Names returns the names of all there are.
func (n NVRAM) Names() ([]string, error) {
	_, vars, _, _, err := n.load()
	var names []string
	for _, v := range vars {
		names = append(names, v.name)
	}
	return names, err
}

// Read returns a variable's content; the error wraps fs.ErrNotExist when there is
// none of that name.
func (n NVRAM) Read(name string) ([]byte, error) {
	_, vars, _, _, err := n.load()
	if err != nil {
		return nil, err
	}
	// The last one is the newest.
	for _, v := range slices.Backward(vars) {
		if v.name == name {
			return v.value, nil
		}
	}
	return nil, fmt.Errorf("reading variable %s in %s: %w", name, n.Path, fs.ErrNotExist)
}

// Write makes or replaces a variable.
func (n NVRAM) Write(name string, content []byte) error { return n.replace(name, content) }

// Delete removes a variable.
func (n NVRAM) Delete(name string) error { return n.replace(name, nil) }

func (n NVRAM) replace(name string, content []byte) error {
	b, vars, free, end, err := n.load()
	if err != nil {
		return err
	}
	for _, v := range vars {
		if v.name == name {
			b[v.at+2] &= deletedMask
		}
	}
	if content != nil {
		v := make([]byte, variableHeader)
		binary.LittleEndian.PutUint16(v, variableStart)
		v[2] = variableAdded
		binary.LittleEndian.PutUint32(v[4:], bootVariable)
		binary.LittleEndian.PutUint32(v[36:], uint32(2*len(name)+2))
		binary.LittleEndian.PutUint32(v[40:], uint32(len(content)))
		copy(v[44:], globalKind)
		for _, c := range append(utf16.Encode([]rune(name)), 0) {
			v = binary.LittleEndian.AppendUint16(v, c)
		}
		v = append(v, content...)
		if free+len(v) > end {
			return fmt.Errorf("writing variable %s in %s: no space left", name, n.Path)
		}
		copy(b[free:], v)
	}
	return os.WriteFile(n.Path, b, 0o644)
}
