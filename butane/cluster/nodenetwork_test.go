package cluster

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imagectl/imagectl/butane/diag"
)

// wired gives the worker of the starter (10.0.0.21) a network, in flow style.
func wired(text string) []string {
	return []string{"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    network: {" + text + "}\n"}
}

// parseFiles reads the starter with pieces replaced; further files come by name.
func parseFiles(t *testing.T, files map[string]string, pairs ...string) (Spec, diag.List) {
	t.Helper()
	text := edit(t, pairs...)
	return Parse(func(file string) ([]byte, error) {
		switch more, ok := files[file]; {
		case ok:
			return []byte(more), nil
		case file == "cluster.yaml":
			return []byte(text), nil
		case file == "keys/flatcar.asc":
			return nil, nil
		}
		return nil, os.ErrNotExist
	}, "cluster.yaml")
}

const (
	// lacp is what a machine with two cards in a bond and a VLAN on that has.
	lacp = "bonds: [{name: bond0, interfaces: [eno1, eno2]}], vlans: [{name: storage, id: 42, link: bond0}]"
	// itself is the starter's reservation as a static address.
	itself = "addresses: [{interface: bond0, address: 10.0.0.21/24}]"
)

func TestNodeNetworkFindings(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		pairs []string
		want  []string
	}{
		{"two cards, LACP, a VLAN, static addresses", wired(lacp + `, addresses: [{interface: bond0, address: 10.0.0.21/24}, {interface: storage, address: 10.42.0.21/24}], routes: [{to: 0.0.0.0/0, via: 10.0.0.1}], dns: [10.0.0.1], ntp: [time.example.org, 10.0.0.1]`), nil},
		{"cards by MAC address", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:21", "52:54:00:00:00:22"]}]`), nil},
		{"names that are none", wired(`bonds: [{name: "a/b", interfaces: [eno1]}, {name: eth0, interfaces: [eno2]}, {name: cni0, interfaces: [eno3]}, {name: bond-with-a-long-name, interfaces: [eno4]}]`), []string{
			`error: machines[1].network.bonds[0].name: "a/b" is not the name of a network interface: want 1 to 15 letters, digits, _ . or -`,
			`error: machines[1].network.bonds[1].name: eth0 is how the kernel names cards`,
			`error: machines[1].network.bonds[2].name: cni0 is a name that the kernel or Kubernetes' network takes`,
			`error: machines[1].network.bonds[3].name: "bond-with-a-long-name" is not the name of a network interface: want 1 to 15 letters, digits, _ . or -`,
		}},
		{"a mode that is none", wired(`bonds: [{name: bond0, mode: 802.3da, interfaces: ["52:54:00:00:00:21"]}]`), []string{
			`error: machines[1].network.bonds[0].mode: "802.3da" is not one of 802.3ad, active-backup, balance-rr, balance-xor, broadcast, balance-tlb, balance-alb`,
		}},
		{"a bond of nothing", wired(`bonds: [{name: bond0, interfaces: []}]`), []string{`error: machines[1].network.bonds[0]: a bond of no card`}},
		{"ids that are none", wired(`vlans: [{name: a, id: 0, link: eno1}, {name: b, id: 4095, link: eno1}]`), []string{
			`error: machines[1].network.vlans[0].id: 0 is not the id of a VLAN: want 1 to 4094`,
			`error: machines[1].network.vlans[1].id: 4095 is not the id of a VLAN: want 1 to 4094`,
		}},
		{"MTUs out of range", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:21"], mtu: 1279}], vlans: [{name: a, id: 1, link: bond0, mtu: 65536}]`), []string{
			`error: machines[1].network.bonds[0].mtu: an MTU of 1279 is out of range: want 1280 to 65535`,
			`error: machines[1].network.vlans[0].mtu: an MTU of 65536 is out of range: want 1280 to 65535`,
		}},
		{"a VLAN larger than its bond", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:21"]}], vlans: [{name: a, id: 1, link: bond0, mtu: 9000}]`), []string{
			`error: machines[1].network.vlans[0].mtu: an MTU of 9000 does not go through bond0, whose MTU is 1500`,
		}},
		{"a name twice", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:21"]}, {name: bond0, interfaces: [eno2]}], vlans: [{name: bond0, id: 1, link: eno3}]`), []string{
			`error: machines[1].network.bonds[1].name: the link bond0 is already made by machines[1].network.bonds[0].name`,
			`error: machines[1].network.vlans[0].name: the link bond0 is already made by machines[1].network.bonds[0].name`,
		}},
		{"a card twice, by name and by MAC address", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:0A", eno1]}, {name: bond1, interfaces: [eno1, "52:54:00:00:00:0a"]}]`), []string{
			`error: machines[1].network.bonds[1].interfaces[0]: eno1 is in bond0 already`,
			`error: machines[1].network.bonds[1].interfaces[1]: 52:54:00:00:00:0a is in bond0 already`,
		}},
		{"a bond in a bond", wired(`bonds: [{name: bond0, interfaces: ["52:54:00:00:00:21"]}, {name: bond1, interfaces: ["52:54:00:00:00:22", bond0]}]`), []string{
			`error: machines[1].network.bonds[1].interfaces[1]: bond0 is a bond or a VLAN, and a bond is made of cards`,
		}},
		{"a member that is used besides", wired(lacp + `, addresses: [{interface: eno1, address: 10.0.0.21/24}], routes: [{to: 10.9.0.0/24, via: 10.0.0.1, interface: eno2}]`), []string{
			`error: machines[1].network.addresses[0].interface: eno1 is in bond0, so an address belongs to that`,
			`error: machines[1].network.routes[0].interface: eno2 is in bond0, so a route belongs to that`,
		}},
		{"the same VLAN twice, and one in another", wired(`vlans: [{name: a, id: 5, link: eno1}, {name: b, id: 5, link: eno1}, {name: c, id: 6, link: a}]`), []string{
			`error: machines[1].network.vlans[1].id: VLAN 5 of eno1 is a already`,
			`error: machines[1].network.vlans[2].link: a is a VLAN, and a VLAN in another is not supported`,
		}},
		{"names that nothing has", wired(lacp + `, ` + itself + `, routes: [{to: 10.9.0.0/24, via: 10.0.0.1, interface: bnod0}, {to: 10.8.0.0/24, via: 10.0.0.1, interface: lan}]`), []string{
			`error: machines[1].network.routes[0].interface: there is no bond or VLAN bnod0, and cards are called en…, eth… or ib…`,
			`error: machines[1].network.routes[1].interface: there is no bond or VLAN lan, and cards are called en…, eth… or ib…`,
		}},
		{"addresses that are none", wired(`addresses: [{interface: eno1, address: 10.0.0.21}, {interface: eno1, address: 10.0.0.0/24}, {interface: eno1, address: 10.0.0.255/24}, {interface: eno1, address: 127.0.0.1/8}]`), []string{
			`error: machines[1].network.addresses[0].address: "10.0.0.21" is not an address with the length of its network's prefix`,
			`error: machines[1].network.addresses[1].address: 10.0.0.0 is the network address of 10.0.0.0/24`,
			`error: machines[1].network.addresses[2].address: 10.0.0.255 is the broadcast address of 10.0.0.0/24`,
			`error: machines[1].network.addresses[3].address: 127.0.0.1 is no address for a node`,
			`error: machines[1].address: 10.0.0.21 of worker1 is not among its static addresses (10.0.0.0/24)`,
		}},
		{"addresses of others", wired(`addresses: [{interface: eno1, address: 10.0.0.21/24}, {interface: eno2, address: 10.0.0.21/24}, {interface: eno3, address: 10.0.0.11/24}, {interface: eno4, address: 10.0.0.2/24}, {interface: eno5, address: 10.0.0.210/24}, {interface: eno6, address: 10.244.1.1/24}]`), []string{
			`error: machines[1].network.addresses[1].address: 10.0.0.21 of worker1 is worker1's already`,
			`error: machines[1].network.addresses[2].address: 10.0.0.11 of worker1 is cp1's already`,
			`error: machines[1].network.addresses[3].address: 10.0.0.2 of worker1 is the server's already`,
			`error: machines[1].network.addresses[4].address: 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250, where another machine may get it`,
			`error: machines[1].network.addresses[5].address: 10.244.1.1/24 is in a network that overlaps that of the pods, 10.244.0.0/16`,
		}},
		{"one address for all", []string{"roles:", "network: {addresses: [{interface: eno1, address: 10.0.0.9/24}]}\nroles:"}, []string{
			`error: network.addresses[0].address: 10.0.0.9 of worker1 is cp1's already`,
			`error: machines[0].address: 10.0.0.11 of cp1 is not among its static addresses (10.0.0.9/24)`,
			`error: machines[1].address: 10.0.0.21 of worker1 is not among its static addresses (10.0.0.9/24)`,
		}},
		{"a node by an address that it has not got", wired(`addresses: [{interface: eno1, address: 10.0.0.22/24}]`), []string{
			`error: machines[1].address: 10.0.0.21 of worker1 is not among its static addresses (10.0.0.22/24)`,
		}},
		{"gateways that are next to nobody", wired(lacp + `, ` + itself + `, routes: [{to: 10.9.0.0/24, via: 10.1.0.1}, {to: 10.8.0.0/24, via: 10.1.0.1, interface: bond0}, {to: 10.7.0.0/24, via: 10.1.0.1, interface: storage}, {to: 10.6.0.0/24, via: 10.0.0.21}, {to: "fd00::/64", via: 10.0.0.1}]`), []string{
			`error: machines[1].network.routes[0].via: the gateway 10.1.0.1 of worker1 is in the network of none of its addresses`,
			`error: machines[1].network.routes[1].via: the gateway 10.1.0.1 is not in the network of 10.0.0.21/24 on bond0`,
			`error: machines[1].network.routes[3].via: 10.0.0.21 is this machine's own address`,
			`error: machines[1].network.routes[4].via: fd00::/64 is reached by no address like 10.0.0.1`,
		}},
		{"a route twice, and a network with bits behind it", wired(itself + `, bonds: [{name: bond0, interfaces: [eno1]}], routes: [{to: 10.9.0.0/24, via: 10.0.0.1}, {to: 10.9.0.0/24, via: 10.0.0.3}, {to: 10.9.0.1/24, via: 10.0.0.3}, {to: 10.9.0.0/24, via: 10.0.0.3, metric: -1}]`), []string{
			`error: machines[1].network.routes[1].to: there is a route to 10.9.0.0/24 with this metric already`,
			`error: machines[1].network.routes[2].to: "10.9.0.1/24" is not a network: bits are set behind the prefix length`,
			`error: machines[1].network.routes[3].metric: -1 is not a metric: want 0 or more, and the smallest wins`,
		}},
		{"an address in the boot network of nobody", []string{
			"    address: 10.0.0.21\n", "    address: 10.5.0.21\n    network: {addresses: [{interface: eno1, address: 10.5.0.21/24}], routes: [{to: 0.0.0.0/0, via: 10.5.0.1}]}\n",
		}, nil},
		{"one without a way to the server", []string{
			"    address: 10.0.0.21\n", "    address: 10.5.0.21\n    network: {addresses: [{interface: eno1, address: 10.5.0.21/24}]}\n",
		}, []string{`warning: machines[1].network.addresses[0]: no address or route of worker1 leads to the server 10.0.0.2`}},
		{"one without a range for its installer", []string{
			"    address: 10.0.0.21\n", "    address: 10.5.0.21\n    network: {addresses: [{interface: eno1, address: 10.5.0.21/24}], routes: [{to: 0.0.0.0/0, via: 10.5.0.1}]}\n",
			"      range: {first: 10.0.0.200, last: 10.0.0.250}\n", "",
		}, []string{`error: machines[1].address: 10.5.0.21 of worker1 is in none of boot.subnets, and none of them has a range for its installer`}},
		{"a reservation that a bond's own MAC address does not get", wired(`bonds: [{name: bond0, interfaces: [eno1, eno2]}]`), []string{
			`warning: machines[1].network.bonds[0]: bond0 of worker1 asks by DHCP with a MAC address that it makes up, so the reservation of 10.0.0.21 is not for it`,
		}},
		{"resolvers and clocks that are none", wired(`dns: [10.0.0.1, 10.0.0.1, 0.0.0.0], ntp: [Time, a.example.org, a.example.org]`), []string{
			`error: machines[1].network.dns[1]: 10.0.0.1 is there twice`,
			`error: machines[1].network.dns[2]: 0.0.0.0 is no resolver's address`,
			`error: machines[1].network.ntp[0]: "Time" is neither a DNS name nor an IP address`,
			`error: machines[1].network.ntp[2]: a.example.org is there twice`,
		}},
		{"a proxy", wired(`proxy: {http: "http://proxy.example.org:3128", https: "http://proxy.example.org:3128", no: [.example.org, 192.0.2.0/24, registry.example.org:5000]}`), nil},
		{"proxies that are none", wired(`proxy: {http: "proxy:3128", https: "http://me:secret@proxy:3128", no: ["*", "a,b"]}`), []string{
			`error: machines[1].network.proxy.http: "proxy:3128" is not an http or https URL with a host`,
			`error: machines[1].network.proxy.https: a URL here must not carry a user or a password: cluster.yaml is in git, and so is what this would end up in`,
			`error: machines[1].network.proxy.no[0]: "*" is no host, domain, address or network`,
			`error: machines[1].network.proxy.no[1]: "a,b" is no host, domain, address or network`,
		}},
		{"a proxy with a password", wired(`proxy: {https: "https://proxy.example.org:3128", username: nodes, password: {env: PROXY}}`), nil},
		{"a proxy whose password others can read", wired(`proxy: {https: "http://proxy.example.org:3128", username: nodes, password: {env: PROXY}}`), []string{
			`warning: machines[1].network.proxy.password: the password goes to http://proxy.example.org:3128 unencrypted, so whoever is on the way there can read it`,
		}},
		{"a proxy with half of it", wired(`proxy: {https: "https://proxy", password: {env: PROXY}}`), []string{`error: machines[1].network.proxy.password: a password without a username`}},
		{"a proxy with the other half", wired(`proxy: {https: "https://proxy", username: "a:b"}`), []string{
			`error: machines[1].network.proxy.username: a username without a password`,
			`error: machines[1].network.proxy.username: "a:b" is no user name: want some text without a colon`,
		}},
		{"a proxy's password that is written out", wired(`proxy: {https: "https://proxy", username: nodes, password: swordfish}`), []string{
			`error: machines[1].network.proxy.password: a secret is never written here, only where it is: one of file, env, age`,
		}},
		{"a proxy of nothing", []string{"roles:", "network: {proxy: {no: [.example.org]}}\nroles:"}, []string{`error: network.proxy: names no proxy: want http, https or both`}},
		{"mirrors", wired(`registryMirrors: [{name: docker.io, endpoints: ["https://mirror.example.org", "https://harbor.example.org/v2/hub"], ca: ca.pem, username: reader, password: {env: MIRROR}}]`), nil},
		{"mirrors with everything wrong", wired(`registryMirrors: [{name: "https://docker.io", endpoints: ["mirror", "https://m/?a=b", "https://m:0", "https://a\"b"]}, {name: quay.io, endpoints: []}, {name: quay.io, endpoints: ["https://m"], password: {env: A}}, {name: gcr.io, endpoints: ["https://m", "https://m/"], username: "a:b", ca: none.pem}, {name: ghcr.io, endpoints: ["http://m"], username: a, password: {env: A}}]`), []string{
			`error: machines[1].network.registryMirrors[0].name: "https://docker.io" is not a registry's host or host:port`,
			`error: machines[1].network.registryMirrors[0].endpoints[0]: "mirror" is not an http or https URL with a host`,
			`error: machines[1].network.registryMirrors[0].endpoints[1]: "https://m/?a=b" has more than a scheme, a host and a port`,
			`error: machines[1].network.registryMirrors[0].endpoints[2]: "0" is not a port: want 1 to 65535`,
			`error: machines[1].network.registryMirrors[0].endpoints[3]: "https://a\"b" has a character that a URL here must not have: blanks, quotes, \, % and $`,
			`error: machines[1].network.registryMirrors[1]: a mirror without an endpoint`,
			`error: machines[1].network.registryMirrors[2].password: a password without a username`,
			`error: machines[1].network.registryMirrors[2].name: quay.io has mirrors already, in machines[1].network.registryMirrors[1].name`,
			`error: machines[1].network.registryMirrors[3].endpoints[1]: https://m is there twice`,
			`error: machines[1].network.registryMirrors[3].username: a username without a password`,
			`error: machines[1].network.registryMirrors[3].username: "a:b" is no user name: want some text without a colon`,
			`error: machines[1].network.registryMirrors[3].ca: the certificates cannot be read: file does not exist`,
			`error: machines[1].network.registryMirrors[4].password: the password would go to an endpoint of http, which anybody on the way can read`,
		}},
		{"a mirror without encryption, for all", []string{"roles:", "network: {registryMirrors: [{name: docker.io, endpoints: [\"http://10.0.0.9:5000\"]}]}\nroles:"}, []string{
			`warning: network.registryMirrors[0].endpoints[0]: whoever is on the way to 10.0.0.9:5000 decides which images nodes run: it is not encrypted`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, found := parseFiles(t, map[string]string{"ca.pem": certificate}, c.pairs...)
			got := texts(found)
			less := cmpopts.SortSlices(func(a, b string) bool { return a < b })
			if diff := cmp.Diff(got, c.want, cmpopts.EquateEmpty(), less); diff != "" {
				t.Errorf("got -, want +\n%s", diff)
			}
		})
	}
}

