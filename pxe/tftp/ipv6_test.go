package tftp

import (
	"net"
	"testing"
)

// bound is a socket at an address.
type bound struct {
	net.PacketConn
	at string
}

func (b bound) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.ParseIP(b.at), Port: 69} }

// Quirk 31: IPv6's header is longer.
func TestBlocksFitIntoPacketsOfBothKinds(t *testing.T) {
	for at, want := range map[string]int{"10.0.0.1": 32, "fd00::1": 52} {
		if got := overhead(bound{at: at}); got != want {
			t.Errorf("at %s: %d bytes of headers, want %d", at, got, want)
		}
	}
}
