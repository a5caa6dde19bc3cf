package host

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// eno1 and eno2 are in bond0, which carries a VLAN; a VXLAN of Kubernetes is on eno3.
func TestCardsOfBondsAndVLANs(t *testing.T) {
	t.Parallel()
	h := &Host{Root: t.TempDir()}
	for name, content := range map[string]string{
		"/sys/class/net/bond0/bonding/mode":             "802.3ad 4\n",
		"/sys/class/net/bond0/lower_eno1":               "",
		"/sys/class/net/bond0/lower_eno2":               "",
		"/sys/class/net/eno1/bonding_slave/perm_hwaddr": "52:54:00:00:00:21\n",
		"/sys/class/net/eno2/bonding_slave/perm_hwaddr": "52:54:00:00:00:22\n",
		"/sys/class/net/nodes/lower_bond0":              "",
		"/proc/net/vlan/nodes":                          "",
		"/sys/class/net/flannel.1/lower_eno3":           "",
		"/sys/class/net/eno3/address":                   "52:54:00:00:00:23\n",
	} {
		file := filepath.Join(h.Root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	now := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for name, want := range map[string]string{"eno1": "52:54:00:00:00:21", "eno2": "52:54:00:00:00:22", "eno3": now.String()} {
		if got := h.ownMAC(name, now).String(); got != want {
			t.Errorf("%s has the MAC address %s, want %s", name, got, want)
		}
	}
	for _, c := range []struct {
		link, card string
		want       bool
	}{
		{"bond0", "eno1", true}, {"bond0", "eno2", true}, {"bond0", "eno3", false}, {"nodes", "eno1", true}, {"nodes", "eno2", true},
		{"nodes", "eno3", false}, {"flannel.1", "eno3", false}, {"eno1", "eno1", false},
	} {
		if got := h.standsOn(c.link, c.card, 2); got != c.want {
			t.Errorf("%s stands on %s: %v, want %v", c.link, c.card, got, c.want)
		}
	}
}
