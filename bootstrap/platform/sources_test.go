package platform

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// novaStatic is as Nova writes it for two cards without DHCP (netutils.py), and what OpenStack
// calls the machine.
const novaStatic = `{
 "links": [
  {"id": "tap7f005640-60", "vif_id": "7f005640-60c4-4237-b8fb-cb36bb66458a", "type": "ovs", "mtu": 1450, "ethernet_mac_address": "fa:16:3e:60:32:83"},
  {"id": "tap2ecc7709-b3", "vif_id": "2ecc7709-b3f7-4448-9580-e1ec32d75bbd", "type": "bridge", "mtu": null, "ethernet_mac_address": "FA:16:3E:69:B0:58"}
 ],
 "networks": [
  {"id": "network0", "type": "ipv4", "link": "tap7f005640-60", "ip_address": "10.192.35.66", "netmask": "255.255.252.0", "network_id": "edbd37df",
   "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.192.35.254"}, {"network": "10.8.0.0", "netmask": "255.255.0.0", "gateway": "10.192.35.1"}]},
  {"id": "network1", "type": "ipv6", "link": "tap7f005640-60", "ip_address": "2001:db8:9::19", "netmask": "ffff:ffff:ffff:ffff::", "network_id": "edbd37df",
   "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8:9::1"}]},
  {"id": "network2", "type": "ipv4_dhcp", "link": "tap2ecc7709-b3", "network_id": "da5bb487"}
 ],
 "services": [{"type": "dns", "address": "10.255.250.40"}, {"type": "dns", "address": "2001:db8::53"}, {"type": "ntp", "address": "x"}]
}`

// ironicBond is a bond with VLANs, as Rackspace's bare metal had it (the example in the spec
// "metadata-service-network-info" of Nova).
const ironicBond = `{
 "links": [
  {"id": "interface0", "type": "phy", "ethernet_mac_address": "a0:36:9f:2c:e8:70", "mtu": 9000},
  {"id": "interface1", "type": "phy", "ethernet_mac_address": "a0:36:9f:2c:e8:71", "mtu": 9000},
  {"id": "bond0", "type": "bond", "bond_links": ["interface0", "interface1"], "bond_mode": "802.3ad", "bond_miimon": 50, "bond_xmit_hash_policy": "layer3+4", "ethernet_mac_address": "a0:36:9f:2c:e8:70", "mtu": 9000},
  {"id": "vlan0", "type": "vlan", "vlan_link": "bond0", "vlan_id": 101, "vlan_mac_address": "a0:36:9f:2c:e8:80", "mtu": 1500},
  {"id": "vlan1", "type": "vlan", "vlan_link": "bond0", "vlan_id": 2, "vlan_mac_address": "a0:36:9f:2c:e8:81"}
 ],
 "networks": [
  {"id": "private-ipv4", "type": "ipv4", "link": "vlan0", "ip_address": "10.184.0.244", "netmask": "255.255.240.0", "services": [{"type": "dns", "address": "69.20.0.164"}], "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.184.0.1"}]},
  {"id": "public-ipv6", "type": "ipv6_slaac", "link": "vlan1"}
 ],
 "services": []
}`

// pve1 is what Proxmox VE writes (qemu-server, Cloudinit.pm, nocloud_network) for ipconfig0 with
// addresses and ipconfig1 with dhcp and auto.
const pve1 = `version: 1
config:
    - type: physical
      name: eth0
      mac_address: '02:00:00:00:00:0a'
      subnets:
      - type: static
        address: '10.0.0.5'
        netmask: '255.255.255.0'
        gateway: '10.0.0.1'
      - type: static6
        address: '2001:db8::5/64'
        gateway: '2001:db8::1'
    - type: physical
      name: eth1
      mac_address: 02:00:00:00:00:0b
      subnets:
      - type: dhcp4
      - type: ipv6_slaac
    - type: nameserver
      address:
      - '10.0.0.53'
      search:
      - 'example.org'
`

// pve2 is the same in version 2, which Proxmox VE has the code for.
const pve2 = `version: 2
ethernets:
    net0:
        match:
            macaddress: "02:00:00:00:00:0A"
        set-name: eth0
        addresses:
        - '10.0.0.5/24'
        - '2001:db8::5/64'
        gateway4: '10.0.0.1'
        gateway6: '2001:db8::1'
        nameservers:
          addresses:
          - '10.0.0.53'
          search:
          - 'example.org'
    net1:
        match:
            macaddress: "02:00:00:00:00:0B"
        set-name: eth1
        dhcp4: true
        accept-ra: true
`

