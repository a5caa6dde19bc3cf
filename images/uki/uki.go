// Package uki puts a kernel, its initial RAM file system and its command line into
// one EFI program: a unified kernel image (the UAPI group's specification of that
// name), which firmware starts without a boot loader and which one signature
// covers as a whole.
//
// The program that firmware enters is systemd's stub, an input; this package adds
// sections to it (Microsoft's "PE Format"). The result is an fstree.Content: only
// headers are in memory, kernel and initial RAM file system are read when they are
// written out. Equal inputs give equal bytes.
//
// There are no gaps between sections, on which those who hash a program for a
// signature would not agree. A signature (Microsoft's "Windows Authenticode Portable
// Executable Signature Format") is the signer's; this package puts it in its place.
package uki

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/imagectl/imagectl/images/fstree"
)

const (
	// Align is what every section but the first begins at a multiple of, in the
	// file, so that another file system can name its bytes.
	Align = 4096
	// MaxCmdline is what an x86 kernel takes (COMMAND_LINE_SIZE less its NUL).
	MaxCmdline = 2047

	stubLimit = 16 << 20
)

// Options say what goes in. All of them are required but Signer.
type Options struct {
	// Stub is systemd's linuxx64.efi.stub or linuxaa64.efi.stub.
	Stub []byte
	// OSRelease is in the form of os-release(5); boot menus show its PRETTY_NAME.
	OSRelease string
	// Cmdline is the kernel's: printable ASCII.
	Cmdline string
	// Kernel is one with an EFI stub of its own, which all distributions' have.
	Kernel fstree.Content
	// Initrd is one or more cpio archives.
	Initrd fstree.Content
	// Signer signs the program; nil leaves it unsigned. What it covers is read once
	// more for that.
	Signer Signer
}

// Signer makes a signature of a program's Authenticode digest (SHA-256): PKCS #7 in
// DER form, which depends on nothing else when equal inputs are to give equal bytes.
type Signer interface {
	SignProgram(digest [sha256.Size]byte) ([]byte, error)
}

// Image is a unified kernel image, as content.
type Image struct {
	content  fstree.Sequence
	sections map[string]Section
	arch     string
}

// Section is where something begins in the file, and how long it is, in bytes.
type Section struct{ Offset, Length int64 }

// Names of sections.
const (
	OSRelease = ".osrel"
	Cmdline   = ".cmdline"
	Initrd    = ".initrd"
	Kernel    = ".linux"
)

// Size implements fstree.Content.
func (m *Image) Size() int64 { return m.content.Size() }

// Open implements fstree.Content.
func (m *Image) Open() (io.ReadCloser, error) { return m.content.Open() }

// Section finds one of those that New added.
func (m *Image) Section(name string) Section { return m.sections[name] }

// Arch is the processor that the program is for: amd64 or arm64.
func (m *Image) Arch() string { return m.arch }

// New puts an image together.
func New(o Options) (*Image, error) {
	m, err := assemble(o)
	if err != nil {
		return nil, fmt.Errorf("putting a unified kernel image together: %w", err)
	}
	return m, nil
}

// part is a section to be.
type part struct {
	name    string
	content fstree.Content
	flags   uint32
}

func assemble(o Options) (*Image, error) {
	if err := checkCmdline(o.Cmdline); err != nil {
		return nil, err
	}
	s, err := readStub(o.Stub)
	if err != nil {
		return nil, fmt.Errorf("reading the stub: %w", err)
	}
	machine, err := kernelMachine(o.Kernel)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel: %w", err)
	}
	if machine != s.machine {
		return nil, fmt.Errorf("the stub is for %s, the kernel for %s", machineName(s.machine), machineName(machine))
	}
	m := &Image{sections: map[string]Section{}, arch: machineName(machine)}
	const data, code = pe.IMAGE_SCN_CNT_INITIALIZED_DATA | pe.IMAGE_SCN_MEM_READ, pe.IMAGE_SCN_CNT_CODE | pe.IMAGE_SCN_MEM_EXECUTE | pe.IMAGE_SCN_MEM_READ
	// The kernel is the last: an old one runs where it lies, and wants the room
	// behind it.
	err = m.add(s, []part{
		{OSRelease, fstree.Bytes(o.OSRelease), data},
		{Cmdline, fstree.Bytes(o.Cmdline), data},
		{Initrd, o.Initrd, data},
		{Kernel, o.Kernel, code},
	})
	if err == nil && o.Signer != nil {
		err = m.sign(s, o.Signer)
	}
	return m, err
}

