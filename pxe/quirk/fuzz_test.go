package quirk_test

import (
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/imagectl/imagectl/pxe/quirk"
)

// Data is refused, or is a list of quirks by different names of which only those that are
// matched do something, and what they do is something that a protocol has.
func FuzzParse(f *testing.F) {
	own, err := os.ReadFile("quirks.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own, "PXEClient:Arch:00007:UNDI:003016", uint16(7))
	const rest = "number: 1, habit: h, answer: a, evidence: e, handled: matched"
	for _, s := range []string{
		"- {name: a, match: {named: true}, effect: {delay: -5s}, " + rest + "}", "- {name: a, match: {named: true}, effect: {blockSize: -1}, " + rest + "}",
		"- {name: a, match: {mac: [b8]}, effect: {vendorOptions: 060108ff, silent: s}, " + rest + "}\n---\n- x", "- &a {name: a, match: {arch: [7], lacks: 19}, effect: {localBoot: exit}, " + rest + "}\n- *a",
		"- {name: a, match: {vendorClass: PXE}, effect: {blockSize: 1}, " + rest + "}", "- {name: a, match: {named: true}, effect: {delay: 10000h}, " + rest + "}", "", "[]", "- ", "{", "- {effect: {vendorOptions: &x [*x]}}",
	} {
		f.Add([]byte(s), "PXEClient", uint16(7))
	}
	f.Fuzz(func(t *testing.T, data []byte, class string, arch uint16) {
		s, err := quirk.Parse(data)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, q := range s.All() {
			if seen[q.Name] || q.Name == "" || q.Evidence == "" {
				t.Errorf("%q has the quirk %+v", data, q)
			}
			seen[q.Name] = true
		}
		client := quirk.Client{MAC: net.HardwareAddr{0xb8, 0x27, 0xeb, 0, 0, 1}, VendorClass: class, Archs: []uint16{arch}, Features: []byte{}}
		for _, part := range []quirk.Part{quirk.DHCP, quirk.TFTP, quirk.Disk, 0} {
			e, names := s.Apply(part, client, s.Named())
			for _, name := range names {
				if i := slices.IndexFunc(s.All(), func(q quirk.Quirk) bool { return q.Name == name }); i < 0 || s.All()[i].Handled != quirk.Matched {
					t.Errorf("%q: %s does something", data, name)
				}
			}
			if e.Delay < 0 || e.Delay > time.Minute || e.BlockSize != 0 && (e.BlockSize < 8 || e.BlockSize > 65464) {
				t.Errorf("%q: answers leave %s later, in blocks of %d bytes", data, e.Delay, e.BlockSize)
			}
			if without, _ := s.Without("").Apply(part, client, s.Named()); without.Silent != e.Silent || without.Delay != e.Delay {
				t.Errorf("%q: without nothing it is another set", data)
			}
		}
	})
}