const bond2Config = `
network:
  version: 2
  ethernets:
    one: {match: {macaddress: '02:00:00:00:00:0a'}}
    two: {match: {name: 'enp2*'}}
  bonds:
    bond0:
      interfaces: [one, two]
      macaddress: 02:00:00:00:00:0a
      mtu: 9000
      parameters: {mode: 802.3ad, lacp-rate: fast, mii-monitor-interval: 200, transmit-hash-policy: layer2+3, min-links: 1}
  vlans:
    nodes: {id: 42, link: bond0, addresses: [10.42.0.5/24], routes: [{to: default, via: 10.42.0.1}, {to: 10.50.0.0/16, via: 10.42.0.9, metric: 7}]}
`

const bond1Config = `
version: 1
config:
- {type: physical, name: eno1, mac_address: '02:00:00:00:00:0a'}
- {type: physical, name: eno2}
- type: bond
  name: bond0
  bond_interfaces: [eno1, eno2]
  params: {bond-mode: 1, bond_miimon: 50, arp_ip_target: [10.0.0.1]}
- type: vlan
  name: bond0.42
  vlan_link: bond0
  vlan_id: 42
  subnets:
  - {type: static, address: 10.42.0.5/24, dns_nameservers: [10.42.0.53, 10.42.0.54], dns_search: a.example b.example, routes: [{network: 10.8.0.0, netmask: 255.255.0.0, gateway: 10.42.0.9}]}
- {type: route, destination: 10.9.0.0/16, gateway: 10.42.0.8, metric: 3}
`

func zipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// written are networkd's files without their head, by their names' ends.
func written(t *testing.T, n Network) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, f := range n.Files() {
		text, ok := strings.CutPrefix(string(f.Content), "# Made by imagectl from "+n.From+"; changes here do not last.\n\n")
		if !ok {
			t.Errorf("%s begins with %.80q", f.Path, f.Content)
		}
		out[strings.TrimPrefix(f.Path, FilePrefix)] = text
	}
	return out
}