// certificate is PEM in its form; nothing here reads what is inside.
const certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

// A finding names the line it is about, also when three levels are merged and several
// machines have it.
func TestNodeNetworkFindingsNameTheirLine(t *testing.T) {
	t.Parallel()
	text := "network:\n  bonds:\n    - name: bond0\n      interfaces: [eno1]\n      mode: lacp\nroles:"
	_, found := parseFiles(t, nil, append(wired("addresses: [{interface: bnd0, address: 10.0.0.21/24}]"), "roles:", text)...)
	var got diag.List
	for _, f := range found {
		if f.Severity == diag.Error {
			got = append(got, f)
		}
	}
	if len(got) != 2 {
		t.Fatalf("got %d errors, want one for the mode and one for the name:\n%v", len(got), got)
	}
	lines := strings.Split(edit(t, append(wired("addresses: [{interface: bnd0, address: 10.0.0.21/24}]"), "roles:", text)...), "\n")
	for i, part := range []string{"lacp", "bnd0"} {
		at := got[i]
		if here := lines[at.Line-1][at.Column-1:]; !strings.HasPrefix(here, part) {
			t.Errorf("%s: points at %q", at, here)
		}
	}
	if got[1].Hint != "did you mean bond0?" {
		t.Errorf("got the hint %q", got[1].Hint)
	}
}

