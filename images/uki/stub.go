package uki

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

const sectionHeaderSize = 40

// stub is an EFI program that takes more sections. Offsets and sizes are in bytes.
type stub struct {
	// bytes is a copy of headers and sections, without the symbol table that may
	// follow them.
	bytes []byte
	// coff and optional are where those headers begin.
	coff, optional int64
	machine        uint16
	sections       uint16
	// headersEnd is where the next section's header goes.
	headersEnd, sizeOfHeaders int64
	sectionAlignment          int64
	initialized               uint32
	// memoryEnd is the end of the last section once it is loaded.
	memoryEnd int64
}

func readStub(b []byte) (*stub, error) {
	if len(b) > stubLimit {
		return nil, fmt.Errorf("it has %d bytes, a stub has less than %d", len(b), stubLimit)
	}
	at, err := coffHeader(b)
	if err != nil {
		return nil, err
	}
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotEFI, err)
	}
	o, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		return nil, errors.New("it is not for a 64-bit processor")
	}
	if o.DataDirectory[pe.IMAGE_DIRECTORY_ENTRY_SECURITY].Size != 0 {
		return nil, errors.New("it is signed, and the signature would not cover what is added: use the unsigned one")
	}
	if o.NumberOfRvaAndSizes <= pe.IMAGE_DIRECTORY_ENTRY_SECURITY {
		return nil, errors.New("its headers have no room to say where a signature is")
	}
	if !powerOfTwo(o.SectionAlignment) || !powerOfTwo(o.FileAlignment) || o.FileAlignment > Align {
		return nil, fmt.Errorf("its alignments %d and %d are no powers of two that can be kept", o.SectionAlignment, o.FileAlignment)
	}
	s := &stub{
		coff: at, optional: at + 20, machine: f.Machine, sections: f.NumberOfSections,
		sizeOfHeaders: int64(o.SizeOfHeaders), sectionAlignment: int64(o.SectionAlignment), initialized: o.SizeOfInitializedData,
	}
	s.headersEnd = s.optional + int64(f.SizeOfOptionalHeader) + int64(f.NumberOfSections)*sectionHeaderSize
	end := s.sizeOfHeaders
	for _, sec := range f.Sections {
		end = max(end, int64(sec.Offset)+int64(sec.Size))
		s.memoryEnd = max(s.memoryEnd, int64(sec.VirtualAddress)+int64(max(sec.VirtualSize, sec.Size)))
	}
	if s.headersEnd > s.sizeOfHeaders || end > int64(len(b)) || s.memoryEnd > math.MaxInt32 {
		return nil, fmt.Errorf("it is damaged: headers end at %d of %d, sections at %d of %d", s.headersEnd, s.sizeOfHeaders, end, len(b))
	}
	if slices.ContainsFunc(b[s.headersEnd:s.sizeOfHeaders], func(c byte) bool { return c != 0 }) {
		return nil, errors.New("there is something where the headers of more sections would go")
	}
	s.bytes = make([]byte, roundUp(end, int64(o.FileAlignment)))
	copy(s.bytes, b[:end])
	// The symbol table is cut off.
	binary.LittleEndian.PutUint64(s.bytes[at+8:], 0)
	return s, nil
}

func powerOfTwo(n uint32) bool { return n != 0 && n&(n-1) == 0 }