func TestEachPlatformsAddressesBecomeFilesOfNetworkd(t *testing.T) {
	t.Parallel()
	const (
		static = "[Match]\nPermanentMACAddress=02:00:00:00:00:0a\n\n[Network]\nAddress=10.0.0.5/24\nAddress=2001:db8::5/64\nDHCP=no\nIPv6AcceptRA=no\nDNS=10.0.0.53\nDomains=example.org\n" +
			"\n[Route]\nDestination=0.0.0.0/0\nGateway=10.0.0.1\n\n[Route]\nDestination=::/0\nGateway=2001:db8::1\n"
		auto = "[Match]\nPermanentMACAddress=02:00:00:00:00:0b\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=yes\n\n[IPv6AcceptRA]\nDHCPv6Client=no\n"
	)
	pve := func(first, second string) map[string]string {
		return map[string]string{first + ".network": static, second + ".network": auto}
	}
	for _, tt := range []struct {
		name           string
		guest          guest
		from, hostname string
		files          map[string]string
	}{
		{"OpenStack without DHCP", guest{"config-2 openstack/latest/network_data.json": novaStatic, "config-2 openstack/latest/meta_data.json": `{"uuid": "x", "hostname": "w1.novalocal", "name": "w one"}`},
			"config-2 openstack/latest/network_data.json", "w1", map[string]string{
				"link0.network": "[Match]\nPermanentMACAddress=fa:16:3e:60:32:83\n\n[Link]\nMTUBytes=1450\n\n[Network]\nAddress=10.192.35.66/22\nAddress=2001:db8:9::19/64\nDHCP=no\nIPv6AcceptRA=no\nDNS=10.255.250.40\nDNS=2001:db8::53\n" +
					"\n[Route]\nDestination=0.0.0.0/0\nGateway=10.192.35.254\n\n[Route]\nDestination=10.8.0.0/16\nGateway=10.192.35.1\n\n[Route]\nDestination=::/0\nGateway=2001:db8:9::1\n",
				"link1.network": "[Match]\nPermanentMACAddress=fa:16:3e:69:b0:58\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n",
			}},
		{"OpenStack's bond and VLANs", guest{"CONFIG-2 openstack/latest/network_data.json": ironicBond}, "CONFIG-2 openstack/latest/network_data.json", "", map[string]string{
			"link0.network":   "[Match]\nPermanentMACAddress=a0:36:9f:2c:e8:70\n\n[Link]\nMTUBytes=9000\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"link1.network":   "[Match]\nPermanentMACAddress=a0:36:9f:2c:e8:71\n\n[Link]\nMTUBytes=9000\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"bond0.netdev":    "[NetDev]\nName=bond0\nKind=bond\nMACAddress=a0:36:9f:2c:e8:70\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=50ms\nTransmitHashPolicy=layer3+4\n",
			"bond0.network":   "[Match]\nName=bond0\n\n[Link]\nMTUBytes=9000\nRequiredForOnline=carrier\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nVLAN=vlan101\nVLAN=vlan2\n",
			"vlan101.netdev":  "[NetDev]\nName=vlan101\nKind=vlan\nMACAddress=a0:36:9f:2c:e8:80\n\n[VLAN]\nId=101\n",
			"vlan101.network": "[Match]\nName=vlan101\n\n[Link]\nMTUBytes=1500\n\n[Network]\nAddress=10.184.0.244/20\nDHCP=no\nIPv6AcceptRA=no\nDNS=69.20.0.164\n\n[Route]\nDestination=0.0.0.0/0\nGateway=10.184.0.1\n",
			"vlan2.netdev":    "[NetDev]\nName=vlan2\nKind=vlan\nMACAddress=a0:36:9f:2c:e8:81\n\n[VLAN]\nId=2\n",
			"vlan2.network":   "[Match]\nName=vlan2\n\n[Network]\nDHCP=no\nIPv6AcceptRA=yes\n\n[IPv6AcceptRA]\nDHCPv6Client=no\n",
		}},
		{"OpenStack, a name alone", guest{"config-2 openstack/latest/meta_data.json": `{"hostname": "w1"}`}, "config-2 openstack/latest/meta_data.json", "w1", map[string]string{}},
		{"Proxmox VE", guest{"cidata network-config": pve1, "cidata meta-data": "instance-id: 1234\n", "cidata user-data": "#cloud-config\nhostname: w1\nfqdn: w1.example.org\nusers:\n  - default\n"},
			"cidata network-config", "w1", pve("eth0", "eth1")},
		{"Proxmox VE, version 2", guest{"cidata network-config": pve2}, "cidata network-config", "", pve("net0", "net1")},
		{"a #cloud-config that is none of ours", guest{"cidata network-config": pve2, "cidata user-data": "#cloud-config\na: &a [x]\nb: *a\n"}, "cidata network-config", "", pve("net0", "net1")},
		{"NoCloud on FAT, a name alone", guest{"CIDATA meta-data": "instance-id: i\nlocal-hostname: w2.example.org\n", "CIDATA user-data": "{}"}, "CIDATA meta-data", "w2", map[string]string{}},
		{"a card by its name, netplan's other form of an address", guest{"cidata network-config": "version: 2\nethernets:\n  ens3:\n    addresses: [{10.0.0.5/24: {label: 'ens3:1'}}]\n    dhcp6: yes\n"}, "cidata network-config", "",
			map[string]string{"ens3.network": "[Match]\nName=ens3\n\n[Network]\nAddress=10.0.0.5/24\nDHCP=ipv6\nIPv6AcceptRA=yes\n"}},
		{"a bond and a VLAN, version 2", guest{"cidata network-config": bond2Config}, "cidata network-config", "", map[string]string{
			"one.network":   "[Match]\nPermanentMACAddress=02:00:00:00:00:0a\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"two.network":   "[Match]\nName=enp2*\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"bond0.netdev":  "[NetDev]\nName=bond0\nKind=bond\nMACAddress=02:00:00:00:00:0a\n\n[Bond]\nMode=802.3ad\nMIIMonitorSec=200ms\nLACPTransmitRate=fast\nTransmitHashPolicy=layer2+3\n",
			"bond0.network": "[Match]\nName=bond0\n\n[Link]\nMTUBytes=9000\nRequiredForOnline=carrier\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nVLAN=nodes\n",
			"nodes.netdev":  "[NetDev]\nName=nodes\nKind=vlan\n\n[VLAN]\nId=42\n",
			"nodes.network": "[Match]\nName=nodes\n\n[Network]\nAddress=10.42.0.5/24\nDHCP=no\nIPv6AcceptRA=no\n\n[Route]\nDestination=0.0.0.0/0\nGateway=10.42.0.1\n\n[Route]\nDestination=10.50.0.0/16\nGateway=10.42.0.9\nMetric=7\n",
		}},
		{"a bond and a VLAN, version 1", guest{"cidata network-config": bond1Config}, "cidata network-config", "", map[string]string{
			"eno1.network":     "[Match]\nPermanentMACAddress=02:00:00:00:00:0a\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"eno2.network":     "[Match]\nName=eno2\n\n[Link]\nRequiredForOnline=no\n\n[Network]\nBond=bond0\n",
			"bond0.netdev":     "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMode=active-backup\nMIIMonitorSec=50ms\n",
			"bond0.network":    "[Match]\nName=bond0\n\n[Link]\nRequiredForOnline=carrier\n\n[Network]\nDHCP=no\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nVLAN=bond0.42\n",
			"bond0.42.netdev":  "[NetDev]\nName=bond0.42\nKind=vlan\n\n[VLAN]\nId=42\n",
			"bond0.42.network": "[Match]\nName=bond0.42\n\n[Network]\nAddress=10.42.0.5/24\nDHCP=no\nIPv6AcceptRA=no\nDNS=10.42.0.53\nDNS=10.42.0.54\nDomains=a.example b.example\n\n[Route]\nDestination=10.8.0.0/16\nGateway=10.42.0.9\n\n[Route]\nDestination=10.9.0.0/16\nGateway=10.42.0.8\nMetric=3\n",
		}},
		{"nothing to be done", guest{"cidata network-config": "network: {version: 1, config: disabled}"}, "cidata network-config", "", map[string]string{}},
		{"guestinfo.metadata", guest{"guestinfo.metadata": `{"instance-id": "i", "local-hostname": "w3", "network": {"version": 2, "ethernets": {"nics": {"match": {"name": "ens*"}, "dhcp4": true}}}}`}, "guestinfo.metadata", "w3",
			map[string]string{"nics.network": "[Match]\nName=ens*\n\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\n"}},
		{"guestinfo.metadata, encoded twice", guest{"guestinfo.metadata": zipped(t, "local-hostname: w3\nnetwork: "+zipped(t, pve2)+"\nnetwork.encoding: gzip+base64\n"), "guestinfo.metadata.encoding": "gz+b64", "guestinfo.hostname": "other"},
			"guestinfo.metadata", "w3", pve("net0", "net1")},
		{"guestinfo as Flatcar knows it", guest{
			"guestinfo.hostname": "w4", "guestinfo.metadata": "---", "guestinfo.dns.server.0": "10.0.0.53", "guestinfo.dns.domain.0": "example.org",
			"guestinfo.interface.0.mac": "02:00:00:00:00:0A", "guestinfo.interface.0.name": "ens192", "guestinfo.interface.0.dhcp": "no", "guestinfo.interface.0.role": "private",
			"guestinfo.interface.0.ip.0.address": "10.0.0.5/24", "guestinfo.interface.0.ip.1.address": "2001:db8::5/64",
			"guestinfo.interface.0.route.0.gateway": "10.0.0.1", "guestinfo.interface.0.route.0.destination": "0.0.0.0/0",
			"guestinfo.interface.0.route.1.gateway": "2001:db8::1", "guestinfo.interface.0.route.1.destination": "::/0",
			"guestinfo.interface.1.name": "ens224", "guestinfo.interface.1.dhcp": "yes",
		}, "guestinfo", "w4", map[string]string{"interface0.network": static, "interface1.network": "[Match]\nName=ens224\n\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n"}},
		{"guestinfo, a name alone", guest{"guestinfo.hostname": "w5"}, "guestinfo", "w5", map[string]string{}},
		{"guestinfo, metadata with a name alone", guest{"guestinfo.metadata": "local-hostname: w6"}, "guestinfo", "w6", map[string]string{}},
		{"the first that says anything", guest{"config-2 openstack/latest/user_data": "{}", "cidata meta-data": "instance-id: i", "cidata user-data": "{}", "guestinfo.hostname": "w7"}, "guestinfo", "w7", map[string]string{}},
		{"OpenNebula before others", guest{"CONTEXT context.sh": with(), "cidata network-config": "x"}, "OpenNebula's CONTEXT", "", map[string]string{
			"eth0.network": "[Match]\nPermanentMACAddress=02:00:00:00:00:01\n\n[Network]\nAddress=10.0.0.5/24\nDHCP=no\nIPv6AcceptRA=no\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n, err := Addresses(t.Context(), tt.guest)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.files, written(t, n)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if n.From != tt.from || n.Hostname != tt.hostname {
				t.Errorf("got the name %q from %q, want %q from %q", n.Hostname, n.From, tt.hostname, tt.from)
			}
		})
	}
	for _, none := range []guest{{}, {"cidata user-data": "{}"}, {"cidata meta-data": "instance-id: i\n"}, {"config-2 openstack/latest/meta_data.json": "{}"}, {"guestinfo.imagectl.node": "{}"}} {
		if n, err := Addresses(t.Context(), none); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v: got %+v, %v, want fs.ErrNotExist", slices.Collect(maps.Keys(none)), n, err)
		}
	}
}

