package dhcp

import (
	"bytes"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// What we write is what the library writes, of any message.
func FuzzEncode(f *testing.F) {
	long := opt(43, bytes.Repeat([]byte{7}, 255)...)
	for _, m := range []*dhcpv4.DHCPv4{
		discover(node1, pxe(7), uuid(0x33), opt(61, 1, 2)), discover(laptop, ipxe, relayed("10.0.7.1"), opt(82, 1, 2, 3, 4)),
		request(node1, wants("10.0.0.11"), toServer("10.0.0.1"), long), discover(node1, opt(43, bytes.Repeat([]byte{7}, 700)...), opt(254, 1), opt(80)),
		discover(node1, opt(0, 1, 2), opt(255, 3), opt(82)), discover(node1, func(m *dhcpv4.DHCPv4) {
			m.BootFileName, m.ServerHostName = string(bytes.Repeat([]byte("f"), 128)), string(bytes.Repeat([]byte("h"), 64))
			m.HopCount, m.NumSeconds, m.Flags = 3, 0x1234, 0x8001
		}),
	} {
		f.Add(m.ToBytes())
		if got, want := encode(m), m.ToBytes(); !bytes.Equal(got, want) {
			f.Errorf("%x, want %x", got, want)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		if got, want := encode(m), m.ToBytes(); !bytes.Equal(got, want) {
			t.Errorf("%x, want %x", got, want)
		}
	})
}
