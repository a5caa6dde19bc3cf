package ipmi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fixture is a controller's answers: lines of request and response in hexadecimal, as
// ipmitool raw and its -vvv show them. What is not there is refused with c1h.
func fixture(t testing.TB, name string) Ask {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string][]byte{}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		asked, answer, ok := strings.Cut(line, ":")
		response, err := hex.DecodeString(strings.ReplaceAll(answer, " ", ""))
		if !ok || err != nil {
			t.Fatalf("%s: %s: %v", name, line, err)
		}
		answers[strings.Join(strings.Fields(asked), " ")] = response
	}
	return func(netFn, command byte, data ...byte) ([]byte, error) {
		if b, ok := answers[fmt.Sprintf("% x", append([]byte{netFn, command}, data...))]; ok {
			return b, nil
		}
		return []byte{0xc1}, nil
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	broken := errors.New("no such device or address")
	for _, c := range []struct {
		name string
		ask  Ask
		want Controller
		fail string
	}{
		{"the usual channel", fixture(t, "channel-1.txt"), Controller{netip.MustParseAddr("10.9.0.12"), net.HardwareAddr{0, 0x25, 0x90, 0xab, 0xcd, 0xef}, 0}, ""},
		{"a second LAN channel in a VLAN", fixture(t, "channel-8-vlan.txt"), Controller{netip.MustParseAddr("192.168.100.20"), net.HardwareAddr{0xd0, 0x94, 0x66, 1, 2, 3}, 1093}, ""},
		{"no address yet", fixture(t, "unset.txt"), Controller{}, "asking the BMC for its address: it refused with completion code 0xc1"},
		{"no device", func(byte, byte, ...byte) ([]byte, error) { return nil, broken }, Controller{}, "asking the BMC for its address: no such device or address"},
		{"no LAN", func(_, command byte, data ...byte) ([]byte, error) { return []byte{0, data[0], 1}, nil }, Controller{}, "asking the BMC for its address: no channel of it has an address in a LAN"},
		{"short answers", func(byte, byte, ...byte) ([]byte, error) { return []byte{0, 1, 4}, nil }, Controller{}, "asking the BMC for its address: parameter 3 of channel 11 has 1 bytes, want 4"},
		{"empty answers", func(byte, byte, ...byte) ([]byte, error) { return nil, nil }, Controller{}, "asking the BMC for its address: the response is empty"},
	} {
		got, err := Find(c.ask)
		if d := cmp.Diff(c.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" || fmt.Sprint(err) != c.fail && (err != nil || c.fail != "") {
			t.Errorf("%s: %v, (-want +got)\n%s", c.name, err, d)
		}
	}
}

// A controller may answer anything.
func FuzzFind(f *testing.F) {
	f.Add([]byte{0, 1, 4}, []byte{0, 0x11, 10, 9, 0, 12, 1, 2})
	f.Add([]byte{}, []byte{0xc1})
	f.Fuzz(func(t *testing.T, info, lan []byte) {
		c, err := Find(func(netFn, _ byte, _ ...byte) ([]byte, error) {
			if netFn == netFnApp {
				return info, nil
			}
			return lan, nil
		})
		if err == nil && (!c.Address.Is4() || c.VLAN < 0 || c.VLAN > 4095 || len(c.MAC) != 0 && len(c.MAC) != 6) {
			t.Errorf("got %+v", c)
		}
	})
}