// links is a network_data.json.
func links(links, networks string) guest {
	return guest{"config-2 openstack/latest/network_data.json": `{"links": [` + links + `], "networks": [` + networks + `]}`}
}

func v1(config string) guest {
	return guest{"cidata network-config": "{version: 1, config: [" + config + "]}"}
}

func v2(rest string) guest { return guest{"cidata network-config": "{version: 2, " + rest + "}"} }

func TestEachPlatformsAddressesSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	const (
		data  = "config-2 openstack/latest/network_data.json: "
		cloud = "cidata network-config: "
		phy   = `{"id": "a", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:01"}`
		phy2  = `{"id": "b", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:02"}`
		eth   = "{type: physical, name: e, mac_address: '02:00:00:00:00:01', "
	)
	// Its checksum is wrong, which only who unpacks all of it finds out.
	bomb, err := base64.StdEncoding.DecodeString(zipped(t, strings.Repeat(" ", 1<<24)))
	if err != nil {
		t.Fatal(err)
	}
	bomb[len(bomb)-8] ^= 1
	v4 := func(rest string) string { return `{"link": "a", "type": "ipv4", ` + rest + `}` }
	for _, tt := range []struct {
		name  string
		guest guest
		want  string
		// cards are those that there are all the same.
		cards int
	}{
		{"no JSON", guest{"config-2 openstack/latest/network_data.json": "x"}, data + "invalid character 'x' looking for beginning of value", 0},
		{"no end", guest{"config-2 openstack/latest/network_data.json": strings.Repeat(" ", maxDescription+1)}, data + "it has more than 262144 bytes", 0},
		{"unreadable", guest{"config-2 openstack/latest/network_data.json": "unreadable"}, data + "input/output error", 0},
		{"no JSON about it", guest{"config-2 openstack/latest/meta_data.json": "x"}, "config-2 openstack/latest/meta_data.json: invalid character 'x' looking for beginning of value", 0},
		{"Debian's form alone", guest{"config-2 openstack/latest/meta_data.json": `{"network_config": {"content_path": "/content/0000"}}`},
			`config-2 openstack/latest/meta_data.json: the addresses are in "/content/0000" only, in a form that is not read: Proxmox VE writes one that is with citype=nocloud`, 0},
		{"a link of no form", links(`{"id": 1}`, ""), data + "link 0: json: cannot unmarshal number into Go struct field openStackLink.ID of type string", 0},
		{"a link without id", links(`{"type": "phy"}`, ""), data + "link 0: it has no id", 0},
		{"two of one id", links(phy+","+phy, v4(`"ip_address": "10.0.0.5", "netmask": "255.0.0.0"`)), data + `link 1: there is another one of the id "a"`, 1},
		{"no MAC", links(`{"id": "a", "type": "phy"}`, ""), data + `link "a": ethernet_mac_address "" is no card's MAC address`, 0},
		{"a group's MAC", links(`{"id": "a", "type": "phy", "ethernet_mac_address": "01:00:5e:00:00:01"}`, ""), data + `link "a": ethernet_mac_address "01:00:5e:00:00:01" is no card's MAC address`, 0},
		{"MTU", links(`{"id": "a", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:01", "mtu": 67}`, ""), data + `link "a": mtu 67 is no MTU: want 68 to 65535`, 0},
		{"two cards that are one", links(phy+`,{"id": "b", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:01"}`, ""), data + `link "b": link0 has the same MAC address 02:00:00:00:00:01`, 0},
		{"a network for no link", links(phy, `{"link": "b", "type": "ipv4_dhcp"}`), data + `network 0: it is for the link "b", which is not there`, 0},
		{"a network's type", links(phy, `{"link": "a", "type": "ipv4_magic"}`), data + `link "a": the network's type "ipv4_magic" is none that is read: want ipv4, ipv4_dhcp, ipv6, ipv6_dhcp, ipv6_slaac, ipv6_dhcpv6-stateful or ipv6_dhcpv6-stateless`, 0},
		{"an address with a section", links(phy, v4(`"ip_address": "10.0.0.5\n[Route]", "netmask": "255.0.0.0"`)), data + `link "a": ip_address "10.0.0.5\n[Route]" is no address that a machine can have`, 0},
		{"loopback", links(phy, v4(`"ip_address": "127.0.0.1", "netmask": "255.0.0.0"`)), data + `link "a": ip_address "127.0.0.1" is no address that a machine can have`, 0},
		{"a mask with holes", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "255.0.255.0"`)), data + `link "a": ip_address "10.0.0.5" has the mask "255.0.255.0", which is none of a network`, 0},
		{"no mask", links(phy, v4(`"ip_address": "10.0.0.5"`)), data + `link "a": ip_address "10.0.0.5" has the mask "", which is none of a network`, 0},
		{"a mask of everything", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "0.0.0.0"`)), data + `link "a": ip_address "10.0.0.5" has the mask "0.0.0.0", which is none of a network`, 0},
		{"the other family", links(phy, v4(`"ip_address": "2001:db8::1", "netmask": "64"`)), data + `link "a": ip_address "2001:db8::1" is of another family than the network's type ipv4`, 0},
		{"a route without mask", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "8", "routes": [{"network": "0.0.0.0", "gateway": "10.0.0.1"}]`)), data + `link "a": routes: one has no netmask`, 0},
		{"a route's mask with holes", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "8", "routes": [{"network": "10.0.0.0", "netmask": "255.0.255.0", "gateway": "10.0.0.1"}]`)), data + `link "a": routes: "10.0.0.0" has the mask "255.0.255.0", which is none of a network`, 0},
		{"a route of two families", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "8", "routes": [{"network": "::", "netmask": "::", "gateway": "10.0.0.1"}]`)), data + `link "a": routes: "::" is no network of the family of its router 10.0.0.1`, 0},
		{"a router that is none", links(phy, v4(`"ip_address": "10.0.0.5", "netmask": "8", "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "0.0.0.0"}]`)), data + `link "a": routes: the router "0.0.0.0" is no address that a machine can have`, 0},
		{"a resolver", guest{"config-2 openstack/latest/network_data.json": `{"services": [{"type": "dns", "address": "dns.example"}]}`}, data + `service dns "dns.example" is no resolver's address`, 0},
		{"a bond's mode", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "best", "bond_links": ["a"]}`, ""),
			data + `link "c": "best" is no mode of a bond: want one of balance-rr, active-backup, balance-xor, broadcast, 802.3ad, balance-tlb, balance-alb`, 0},
		{"a bond of what is not there", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a", "b"]}`, ""), data + `link "c": the bond is made of the link "b", which is not there`, 0},
		{"a bond of what is of no use", links(phy+`,{"id": "b", "type": "phy"},{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a", "b"]}`, `{"link": "c", "type": "ipv4_dhcp"}`),
			data + `link "b": ethernet_mac_address "" is no card's MAC address` + "\n" + data + `bond0: the bond is made of "link1", which is no card of use`, 0},
		{"a bond of nothing", links(`{"id": "c", "type": "bond", "bond_mode": "802.3ad"}`, ""), data + "bond0: the bond is made of no card", 0},
		{"a card twice in a bond", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a", "a"]}`, ""), data + "bond0: link0 is in bonds twice", 0},
		{"a bonded card with an address", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a"]}`, `{"link": "a", "type": "ipv4_dhcp"}`), data + "bond0: the bond is made of link0, which has addresses of its own", 1},
		{"a bond of bonds", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a"]},{"id": "d", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["c"]}`, ""), data + "bond1: the bond is made of bond0, which is itself made of others", 2},
		{"VLAN 4095", links(phy+`,{"id": "c", "type": "vlan", "vlan_id": 4095, "vlan_link": "a"}`, ""), data + `link "c": vlan_id 4095 is no VLAN: want 1 to 4094`, 0},
		{"a VLAN on nothing", links(`{"id": "c", "type": "vlan", "vlan_id": 1, "vlan_link": "a"}`, ""), data + `link "c": the VLAN is on the link "a", which is not there`, 0},
		{"a VLAN on a VLAN", links(phy+`,{"id": "c", "type": "vlan", "vlan_id": 1, "vlan_link": "a"},{"id": "d", "type": "vlan", "vlan_id": 2, "vlan_link": "c"}`, ""), data + "vlan2: the VLAN is on vlan1, which is a VLAN itself", 2},
		{"a VLAN beside a bond", links(phy+`,{"id": "c", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["a"]},{"id": "d", "type": "vlan", "vlan_id": 2, "vlan_link": "a"}`, ""), data + "vlan2: the VLAN is on link0, which is a part of a bond", 2},
		{"a VLAN twice", links(phy+","+phy2+`,{"id": "c", "type": "vlan", "vlan_id": 1, "vlan_link": "a"},{"id": "d", "type": "vlan", "vlan_id": 1, "vlan_link": "a"}`, ""), data + "vlan1: vlan1.1 is VLAN 1 on link0 too", 2},

		{"a program", guest{"cidata network-config": "#!/bin/sh\nid\n"}, cloud + "it has no names with values", 0},
		{"no text", guest{"cidata network-config": "a: \xff"}, cloud + "it is no text in UTF-8", 0},
		{"a bomb", guest{"cidata network-config": "a: &a [x]\nb: [*a, *a]\n"}, cloud + "line 1: anchors and aliases are not read", 0},
		{"deep", guest{"cidata network-config": "a: " + strings.Repeat("[", 30) + strings.Repeat("]", 30)}, cloud + "line 1: it is nested more than 20 deep", 0},
		{"no version", guest{"cidata network-config": "ethernets: {}"}, cloud + "its version is 0: want 1 or 2", 0},
		{"an old form", guest{"cidata meta-data": "network-interfaces: |\n  iface eth0 inet dhcp\n"}, "cidata meta-data: network-interfaces is in a form that is not read: write the file network-config", 0},
		{"a bridge, 1", v1("{type: bridge, name: br0}"), cloud + `config 0: "bridge" is not made here: want physical, bond, vlan, nameserver or route`, 0},
		{"a bridge, 2", v2("bridges: {br0: {}}"), cloud + `"br0" is neither an Ethernet card nor a bond nor a VLAN, and nothing else is made here`, 0},
		{"a card without a name", v1("{type: physical}"), cloud + `physical "": "" is no name for it: want letters, digits, dots and dashes, up to 15 for a bond or a VLAN`, 0},
		{"a path", v2("ethernets: {../../x: {dhcp4: true}}"), cloud + `ethernets "../../x": "../../x" is no name for it: want letters, digits, dots and dashes, up to 15 for a bond or a VLAN`, 0},
		{"two names that are one file", v2("ethernets: {eth0: {dhcp4: true}, ETH0: {dhcp4: true}}"), cloud + `ethernets "eth0": there are two of the name eth0`, 1},
		{"a long bond", v2("bonds: {bond0123456789012: {interfaces: [a]}}"), cloud + `bonds "bond0123456789012": "bond0123456789012" is no name for it: want letters, digits, dots and dashes, up to 15 for a bond or a VLAN`, 0},
		{"a driver", v2("ethernets: {a: {match: {driver: virtio}}}"), cloud + `ethernets "a": match: "driver" is not read: want macaddress or name`, 0},
		{"no match", v2("ethernets: {a: {match: {}}}"), cloud + `ethernets "a": match: want macaddress or one name`, 0},
		{"a negative match", v2("ethernets: {a: {match: {name: '!eth0'}, dhcp4: true}}"), cloud + `ethernets "a": "!eth0" is no name of a card`, 0},
		{"an address without its length", v2("ethernets: {a: {addresses: [10.0.0.5]}}"), cloud + `ethernets "a": addresses: "10.0.0.5" has no length of its network behind a slash`, 0},
		{"a route's table", v2("ethernets: {a: {addresses: [10.0.0.5/8], routes: [{to: default, via: 10.0.0.1, table: 5}]}}"), cloud + `ethernets "a": routes: "table" is not read: want to, via and metric`, 0},
		{"policies", v2("ethernets: {a: {dhcp4: true, routing-policy: [{}]}}"), cloud + `ethernets "a": routing-policy is not read`, 0},
		{"gateway4", v2("ethernets: {a: {addresses: [10.0.0.5/8], gateway4: 'fe80::1'}}"), cloud + `ethernets "a": gateway4: fe80::1 is of the other family`, 0},
		{"a search domain", v2("ethernets: {a: {dhcp4: true, nameservers: {search: ['~.']}}}"), cloud + `ethernets "a": search "~." is no domain`, 0},
		{"one of two", v2("ethernets: {a: {dhcp4: true}, b: {mtu: 1}}"), cloud + `ethernets "b": mtu 1 is no MTU: want 68 to 65535`, 1},
		{"a subnet's type", v1(eth + "subnets: [{type: magic}]}"),
			cloud + `physical "e": the subnet's type "magic" is none that is read: want dhcp, dhcp4, dhcp6, static, static6, ipv6_slaac, ipv6_dhcpv6-stateful or ipv6_dhcpv6-stateless`, 0},
		{"a subnet's family", v1(eth + "subnets: [{type: static6, address: 10.0.0.5/8}]}"), cloud + `physical "e": address "10.0.0.5/8" is of another family than the subnet's type static6`, 0},
		{"a route without a mask", v1(eth + "subnets: [{type: dhcp, routes: [{network: 10.8.0.0, gateway: 10.0.0.1}]}]}"), cloud + `physical "e": routes: "10.8.0.0" has no mask`, 0},
		{"a resolver for no card", v1("{type: nameserver, address: 10.0.0.1, interface: e}"), cloud + `nameserver: the card "e" is not there`, 0},
		{"a route by no card", v1(eth + "subnets: [{type: static, address: 10.0.0.5/24}]}, {type: route, destination: 10.1.0.0/16, gateway: 10.2.0.1}"), cloud + "route: no card has an address in the network of its router 10.2.0.1", 1},
		{"miimon", v1(eth + "}, {type: bond, name: bond0, bond_interfaces: [e], params: {miimon: x}}"), cloud + `bond "bond0": miimon "x" is no number of milliseconds`, 0},
		{"LACP", v2("ethernets: {a: {}}, bonds: {b: {interfaces: [a], parameters: {mode: 802.3ad, lacp-rate: often}}}"), cloud + `bonds "b": "often" is no rate of LACP: want slow or fast`, 0},
		{"a hash", v2("ethernets: {a: {}}, bonds: {b: {interfaces: [a], parameters: {transmit-hash-policy: layer9}}}"), cloud + `bonds "b": "layer9" does not spread packets: want one of layer2, layer2+3, layer3+4, encap2+3, encap3+4`, 0},

		{"guestinfo out of reach", guest{"guestinfo.x": "unreadable"}, "guestinfo: input/output error", 0},
		{"an encoding", guest{"guestinfo.metadata": "x", "guestinfo.metadata.encoding": "rot13"}, `guestinfo.metadata: its encoding "rot13" is none that is read: want base64 or gzip+base64`, 0},
		{"no base64", guest{"guestinfo.metadata": "x", "guestinfo.metadata.encoding": "base64"}, "guestinfo.metadata: illegal base64 data at input byte 0", 0},
		{"no gzip", guest{"guestinfo.metadata": "eHh4eHh4eHh4eHh4", "guestinfo.metadata.encoding": "gzip+base64"}, "guestinfo.metadata: gzip: invalid header", 0},
		{"a bomb of zeros", guest{"guestinfo.metadata": base64.StdEncoding.EncodeToString(bomb), "guestinfo.metadata.encoding": "gzip+base64"}, "guestinfo.metadata: it has more than 262144 bytes", 0},
		{"a bomb of zeros inside", guest{"guestinfo.metadata": "network: " + base64.StdEncoding.EncodeToString(bomb) + "\nnetwork.encoding: gzip+base64\n"}, "guestinfo.metadata network: it has more than 262144 bytes", 0},
		{"a card without both", guest{"guestinfo.interface.0.dhcp": "yes"}, "guestinfo: interface.0: it has neither a MAC address nor a name", 0},
		{"dhcp", guest{"guestinfo.interface.0.name": "e", "guestinfo.interface.0.dhcp": "maybe"}, `guestinfo: interface.0: dhcp "maybe" is neither yes nor no`, 0},
		{"an address", guest{"guestinfo.interface.0.name": "e", "guestinfo.interface.0.ip.0.address": "10.0.0.5"}, `guestinfo: interface.0: ip.0.address "10.0.0.5" has no length of its network behind a slash`, 0},
		{"half a route", guest{"guestinfo.interface.0.name": "e", "guestinfo.interface.0.route.0.destination": "10.0.0.0/8"}, `guestinfo: interface.0: route.0: the router "" is no address that a machine can have`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n, err := Addresses(t.Context(), tt.guest)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
			if len(n.Cards) != tt.cards {
				t.Errorf("got the cards %+v, want %d", n.Cards, tt.cards)
			}
		})
	}
	many := make([]string, maxCards+1)
	for i := range many {
		many[i] = fmt.Sprintf("e%d: {dhcp4: true}", i)
	}
	n, err := Addresses(t.Context(), v2("ethernets: {"+strings.Join(many, ", ")+"}"))
	if err == nil || !strings.HasSuffix(err.Error(), "the machine has more than 64 cards") || len(n.Cards) != maxCards {
		t.Errorf("%d cards of %d, %v", len(n.Cards), len(many), err)
	}
}