// The machine's over the role's over every node's.
func TestNetworksOfAllLevelsMerge(t *testing.T) {
	t.Parallel()
	spec, found := parseFiles(t, nil,
		"roles:", `network: {bonds: [{name: bond0, interfaces: [eno1, eno2]}], dns: [10.0.0.1, 10.0.0.2], ntp: [a.example.org], proxy: {http: "http://p:1", https: "http://p:2"}}
roles:`,
		"    kind: worker\n", `    kind: worker
    network: {vlans: [{name: storage, id: 42, link: bond0}], ntp: [b.example.org], registryMirrors: [{name: docker.io, endpoints: ["https://a"]}]}
`,
		"    address: 10.0.0.21\n", `    address: 10.0.0.21
    network:
      bonds: [{name: bond0, mode: active-backup, interfaces: [eno3, "52:54:00:AB:00:21"], mtu: 9000}]
      vlans: [{name: backup, id: 43, link: bond0, mtu: 1400}]
      addresses: [{interface: bond0, address: 10.0.0.21/24}]
      routes: [{to: 0.0.0.0/0, via: 10.0.0.1, metric: 10}]
      dns: [10.0.0.3]
      proxy: {https: "http://p:3", no: [.example.org]}
      registryMirrors: [{name: quay.io, endpoints: ["https://b/"]}]
`)
	if errs, _ := found.Count(); errs > 0 {
		t.Fatal(found)
	}
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	every := Network{
		Bonds: []Bond{{Name: "bond0", Mode: "802.3ad", Cards: []string{"eno1", "eno2"}}},
		DNS:   []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2")}, NTP: []string{"a.example.org"},
		Proxy: Proxy{HTTP: "http://p:1", HTTPS: "http://p:2"},
	}
	want := Network{
		Bonds:     []Bond{{Name: "bond0", Mode: "active-backup", Cards: []string{"eno3", "52:54:00:ab:00:21"}, MTU: 9000}},
		VLANs:     []VLAN{{Name: "storage", ID: 42, Link: "bond0"}, {Name: "backup", ID: 43, Link: "bond0", MTU: 1400}},
		Addresses: []StaticAddress{{Link: "bond0", Address: prefix("10.0.0.21/24")}},
		Routes:    []Route{{To: prefix("0.0.0.0/0"), Via: addr("10.0.0.1"), Link: "bond0", Metric: 10}},
		DNS:       []netip.Addr{addr("10.0.0.3")}, NTP: []string{"b.example.org"},
		Proxy:   Proxy{HTTP: "http://p:1", HTTPS: "http://p:3", No: []string{".example.org"}},
		Mirrors: []RegistryMirror{{Name: "docker.io", Endpoints: []string{"https://a"}}, {Name: "quay.io", Endpoints: []string{"https://b"}}},
	}
	same := cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	for i, want := range []Network{every, want} {
		if diff := cmp.Diff(spec.Machines[i].Network, want, same); diff != "" {
			t.Errorf("%s: got -, want +\n%s", spec.Machines[i].Name, diff)
		}
	}
}

// The example of docs/network.md is laid over the starter, and says nothing wrong.
func TestTheDocumentedNetworkIsValid(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/network.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("docs/network.md has no example")
	}
	files := map[string]string{"cluster.yaml": "version: 1\nextends: base.yaml\n" + example, "base.yaml": edit(t)}
	spec, found := parseFiles(t, files)
	if len(found) > 0 {
		t.Error(found)
	}
	n := spec.Machines[1].Network
	if len(n.Bonds) != 1 || len(n.VLANs) != 2 || len(n.Addresses) != 2 || len(n.Routes) != 1 || len(n.DNS) != 1 || len(n.NTP) != 1 || len(n.Mirrors) != 1 || n.Proxy.HTTPS == "" {
		t.Errorf("the example has become %+v", n)
	}
}
