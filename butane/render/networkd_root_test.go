//go:build root

package render

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/test/uml"
)

// Debian's systemd-networkd and Linux make of the files what cluster.yaml says: a bond that
// agrees with a switch by LACP, VLANs, addresses and routes. Packets go over them, also with a
// cable pulled.
func TestNetworkdMakesTheLinks(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	n := cluster.Network{
		Bonds: []cluster.Bond{
			{Name: "bond0", Mode: "802.3ad", Cards: []string{"eno1", "eno2"}, MTU: 4000},
			{Name: "bond1", Mode: "active-backup", Cards: []string{"02:00:00:00:00:10", "02:00:00:00:00:11"}, MTU: 1492},
		},
		VLANs: []cluster.VLAN{{Name: "nodes", ID: 42, Link: "bond0", MTU: 1400}, {Name: "storage", ID: 7, Link: "eno3", MTU: 3000}},
		Addresses: []cluster.StaticAddress{
			{Link: "nodes", Address: prefix("10.42.0.11/24")}, {Link: "bond1", Address: prefix("10.5.0.11/24")},
			{Link: "storage", Address: prefix("10.7.0.11/24")}, {Link: "eno4", Address: prefix("192.0.2.12/25")}, {Link: "eno4", Address: prefix("2001:db8::12/64")},
		},
		Routes: []cluster.Route{
			{To: prefix("0.0.0.0/0"), Via: addr("10.42.0.1"), Link: "nodes"}, {To: prefix("10.50.0.0/16"), Via: addr("10.5.0.1"), Link: "bond1", Metric: 50},
		},
		DNS: []netip.Addr{addr("10.42.0.53")}, NTP: []string{"10.42.0.1"},
	}
	work := t.TempDir()
	for _, f := range NewNetworks(plan.Plan{}).Files(n, Passwords{}) {
		file := filepath.Join(work, f.Path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, f.Content, os.FileMode(f.Mode)); err != nil {
			t.Fatal(err)
		}
	}
	// Every image has it, and here it matches no card.
	if err := os.WriteFile(filepath.Join(work, acceleratedPath), []byte(accelerated), 0o644); err != nil {
		t.Fatal(err)
	}
	s := uml.Run(t, "testdata/networkd.sh", work,
		uml.Cable("eth0", "02:00:00:00:00:10", "21000", "21002"), uml.Cable("eth2", "02:00:00:00:00:12", "21002", "21000"),
		uml.Cable("eth1", "02:00:00:00:00:11", "21001", "21003"), uml.Cable("eth3", "02:00:00:00:00:13", "21003", "21001"))
	// What is wrong is said last, after all that was seen: of a long log the end is what is kept.
	var problems []string
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	defer func() {
		if problems == nil {
			return
		}
		for _, word := range slices.Sorted(maps.Keys(s)) {
			t.Logf("%s:\n%s", word, strings.Join(s[word], "\n"))
		}
		for _, problem := range problems {
			t.Error(problem)
		}
	}()
	for _, line := range s["log"] {
		if strings.Contains(line, "/etc/systemd/network/") && !strings.Contains(line, "Configuring with") || strings.Contains(strings.ToLower(line), "could not") {
			wrong("networkd does not like a file: %s", line)
		}
	}
	if !slices.Equal(s["online"], []string{"yes"}) {
		wrong("systemd-networkd-wait-online waits in vain, and so would a node that boots")
	}
	if want := []string{"vlan", "backup", "cable pulled"}; !slices.Equal(s["ping"], want) {
		wrong("answers came for %q, want %q", s["ping"], want)
	}

	type link struct {
		Name     string `json:"ifname"`
		Below    string `json:"link"`
		Master   string
		MTU      int
		Address  string
		Linkinfo struct {
			Kind string `json:"info_kind"`
			Data struct {
				ID       int
				Mode     string
				Miimon   int
				LACPRate string `json:"ad_lacp_rate"`
				Policy   string `json:"xmit_hash_policy"`
				Primary  string
				Info     struct {
					Ports   int    `json:"num_ports"`
					Partner string `json:"partner_mac"`
				} `json:"ad_info"`
			} `json:"info_data"`
		}
	}
	links := map[string]link{}
	for _, l := range uml.JSON[[]link](t, s, "links") {
		links[l.Name] = l
	}
	bond := links["bond0"]
	if d := bond.Linkinfo.Data; bond.Linkinfo.Kind != "bond" || d.Mode != "802.3ad" || d.LACPRate != "fast" || d.Policy != "layer3+4" || d.Miimon != 100 {
		wrong("bond0: got %+v", bond)
	}
	if i := bond.Linkinfo.Data.Info; i.Ports != 2 || i.Partner == "" || i.Partner == "00:00:00:00:00:00" {
		wrong("bond0: LACP has brought %d cards together with %q, want both with the switch", i.Ports, i.Partner)
	}
	if bond.MTU != 4000 {
		wrong("bond0 has an MTU of %d", bond.MTU)
	}
	if b := links["bond1"]; b.Linkinfo.Data.Mode != "active-backup" || b.MTU != 1492 || b.Linkinfo.Data.Primary != "eth0" || b.Address != "02:00:00:00:00:10" {
		wrong("bond1: got %+v, want the first card's MAC address and that card first", b)
	}
	if pulled := strings.Join(s["pulled"], "\n"); !strings.Contains(pulled, "Slave Interface: eno1\nMII Status: down") {
		wrong("the cable of eno1 was pulled, and bond0 has not seen it:\n%s", pulled)
	}
	for card, master := range map[string]string{"eno1": "bond0", "eno2": "bond0", "eth0": "bond1", "eth1": "bond1"} {
		if links[card].Master != master {
			wrong("%s is in %q, want %s", card, links[card].Master, master)
		}
	}
	for name, want := range map[string]link{"nodes": {Below: "bond0", MTU: 1400}, "storage": {Below: "eno3", MTU: 3000}} {
		l := links[name]
		if id := map[string]int{"nodes": 42, "storage": 7}[name]; l.Linkinfo.Kind != "vlan" || l.Linkinfo.Data.ID != id || l.Below != want.Below || l.MTU != want.MTU {
			wrong("%s: got %+v", name, l)
		}
	}

	type address struct {
		Name string `json:"ifname"`
		Info []struct {
			Local  string
			Length int `json:"prefixlen"`
			Scope  string
		} `json:"addr_info"`
	}
	has := map[string][]string{}
	for _, a := range uml.JSON[[]address](t, s, "addresses") {
		for _, i := range a.Info {
			if i.Scope == "global" {
				has[a.Name] = append(has[a.Name], netip.PrefixFrom(addr(i.Local), i.Length).String())
			}
		}
	}
	for name, want := range map[string][]string{"nodes": {"10.42.0.11/24"}, "bond1": {"10.5.0.11/24"}, "storage": {"10.7.0.11/24"}, "eno4": {"192.0.2.12/25", "2001:db8::12/64"}, "bond0": nil, "eno3": nil} {
		if !slices.Equal(has[name], want) {
			wrong("%s has the addresses %q, want %q", name, has[name], want)
		}
	}
	type route struct {
		Dst, Gateway, Dev string
		Metric            int
	}
	routes := uml.JSON[[]route](t, s, "routes")
	for _, want := range []route{{"default", "10.42.0.1", "nodes", 0}, {"10.50.0.0/16", "10.5.0.1", "bond1", 50}} {
		if !slices.Contains(routes, want) {
			wrong("there is no route %+v in %+v", want, routes)
		}
	}
}