// FuzzDescriptions looks that whatever a platform writes, networkd's files have known names and
// lines of known forms only, that nothing runs away, and that the name is one label.
func FuzzDescriptions(f *testing.F) {
	for _, text := range []string{novaStatic, ironicBond, pve1, pve2, bond1Config, bond2Config, `{"hostname": "w1"}`, "local-hostname: x\nnetwork: {version: 2, ethernets: {a: {dhcp4: true}}}", "mac=02:00:00:00:00:01 ip.0.address=10.0.0.1/8"} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, text, more string) {
		vars := guest{"guestinfo.metadata": more, "guestinfo.metadata.encoding": "gzip+base64"}
		flat := guest{"guestinfo.hostname": more, "guestinfo.dns.domain.0": more}
		for word := range strings.FieldsSeq(text) {
			k, v, _ := strings.Cut(word, "=")
			flat["guestinfo.interface.0."+k] = v
		}
		for _, g := range []guest{
			{"config-2 openstack/latest/network_data.json": text, "config-2 openstack/latest/meta_data.json": more},
			{"cidata network-config": text, "cidata meta-data": more, "cidata user-data": "#cloud-config\n" + more},
			{"guestinfo.metadata": text, "guestinfo.hostname": more}, vars, flat,
		} {
			n, _ := Addresses(t.Context(), g)
			judgeFiles(t, n, text)
		}
	})
}
