package lldp

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func tlv(kind int, value string) string {
	return string(binary.BigEndian.AppendUint16(nil, uint16(kind<<9|len(value)))) + value
}

const header = "\x01\x80\xc2\x00\x00\x0e\x52\x54\x00\x00\x00\x01\x88\xcc"

func TestWhatNeighboursSay(t *testing.T) {
	t.Parallel()
	const mac = "\x04\x52\x54\x00\x00\x00\x01"
	least := header + tlv(1, mac) + tlv(2, "\x05swp7")
	for _, c := range []struct {
		name, frame string
		want        Neighbour
		err         string
	}{
		{"a switch", least + tlv(3, "\x00\x78") + tlv(4, "rack 3, server 7 ") + tlv(5, "leaf-3a") + tlv(6, "some OS") +
			tlv(127, "\x00\x80\xc2\x01\x00\x65") + tlv(127, "\x00\x12\x0f\x04\x23\x28") + tlv(0, "") + "padding",
			Neighbour{Chassis: "52:54:00:00:00:01", Port: "swp7", System: "leaf-3a", PortDescription: "rack 3, server 7", VLAN: 101}, ""},
		{"one that is named by addresses", header + tlv(1, "\x05\x01\x0a\x00\x00\x02") + tlv(2, "\x03\x52\x54\x00\x00\x00\x02") + tlv(0, ""),
			Neighbour{Chassis: "10.0.0.2", Port: "52:54:00:00:00:02"}, ""},
		{"odd bytes", header + tlv(1, "\x07\xff\x00") + tlv(2, "\x07a b") + tlv(5, "n\xfc\x1b[31mt") + tlv(0, ""),
			Neighbour{Chassis: "ff00", Port: "a b", System: "n??[31mt"}, ""},
		{"no end", least, Neighbour{}, "reading an LLDP frame: it is cut off"},
		{"a field that is longer than the frame", least + "\x0a\xffabc", Neighbour{}, "reading an LLDP frame: its field of type 5 has 255 bytes, and 3 are left"},
		{"nobody", header + tlv(5, "leaf") + tlv(0, ""), Neighbour{}, "reading an LLDP frame: it names no chassis and port"},
		{"another protocol", strings.Replace(least, "\x88\xcc", "\x08\x00", 1) + tlv(0, ""), Neighbour{}, "reading an LLDP frame: it is another protocol's"},
		{"nothing", "", Neighbour{}, "reading an LLDP frame: it is another protocol's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse([]byte(c.frame))
			said := ""
			if err != nil {
				said = err.Error()
				got = Neighbour{}
			}
			if diff := cmp.Diff(c.want, got); diff != "" || said != c.err {
				t.Errorf("error %q, want %q; -want +got:\n%s", said, c.err, diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(header + tlv(1, "\x04\x52\x54\x00\x00\x00\x01") + tlv(2, "\x05swp7") + tlv(0, "")))
	f.Add([]byte(header + tlv(1, "\x05\x01\x0a\x00\x00\x02") + tlv(2, "\x01x") + tlv(127, "\x00\x80\xc2\x01\x00\x65") + tlv(0, "")))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Parse(b)
		if err != nil {
			return
		}
		for _, s := range []string{n.Chassis, n.Port, n.System, n.PortDescription} {
			if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%q is not fit to show", s)
			}
		}
		if n.Chassis == "" || n.Port == "" || n.VLAN < 0 || n.VLAN > 0xffff {
			t.Errorf("%+v", n)
		}
	})
}
