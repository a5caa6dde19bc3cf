package nodeconf

import (
	"strings"
	"testing"
)

func TestLinksAreFilesOfNetworkdAndNothingElse(t *testing.T) {
	t.Parallel()
	const good = `{"machines": [{"machine": "w1", "macs": ["52:54:00:00:00:21"], "files": [{"path": "/etc/systemd/network/20-imagectl-bond0.netdev", "content": "x"}], "own": {"eno1": null, "bond0": ["10.0.0.1"]}, "made": ["bond0"]}]}`
	if l, err := ParseLinks([]byte(good)); err != nil || len(l.Machines) != 1 || len(l.Machines[0].Own["bond0"]) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	for _, path := range []string{"/etc/systemd/network/10-own.network", "/etc/systemd/network/20-imagectl-../../shadow", "/etc/systemd/network/20-imagectl-a b", "relative", ""} {
		_, err := ParseLinks([]byte(strings.Replace(good, "/etc/systemd/network/20-imagectl-bond0.netdev", path, 1)))
		if err == nil || !strings.Contains(err.Error(), "which is none of systemd-networkd's") {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, bad := range []string{"", "[]", good + good, strings.Replace(good, "made", "Unknown", 1)} {
		if _, err := ParseLinks([]byte(bad)); err == nil {
			t.Errorf("%.40q is taken", bad)
		}
	}
}