func checkCmdline(s string) error {
	if len(s) > MaxCmdline {
		return fmt.Errorf("the kernel's command line has %d characters, it takes %d: remove kernel arguments", len(s), MaxCmdline)
	}
	for _, r := range s {
		if r < ' ' || r > '~' {
			return fmt.Errorf("the kernel's command line holds %q, it takes printable ASCII", r)
		}
	}
	return nil
}

// add writes the sections' headers into the stub's and lines the sections up.
func (m *Image) add(s *stub, parts []part) error {
	if room := int(s.sizeOfHeaders-s.headersEnd) / sectionHeaderSize; room < len(parts) {
		return fmt.Errorf("the stub's headers have room for %d more sections, %d are needed", room, len(parts))
	}
	le := binary.LittleEndian
	head := s.bytes
	m.content = fstree.Sequence{fstree.Bytes(head)}
	file, memory := int64(len(head)), s.memoryEnd
	var total int64
	for i, p := range parts {
		size := p.content.Size()
		if size == 0 {
			return fmt.Errorf("%s is empty", p.name)
		}
		raw := roundUp(file+size, Align) - file
		memory = roundUp(memory, max(s.sectionAlignment, Align))
		// Firmware reads the whole file into memory, and some count in signed 32 bits.
		if file+raw > math.MaxInt32 || memory+size > math.MaxInt32 {
			return fmt.Errorf("%s: with its %d bytes the program would be larger than 2 GiB", p.name, size)
		}
		h := head[s.headersEnd+int64(i)*sectionHeaderSize:]
		copy(h[:8], p.name)
		le.PutUint32(h[8:], uint32(size))
		le.PutUint32(h[12:], uint32(memory))
		le.PutUint32(h[16:], uint32(raw))
		le.PutUint32(h[20:], uint32(file))
		le.PutUint32(h[36:], p.flags)
		m.sections[p.name] = Section{Offset: file, Length: size}
		m.content = append(m.content, p.content, fstree.Zeros(raw-size))
		file, memory, total = file+raw, memory+size, total+raw
	}
	le.PutUint16(head[s.coff+2:], s.sections+uint16(len(parts)))
	le.PutUint32(head[s.optional+8:], s.initialized+uint32(total))
	le.PutUint32(head[s.optional+56:], uint32(roundUp(memory, s.sectionAlignment)))
	le.PutUint32(head[s.optional+64:], 0) // the checksum, which nobody wants for EFI
	return nil
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func machineName(m uint16) string {
	switch m {
	case pe.IMAGE_FILE_MACHINE_AMD64:
		return "amd64"
	case pe.IMAGE_FILE_MACHINE_ARM64:
		return "arm64"
	}
	return fmt.Sprintf("machine %#x", m)
}

// kernelMachine reads from the kernel's own EFI header what it runs on.
func kernelMachine(c fstree.Content) (uint16, error) {
	r, err := c.Open()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	head := make([]byte, min(c.Size(), 64<<10))
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, err
	}
	at, err := coffHeader(head)
	if err != nil {
		return 0, fmt.Errorf("%w; it needs CONFIG_EFI_STUB", err)
	}
	return binary.LittleEndian.Uint16(head[at:]), nil
}

var errNotEFI = errors.New("it is no EFI program")

// coffHeader finds the header behind the signature "PE".
func coffHeader(b []byte) (int64, error) {
	if len(b) < 64 || !bytes.HasPrefix(b, []byte("MZ")) {
		return 0, errNotEFI
	}
	at := int64(binary.LittleEndian.Uint32(b[0x3c:]))
	if at+24 > int64(len(b)) || !strings.HasPrefix(string(b[at:at+4]), "PE\x00\x00") {
		return 0, errNotEFI
	}
	return at + 4, nil
}
