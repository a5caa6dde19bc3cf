package dhcp6

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"
)

// routers is a network whose routers say these things, one after the other. Whoever
// waits for more has waited long enough.
type routers struct {
	net.PacketConn
	says  [][]byte
	asked int
}

func (r *routers) WriteTo(p []byte, _ net.Addr) (int, error) { r.asked++; return len(p), nil }
func (r *routers) SetReadDeadline(time.Time) error           { return nil }

func (r *routers) ReadFrom(p []byte) (int, net.Addr, error) {
	if len(r.says) == 0 {
		return 0, nil, os.ErrDeadlineExceeded
	}
	n := copy(p, r.says[0])
	r.says = r.says[1:]
	return n, nil, nil
}

func advertisement(flags byte) []byte {
	return append([]byte{134, 0, 0, 0, 64, flags}, make([]byte, 10)...)
}

func TestAdvice(t *testing.T) {
	for _, c := range []struct {
		name      string
		says      [][]byte
		stateless bool
		want      string
		asked     int
	}{
		{"managed addresses", [][]byte{advertisement(0xc0)}, false, "", 1},
		{"other packets before it", [][]byte{{135, 0}, advertisement(0)[:15], advertisement(0x80)}, false, "", 1},
		{"other configuration only", [][]byte{advertisement(0x40)}, false, "the network's router does not tell machines to ask DHCPv6: let it set the flag M", 1},
		{"other configuration is enough", [][]byte{advertisement(0x40)}, true, "", 1},
		{"neither", [][]byte{advertisement(0)}, true, "set the flag O", 1},
		{"no router", nil, false, "no router advertises itself here", 3},
	} {
		net := &routers{says: c.says}
		got, err := Advice(t.Context(), net, c.stateless)
		if err != nil || (c.want == "") != (got == "") || !strings.Contains(got, c.want) || net.asked != c.asked {
			t.Errorf("%s: got %q, %v after %d questions, want %q after %d", c.name, got, err, net.asked, c.want, c.asked)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Advice(ended, &routers{}, false); !errors.Is(err, context.Canceled) {
		t.Errorf("at the end: got %v", err)
	}
}
