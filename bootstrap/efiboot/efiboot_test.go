package efiboot

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// esp is the EFI system partition of the tests, 5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6.
var esp = Partition{Number: 1, First: 2048, Sectors: 262144, GUID: [16]byte{0xf4, 0xf5, 0xfb, 0x5d, 0x48, 0x28, 0xac, 0x4b, 0xaa, 0x5e, 0x0d, 0x9a, 0x20, 0xb7, 0x45, 0xa6}}

func encode(t *testing.T, o LoadOption) []byte {
	t.Helper()
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func disk(t *testing.T, description string) []byte {
	return encode(t, DiskOption(description, esp, Program("amd64")))
}

// card is a network entry as OVMF makes it, with an address of its own.
func card(t *testing.T, description string) []byte {
	return encode(t, LoadOption{Attributes: Active, Description: description, Path: []Node{
		{Type: 2, Subtype: 1, Data: []byte{0xd0, 0x41, 0x03, 0x0a, 0, 0, 0, 0}},
		{Type: 1, Subtype: 1, Data: []byte{0, 2}},
		{Type: typeMessaging, Subtype: messagingMAC, Data: append([]byte{0x52, 0x54, 0, 0x77, 0, 0x21}, make([]byte, 27)...)},
		{Type: typeMessaging, Subtype: 0x0c, Data: make([]byte, 23)},
		{Type: typeEnd, Subtype: endEntirePath},
	}, Optional: []byte{0x4e, 0xac, 0x08, 0x81, 0x11, 0x9f, 0x59, 0x4d, 0x85, 0x0e, 0xe2, 0x1a, 0x52, 0x2c, 0x59, 0xb2}})
}

// The golden file is Boot0000 without its attributes as efibootmgr 17 makes it on a
// loop device of a disk with this partition:
//
//	sgdisk -o -n 1:2048:264191 -t 1:ef00 -u 1:5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6 disk.img
//	EFIVARFS_PATH=$PWD/vars/ efibootmgr -c -d /dev/loop0 -p 1 -L 'imagectl w1/disk' -l '\EFI\BOOT\BOOTX64.EFI'
func TestTheEntryHasTheBytesThatEfibootmgrMakes(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("testdata/efibootmgr.hex")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(disk(t, "imagectl w1/disk")) + "\n"; got != string(want) {
		t.Errorf("got  %swant %s", got, want)
	}
}

func TestParseReadsWhatEncodeWrote(t *testing.T) {
	t.Parallel()
	for _, want := range []LoadOption{
		DiskOption("imagectl w1/disk", esp, Program("arm64")),
		{Description: "größer 😀", Path: []Node{{Type: typeEnd, Subtype: endEntirePath}}, Optional: []byte{1}},
		{},
	} {
		got, err := Parse(encode(t, want))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(got, want); d != "" {
			t.Error(d)
		}
	}
	if _, err := (LoadOption{Path: []Node{{Data: make([]byte, 65532)}}}).Encode(); err == nil {
		t.Error("a device path of 65536 bytes was encoded")
	}
}

func TestParseRefusesWhatIsNoLoadOption(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"", "parsing a load option: 0 bytes, less than 6"},
		{"010000000000", "parsing a load option: its description does not end"},
		{"010000000000410042", "parsing a load option: its description does not end"},
		{"0100000004000000", "parsing a load option: its device path has 4 bytes, 0 are there"},
		{"01000000020000007fff", "parsing a load option: parsing a device path: 2 bytes at its end are no node"},
		{"01000000040000007fff0300", "parsing a load option: parsing a device path: a node of 3 bytes where 4 are there"},
		{"01000000040000007fff0500", "parsing a load option: parsing a device path: a node of 5 bytes where 4 are there"},
	} {
		b, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(b); err == nil || err.Error() != c.want {
			t.Errorf("%s: got %v, want %s", c.in, err, c.want)
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	want := disk(t, "imagectl w1/disk")
	old := disk(t, "imagectl w7/disk")
	foreign := disk(t, "imagectlish")
	pxe4, pxe6, http4 := card(t, "UEFI PXEv4"), card(t, "UEFI PXEv6"), card(t, "UEFI HTTPv4")
	bbs := encode(t, LoadOption{Attributes: Active, Description: "LAN ROM", Path: []Node{{Type: typeBBS, Subtype: bbsDevice, Data: []byte{6, 0, 0, 0, 0}}, {Type: typeEnd, Subtype: endEntirePath}}})
	for _, c := range []struct {
		name string
		in   State
		want Plan
	}{
		{"behind the entry that netbooted",
			State{Order: []uint16{1, 2, 3, 0}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{0: foreign, 1: pxe4, 2: pxe6, 3: http4}},
			Plan{Number: 4, Option: want, Order: []uint16{1, 4, 2, 3, 0}}},
		{"behind the second network entry, when that netbooted",
			State{Order: []uint16{1, 2, 3, 0}, Current: 2, HasCurrent: true, Options: map[uint16][]byte{0: foreign, 1: pxe4, 2: pxe6, 3: http4}},
			Plan{Number: 4, Option: want, Order: []uint16{1, 2, 4, 3, 0}}},
		{"a disk before the network stays there",
			State{Order: []uint16{0, 1, 2}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{0: foreign, 1: pxe4, 2: pxe6}},
			Plan{Number: 3, Option: want, Order: []uint16{0, 1, 3, 2}}},
		{"a reinstallation changes nothing",
			State{Order: []uint16{1, 4, 2}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{1: pxe4, 2: pxe6, 4: want}},
			Plan{Number: 4}},
		{"a reinstallation with another image takes its number again",
			State{Order: []uint16{1, 4, 2}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{1: pxe4, 2: pxe6, 4: old}},
			Plan{Number: 4, Option: want}},
		{"old entries go, the fitting one is kept",
			State{Order: []uint16{4, 1, 5, 6, 2}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{1: pxe4, 2: pxe6, 4: old, 5: want, 6: want}},
			Plan{Number: 5, Order: []uint16{1, 5, 2}, Delete: []uint16{4, 6}}},
		{"firmware forgot the order of an entry that is still there",
			State{Order: []uint16{1, 2}, Current: 1, HasCurrent: true, Options: map[uint16][]byte{1: pxe4, 2: pxe6, 4: want}},
			Plan{Number: 4, Order: []uint16{1, 4, 2}}},
		{"a one-time network boot: behind the first network entry",
			State{Order: []uint16{0, 2, 3}, Current: 9, HasCurrent: true, Options: map[uint16][]byte{0: foreign, 2: pxe6, 3: http4, 9: pxe4}},
			Plan{Number: 1, Option: want, Order: []uint16{0, 2, 1, 3}}},
		{"firmware does not say: behind the first network entry, be it an old ROM's",
			State{Order: []uint16{0, 2, 3}, Options: map[uint16][]byte{0: foreign, 2: bbs, 3: http4}},
			Plan{Number: 1, Option: want, Order: []uint16{0, 2, 1, 3}}},
		{"nothing netboots by itself: in front",
			State{Order: []uint16{3}, Current: 9, HasCurrent: true, Options: map[uint16][]byte{3: foreign}},
			Plan{Number: 0, Option: want, Order: []uint16{0, 3}}},
		{"no order at all",
			State{},
			Plan{Number: 0, Option: want, Order: []uint16{0}}},
		{"numbers of entries that are gone are not taken, rubbish is left alone",
			State{Order: []uint16{0, 1, 3}, Current: 0, HasCurrent: true, Options: map[uint16][]byte{1: []byte("rubbish"), 2: nil}},
			Plan{Number: 4, Option: want, Order: []uint16{0, 4, 1, 3}}},
	} {
		before := slices.Clone(c.in.Order)
		got, err := Decide(c.in, want)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(got, c.want); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		if !slices.Equal(c.in.Order, before) {
			t.Errorf("%s: the given order was changed", c.name)
		}
	}
	full := State{Options: map[uint16][]byte{}}
	for n := range 1 << 16 {
		full.Options[uint16(n)] = foreign
	}
	if _, err := Decide(full, want); err == nil || err.Error() != "adding a boot entry: all 65536 are in use" {
		t.Errorf("got %v", err)
	}
}

// memory is a firmware that remembers.
type memory struct {
	vars   map[string][]byte
	writes []string
	// refuses is a variable that it does not write; forgets one that it pretends to.
	refuses, forgets string
}

func (m *memory) Names() ([]string, error) { return slices.Collect(maps.Keys(m.vars)), nil }

func (m *memory) Read(name string) ([]byte, error) {
	b, ok := m.vars[name]
	if !ok {
		return nil, fmt.Errorf("reading %s: %w", name, fs.ErrNotExist)
	}
	return b, nil
}

func (m *memory) Write(name string, b []byte) error {
	if name == m.refuses {
		return errors.New("no space left on device")
	}
	m.writes = append(m.writes, name)
	if name != m.forgets {
		m.vars[name] = bytes.Clone(b)
	}
	return nil
}

func (m *memory) Delete(name string) error {
	m.writes = append(m.writes, "-"+name)
	delete(m.vars, name)
	return nil
}

func firmware(t *testing.T) *memory {
	return &memory{vars: map[string][]byte{
		"BootCurrent": {1, 0}, "BootOrder": {1, 0, 2, 0, 0, 0}, "Boot0001": card(t, "UEFI PXEv4"), "Boot0002": card(t, "UEFI PXEv6"),
		"Boot0000": disk(t, "UEFI Misc Device"), "BootOptionSupport": {3, 0, 0, 0}, "Timeout": {3, 0}, "Boot00zz": nil, "Boot000a": nil,
	}}
}

func TestArrangeWritesOnceAndOnlyWhatDiffers(t *testing.T) {
	t.Parallel()
	m := firmware(t)
	for i, want := range []struct {
		option LoadOption
		writes []string
		order  string
	}{
		{DiskOption("imagectl w1/disk", esp, Program("amd64")), []string{"Boot0003", "BootOrder"}, "0001,0003,0002,0000"},
		{DiskOption("imagectl w1/disk", esp, Program("amd64")), nil, "0001,0003,0002,0000"},
		{DiskOption("imagectl w2/disk", esp, Program("amd64")), []string{"Boot0003"}, "0001,0003,0002,0000"},
	} {
		m.writes = nil
		c, err := Arrange(m, want.option)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m.writes, want.writes) || Numbers(c.After()) != want.order || c.Empty() != (want.writes == nil) {
			t.Errorf("%d: got %v, %s, want %v, %s", i, m.writes, Numbers(c.After()), want.writes, want.order)
		}
	}
	m.vars["Boot0009"] = disk(t, "imagectl old/disk")
	m.writes = nil
	if _, err := Arrange(m, DiskOption("imagectl w2/disk", esp, Program("amd64"))); err != nil || !slices.Equal(m.writes, []string{"-Boot0009"}) {
		t.Errorf("got %v, %v, want only Boot0009 deleted", m.writes, err)
	}
}

