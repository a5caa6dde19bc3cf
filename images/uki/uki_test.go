package uki_test

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/images/fstree"
	"github.com/imagectl/imagectl/images/fstree/fstreetest"
	"github.com/imagectl/imagectl/images/uki"
)

// debianStub is systemd's, from Debian's systemd-boot-efi.
const debianStub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

func stub(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(debianStub)
	if err != nil {
		t.Fatalf("%v: apt-get install -y systemd-boot-efi", err)
	}
	return b
}

// options stand for a real system; any EFI program passes for a kernel here.
func options(t testing.TB) uki.Options {
	t.Helper()
	return uki.Options{
		Stub: stub(t), OSRelease: "ID=test\nPRETTY_NAME=\"A test\"\n", Cmdline: "console=ttyS0 flatcar.first_boot=1",
		Kernel: fstree.Bytes(stub(t)), Initrd: fstreetest.Noise{Seed: 9, Length: 5<<20 + 1},
	}
}

func written(t testing.TB, o uki.Options) (string, *uki.Image) {
	t.Helper()
	m, err := uki.New(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "uki.efi")
	b := content(t, m)
	if int64(len(b)) != m.Size() {
		t.Errorf("%d bytes, it says %d", len(b), m.Size())
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path, m
}

func content(t testing.TB, c fstree.Content) []byte {
	t.Helper()
	r, err := c.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestForeignToolsFindTheSections(t *testing.T) {
	o := options(t)
	path, m := written(t, o)
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	list := fstreetest.Run(t, "binutils", "objdump", "-h", path)
	for name, want := range map[string]fstree.Content{
		uki.OSRelease: fstree.Bytes(o.OSRelease), uki.Cmdline: fstree.Bytes(o.Cmdline), uki.Initrd: o.Initrd, uki.Kernel: o.Kernel,
	} {
		s := m.Section(name)
		if s.Length != want.Size() || name != uki.OSRelease && s.Offset%uki.Align != 0 {
			t.Errorf("%s: %+v", name, s)
		}
		if !bytes.Equal(file[s.Offset:s.Offset+s.Length], content(t, want)) {
			t.Errorf("%s is not where Section says", name)
		}
		// objdump shows the size in memory, the address twice, and the place in the file.
		if !regexp.MustCompile(fmt.Sprintf(`\%s +%08x +([0-9a-f]{16}) +([0-9a-f]{16}) +%08x`, name, want.Size(), s.Offset)).MatchString(list) {
			t.Errorf("%s at %#x with %#x bytes is not in\n%s", name, s.Offset, s.Length, list)
		}
	}
	if got := strings.Count(list, "CONTENTS"); got != 8+4 {
		t.Errorf("%d sections, want the stub's 8 and 4:\n%s", got, list)
	}
	if m.Arch() != "amd64" {
		t.Errorf("it is for %s", m.Arch())
	}
	if out := fstreetest.Run(t, "binutils", "objdump", "-p", path); !strings.Contains(out, "EFI application") {
		t.Errorf("objdump: %s", out)
	}
}

// TestSectionsFollowEachOther: in memory without overlap, in the file without
// gaps, which tools for signatures disagree on.
func TestSectionsFollowEachOther(t *testing.T) {
	path, m := written(t, options(t))
	f, err := pe.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok {
		t.Fatal("not PE32+")
	}
	file, memory := h.SizeOfHeaders, h.SizeOfHeaders
	for _, s := range f.Sections {
		if s.Offset != file {
			t.Errorf("%s is at %#x in the file, the one before ends at %#x", s.Name, s.Offset, file)
		}
		if s.VirtualAddress < memory {
			t.Errorf("%s is at %#x in memory, the one before ends at %#x", s.Name, s.VirtualAddress, memory)
		}
		if m.Section(s.Name).Length != 0 && s.VirtualAddress%uki.Align != 0 { // the stub's own are where they are
			t.Errorf("%s is at %#x in memory", s.Name, s.VirtualAddress)
		}
		file, memory = s.Offset+s.Size, s.VirtualAddress+s.VirtualSize
	}
	if int64(file) != m.Size() || h.SizeOfImage < memory {
		t.Errorf("sections end at %d and %d, the file has %d, the image %d", file, memory, m.Size(), h.SizeOfImage)
	}
	if f.FileHeader.PointerToSymbolTable != 0 || f.FileHeader.NumberOfSymbols != 0 {
		t.Errorf("there is a symbol table at %#x", f.FileHeader.PointerToSymbolTable)
	}
}

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	digest := func() [32]byte {
		m, err := uki.New(options(t))
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(content(t, m))
	}
	if a, b := digest(), digest(); a != b {
		t.Errorf("%x and %x", a, b)
	}
}

func TestRefusals(t *testing.T) {
	// header returns where the stub's optional header begins.
	header := func(b []byte) uint32 { return binary.LittleEndian.Uint32(b[0x3c:]) + 24 }
	for _, tt := range []struct {
		edit func(*uki.Options)
		want string
	}{
		{func(o *uki.Options) { o.Cmdline = strings.Repeat("x", 2048) }, "the kernel's command line has 2048 characters, it takes 2047: remove kernel arguments"},
		{func(o *uki.Options) { o.Cmdline = "a\nb" }, `the kernel's command line holds '\n', it takes printable ASCII`},
		{func(o *uki.Options) { o.Cmdline = "" }, ".cmdline is empty"},
		{func(o *uki.Options) { o.Kernel = fstree.Bytes("no kernel") }, "reading the kernel: it is no EFI program; it needs CONFIG_EFI_STUB"},
		{func(o *uki.Options) { o.Stub = nil }, "reading the stub: it is no EFI program"},
		{func(o *uki.Options) { o.Stub = headersOf(o.Stub, 8) }, "reading the stub: it is damaged: headers end at 712 of 1024, sections at 70656 of 1024"},
		{func(o *uki.Options) { binary.LittleEndian.PutUint32(o.Stub[header(o.Stub)+112+4*8+4:], 8) },
			"reading the stub: it is signed, and the signature would not cover what is added: use the unsigned one"},
		{func(o *uki.Options) { o.Stub[1000] = 1 }, "reading the stub: there is something where the headers of more sections would go"},
		{func(o *uki.Options) { binary.LittleEndian.PutUint32(o.Stub[header(o.Stub)+60:], 800) }, "the stub's headers have room for 2 more sections, 4 are needed"},
		{func(o *uki.Options) { binary.LittleEndian.PutUint16(o.Stub[header(o.Stub)-20:], 0xaa64) }, "the stub is for arm64, the kernel for amd64"},
		{func(o *uki.Options) { o.Initrd = fstree.Zeros(2 << 30) }, ".initrd: with its 2147483648 bytes the program would be larger than 2 GiB"},
	} {
		o := options(t)
		tt.edit(&o)
		_, err := uki.New(o)
		if want := "putting a unified kernel image together: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}

// headersOf are the headers of a stub, without its symbol table, and with the
// first sections only.
func headersOf(stub []byte, sections uint16) []byte {
	b := bytes.Clone(stub[:1024])
	coff := binary.LittleEndian.Uint32(b[0x3c:]) + 4
	binary.LittleEndian.PutUint64(b[coff+8:], 0)
	clear(b[coff+20+240+40*uint32(sections):])
	binary.LittleEndian.PutUint16(b[coff+2:], sections)
	return b
}

// FuzzStub: whatever the stub is, New answers, and what it makes has its sections.
func FuzzStub(f *testing.F) {
	good := stub(f)
	f.Add(headersOf(good, 0))
	f.Add(headersOf(good, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := uki.New(uki.Options{Stub: b, OSRelease: "ID=x\n", Cmdline: "x", Kernel: fstree.Bytes(good), Initrd: fstree.Bytes("x")})
		if err != nil {
			return
		}
		p, err := pe.NewFile(bytes.NewReader(content(t, m)))
		if err != nil {
			t.Fatal(err)
		}
		if s := p.Section(uki.Cmdline); s == nil || int64(s.Offset) != m.Section(uki.Cmdline).Offset {
			t.Errorf("the command line is not found: %+v", s)
		}
	})
}
