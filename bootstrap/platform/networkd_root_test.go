//go:build root

package platform

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/test/uml"
)

// Debian's systemd-networkd and Linux make of the files what OpenNebula says, on cards that
// have been asking by DHCP in vain when the files come, as on a machine's first boot; and
// packets go to a machine behind the router. When the platform says something else, that holds.
func TestNetworkdTakesThePlatformsAddresses(t *testing.T) {
	const script = `ETH0_DNS='10.42.0.53'
ETH0_GATEWAY='10.42.0.1'
ETH0_IP='10.42.0.11'
ETH0_IP6='2001:db8:42::11'
ETH0_IP6_GATEWAY='fe80::1'
ETH0_IP6_PREFIX_LENGTH='64'
ETH0_MAC='02:00:00:00:00:10'
ETH0_MASK='255.255.255.0'
ETH0_METRIC='50'
ETH0_MTU='1400'
ETH0_ROUTES='10.50.0.0/16 via 10.42.0.9'
ETH0_SEARCH_DOMAIN='example.org'
ETH1_GATEWAY='192.0.2.1'
ETH1_IP='203.0.113.7'
ETH1_IP6_METHOD='disable'
ETH1_MAC='02:00:00:00:00:11'
ETH1_MASK='255.255.255.255'
ETH1_METRIC='100'
`
	work := t.TempDir()
	for dir, text := range map[string]string{"first": script, "second": strings.Replace(script, "10.42.0.11", "10.42.0.12", 1)} {
		n, err := Addresses(t.Context(), guest{"CONTEXT context.sh": text})
		if err != nil {
			t.Fatal(err)
		}
		if len(n.Files()) != 2 {
			t.Fatalf("got %d files, want 2", len(n.Files()))
		}
		for _, f := range n.Files() {
			file := filepath.Join(work, dir, filepath.Base(f.Path))
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, f.Content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := uml.Run(t, "testdata/networkd.sh", work,
		uml.Cable("eth0", "02:00:00:00:00:10", "21000", "21002"), uml.Cable("eth2", "02:00:00:00:00:12", "21002", "21000"),
		uml.Cable("eth1", "02:00:00:00:00:11", "21001", "21003"), uml.Cable("eth3", "02:00:00:00:00:13", "21003", "21001"))
	defer func() {
		if t.Failed() {
			for word, lines := range s {
				t.Logf("%s:\n%s", word, strings.Join(lines, "\n"))
			}
		}
	}()
	for _, line := range s["log"] {
		low := strings.ToLower(line)
		if strings.Contains(line, "30-imagectl-context-") && !strings.Contains(line, "onfiguring with") || strings.Contains(low, "could not") || strings.Contains(low, "failed") {
			t.Errorf("networkd does not like a file: %s", line)
		}
	}
	if want := []string{"yes", "yes"}; !slices.Equal(s["online"], want) {
		t.Errorf("systemd-networkd-wait-online says %q, want %q", s["online"], want)
	}
	if want := []string{"router", "behind", "router6", "second"}; !slices.Equal(s["ping"], want) {
		t.Errorf("answers came for %q, want %q", s["ping"], want)
	}
	type address struct {
		Name string `json:"ifname"`
		MTU  int
		Info []struct {
			Local  string
			Length int `json:"prefixlen"`
			Scope  string
		} `json:"addr_info"`
	}
	global := func(word string) map[string][]string {
		has := map[string][]string{}
		for _, a := range uml.JSON[[]address](t, s, word) {
			for _, i := range a.Info {
				if i.Scope == "global" {
					has[a.Name] = append(has[a.Name], netip.PrefixFrom(netip.MustParseAddr(i.Local), i.Length).String())
				}
				if i.Scope == "link" && a.Name == "eth1" {
					t.Errorf("%s: eth1 has %s, and IPv6 is switched off there", word, i.Local)
				}
			}
			if a.Name == "eth0" && a.MTU != 1400 {
				t.Errorf("%s: eth0 has an MTU of %d, want 1400", word, a.MTU)
			}
		}
		return has
	}
	for word, first := range map[string]string{"addresses": "10.42.0.11/24", "addresses2": "10.42.0.12/24"} {
		has := global(word)
		if want := []string{first, "2001:db8:42::11/64"}; !slices.Equal(has["eth0"], want) {
			t.Errorf("%s: eth0 has %q, want %q", word, has["eth0"], want)
		}
		if want := []string{"203.0.113.7/32"}; !slices.Equal(has["eth1"], want) {
			t.Errorf("%s: eth1 has %q, want %q", word, has["eth1"], want)
		}
	}
	type route struct {
		Dst, Gateway, Dev string
		Metric            int
	}
	routes := uml.JSON[[]route](t, s, "routes")
	for _, want := range []route{{"default", "10.42.0.1", "eth0", 50}, {"10.50.0.0/16", "10.42.0.9", "eth0", 0}, {"default", "192.0.2.1", "eth1", 100}} {
		if !slices.Contains(routes, want) {
			t.Errorf("there is no route %+v in %+v", want, routes)
		}
	}
	routes = uml.JSON[[]route](t, s, "routes6")
	if !slices.ContainsFunc(routes, func(r route) bool {
		return r.Dst == "default" && r.Gateway == "fe80::1" && r.Dev == "eth0" && r.Metric == 50
	}) {
		t.Errorf("there is no default route by fe80::1 in %+v", routes)
	}
}
