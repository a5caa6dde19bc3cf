//go:build root

package server_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/listen"
	"github.com/imagectl/imagectl/pxe/server"
	"github.com/imagectl/imagectl/test/vm"
)

func TestProxyBesideKea(t *testing.T) {
	r := startRack(t, nil, nil, asProxy)
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	dir := t.TempDir()
	config, err := json.Marshal(map[string]any{"Dhcp4": map[string]any{
		"interfaces-config": map[string]any{"interfaces": []string{"eth0"}},
		"lease-database":    map[string]any{"type": "memfile", "persist": false},
		"valid-lifetime":    3600, "authoritative": true,
		"subnet4": []any{map[string]any{"subnet": "10.98.0.0/24", "pools": []any{map[string]any{"pool": "10.98.0.50 - 10.98.0.60"}}}},
		"loggers": []any{map[string]any{"name": "kea-dhcp4", "severity": "INFO", "output_options": []any{map[string]any{"output": "stdout"}}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kea.json"), config, 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, []string{"KEA_PIDFILE_DIR=" + dir, "KEA_LOCKFILE_DIR=" + dir},
		other.inside(copied(t, "kea-dhcp4"), "-c", filepath.Join(dir, "kea.json"))...).wait("DHCP4_STARTED")
	t.Run("BIOS", func(t *testing.T) { r.proxied(t, vm.SeaBIOS, 33, "iPXE goes on with its script") })
	t.Run("UEFI", func(t *testing.T) { r.proxied(t, vm.OVMF, 34, "answered on port 4011, boot program snponly.efi") })
}

// UEFI HTTP boot joins our URL with the other server's address.
func TestHTTPBootBesideDnsmasq(t *testing.T) {
	r := startRack(t, nil, nil, asProxy)
	other := newHost(t, "other")
	other.plug("eth0", bridge, otherAddr+"/24")
	startDnsmasq(t, other)
	const n = 36
	g, _ := guest(t, vm.OVMF, n, byHTTP)
	bootsByHTTP(t, r, g, n, "UEFI HTTP boot")
}

// On the other server's own host there is only port 4011 for us.
func TestBootServerOnTheOtherServersHost(t *testing.T) {
	r := startRack(t, nil, nil, asProxy, func(l *listen.Config, _ *server.Config) { l.DHCP = false })
	p := start(t, nil, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--port=0", "--no-ping", "--dhcp-authoritative", "--interface="+bridge,
		"--dhcp-range=10.98.0.50,10.98.0.60,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"),
		"--dhcp-match=set:pxe,60,PXEClient", "--dhcp-match=set:ipxe,175", "--dhcp-option=tag:pxe,60,PXEClient",
		"--dhcp-boot=tag:ipxe,http://"+serverAddr+":8080/boot.ipxe?mac=${mac}&uuid=${uuid}&serial=${serial:uristring}&platform=${platform}&arch=${buildarch}")
	p.wait("DHCP, IP range")
	_, err := listen.Open(t.Context(), listen.Config{Interface: bridge, Address: netip.MustParseAddr(serverAddr), DHCP: true, BootServer: true})
	for _, want := range []string{"is taken by dnsmasq (pid ", "set boot.dhcp: proxy-4011"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("taking port 67 too: %v, want %q in it", err, want)
		}
	}
	const n = 35
	g, _ := guest(t, vm.OVMF, n)
	g = r.waitScript(t, g, n, `imagectl: discover \(unknown-machine\)`)
	r.waitEvent(t, n, boot.StageKernel, 1)
	starts(t, g)
	t.Logf("events:\n%s", stages(r.Events(mac(n))))
}
