package efiboot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Variables are the firmware's global variables (section 3.3), kept over a reset.
type Variables interface {
	// Names returns the names of all there are.
	Names() ([]string, error)
	// Read returns a variable's content; the error wraps fs.ErrNotExist when there
	// is none of that name.
	Read(name string) ([]byte, error)
	// Write makes or replaces a variable.
	Write(name string, content []byte) error
	// Delete removes a variable; that it is gone already is no error.
	Delete(name string) error
}

// Change is what Arrange found and did.
type Change struct {
	Plan
	// Before is the boot order as it was.
	Before []uint16
}

// After is the boot order as it is to be.
func (c Change) After() []uint16 {
	if c.Order == nil {
		return c.Before
	}
	return c.Order
}

// Arrange makes an option the entry right behind the one that this boot came
// from, as Decide says, and looks whether the firmware took it. What is right
// already is not written again: the memory of firmware wears out.
func Arrange(v Variables, o LoadOption) (Change, error) {
	option, err := o.Encode()
	if err != nil {
		return Change{}, err
	}
	s, err := read(v)
	if err != nil {
		return Change{}, err
	}
	p, err := Decide(s, option)
	c := Change{Plan: p, Before: s.Order}
	if err != nil || p.Empty() {
		return c, err
	}
	if p.Option != nil {
		if err := v.Write(name(p.Number), p.Option); err != nil {
			return c, err
		}
	}
	if p.Order != nil {
		if err := v.Write(bootOrder, encodeNumbers(p.Order)); err != nil {
			return c, err
		}
	}
	for _, n := range p.Delete {
		if err := v.Delete(name(n)); err != nil {
			return c, err
		}
	}
	if s, err = read(v); err != nil {
		return c, err
	}
	if again, err := Decide(s, option); err != nil || !again.Empty() {
		return c, fmt.Errorf("putting entry %s into the boot order %s: the firmware took it and now shows %s", name(p.Number), Numbers(c.Before), Numbers(s.Order))
	}
	return c, nil
}

const (
	bootOrder   = "BootOrder"
	bootCurrent = "BootCurrent"
)

// read collects what Decide looks at. Firmware without a boot order has an empty
// one.
func read(v Variables) (State, error) {
	s := State{Options: map[uint16][]byte{}}
	order, err := readNumbers(v, bootOrder)
	if err != nil {
		return s, err
	}
	s.Order = order
	current, err := readNumbers(v, bootCurrent)
	if err != nil {
		return s, err
	}
	if len(current) == 1 {
		s.Current, s.HasCurrent = current[0], true
	}
	names, err := v.Names()
	if err != nil {
		return s, err
	}
	for _, name := range names {
		n, ok := number(name)
		if !ok {
			continue
		}
		b, err := v.Read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return s, err
		}
		s.Options[n] = b
	}
	return s, nil
}

func readNumbers(v Variables, name string) ([]uint16, error) {
	b, err := v.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if len(b)%2 != 0 {
		return nil, fmt.Errorf("reading the firmware's variable %s: %d bytes are no list of 16-bit numbers", name, len(b))
	}
	var n []uint16
	for ; len(b) > 0; b = b[2:] {
		n = append(n, binary.LittleEndian.Uint16(b))
	}
	return n, nil
}

func encodeNumbers(n []uint16) []byte {
	var b []byte
	for _, x := range n {
		b = binary.LittleEndian.AppendUint16(b, x)
	}
	return b
}

// Numbers is an order for people, as efibootmgr prints it.
func Numbers(n []uint16) string {
	s := make([]string, len(n))
	for i, x := range n {
		s[i] = fmt.Sprintf("%04X", x)
	}
	return strings.Join(s, ",")
}

func name(n uint16) string { return fmt.Sprintf("Boot%04X", n) }

// number reads Boot####, with four capital hexadecimal digits (section 3.3).
func number(variable string) (uint16, bool) {
	digits, ok := strings.CutPrefix(variable, "Boot")
	if !ok || len(digits) != 4 || digits != strings.ToUpper(digits) {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 16)
	return uint16(n), err == nil
}