func TestArrangeSaysWhatTheFirmwareRefused(t *testing.T) {
	t.Parallel()
	option := DiskOption("imagectl w1/disk", esp, Program("amd64"))
	m := firmware(t)
	m.refuses = "Boot0003"
	if _, err := Arrange(m, option); err == nil || len(m.writes) != 0 {
		t.Errorf("got %v after writing %v", err, m.writes)
	}
	m = firmware(t)
	m.forgets = "BootOrder"
	if _, err := Arrange(m, option); err == nil || err.Error() != "putting entry Boot0003 into the boot order 0001,0002,0000: the firmware took it and now shows 0001,0002,0000" {
		t.Errorf("got %v", err)
	}
	m = firmware(t)
	m.vars["BootOrder"] = []byte{1}
	if _, err := Arrange(m, option); err == nil || err.Error() != "reading the firmware's variable BootOrder: 1 bytes are no list of 16-bit numbers" {
		t.Errorf("got %v", err)
	}
}

// efibootmgr reads the variables from a directory in efivarfs's format.
func TestEfibootmgrUnderstandsWhatArrangeWrote(t *testing.T) {
	t.Parallel()
	m := firmware(t)
	delete(m.vars, "Boot00zz")
	delete(m.vars, "Boot000a")
	if _, err := Arrange(m, DiskOption("imagectl w1/disk", esp, Program("amd64"))); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() + "/"
	for name, b := range m.vars {
		file := filepath.Join(dir, name+"-8be4df61-93ca-11d2-aa0d-00e098032b8c")
		if err := os.WriteFile(file, append([]byte{7, 0, 0, 0}, b...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("efibootmgr", "-v")
	cmd.Env = append(os.Environ(), "EFIVARFS_PATH="+dir, "LIBEFIVAR_OPS=efivarfs")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("efibootmgr (apt-get install efibootmgr): %v: %s", err, out)
	}
	for _, want := range []string{
		"BootCurrent: 0001\n",
		"BootOrder: 0001,0003,0002,0000\n",
		"Boot0003* imagectl w1/disk\tHD(1,GPT,5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6,0x800,0x40000)/File(\\EFI\\BOOT\\BOOTX64.EFI)\n",
		"Boot0001* UEFI PXEv4\tPciRoot(0x0)/Pci(0x2,0x0)/MAC(525400770021,0)/IPv4(",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{nil, {1, 0, 0, 0, 4, 0, 0, 0, 0x7f, 0xff, 4, 0}} {
		f.Add(b)
	}
	if b, err := DiskOption("imagectl w1/disk", esp, Program("amd64")).Encode(); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		o, err := Parse(in)
		if err != nil {
			return
		}
		out, err := o.Encode()
		if err != nil {
			t.Fatal(err)
		}
		// Text that is no Unicode does not survive; all else does.
		again, err := Parse(out)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(again, o); d != "" {
			t.Error(d)
		}
		_ = o.network()
	})
}
