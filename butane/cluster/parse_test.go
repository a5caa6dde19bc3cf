package cluster

import (
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/butane/diag"
)

// edit is the starter with pieces of text replaced, in pairs.
func edit(t *testing.T, pairs ...string) string {
	t.Helper()
	s := string(Minimal)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(s, pairs[i]) {
			t.Fatalf("the starter does not contain %q", pairs[i])
		}
		s = strings.Replace(s, pairs[i], pairs[i+1], 1)
	}
	return s
}

func texts(found diag.List) []string {
	var out []string
	for _, f := range found {
		f.Line, f.Column = 0, 0
		out = append(out, strings.TrimPrefix(f.String(), "cluster.yaml: "))
	}
	return out
}

const (
	cp1     = "  - name: cp1\n    role: control-plane\n    match: {mac: [\"52:54:00:00:00:11\"]}\n    address: 10.0.0.11\n    disk: {path: /dev/vda}"
	cp2     = "\n  - {name: cp2, role: control-plane, match: {mac: [\"52:54:00:00:00:12\"]}, address: 10.0.0.12, disk: {path: /dev/vda}}\n"
	cp3     = "  - {name: cp3, role: control-plane, match: {mac: [\"52:54:00:00:00:13\"]}, address: 10.0.0.13, disk: {path: /dev/vda}}\n"
	comment = " # on hardware rather serial, wwn or /dev/disk/by-id/..."
)

// bmc gives the worker a BMC.
func bmc(text string) []string {
	return []string{"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    bmc: " + text + "\n"}
}

func zoned(s, zone string) string { return strings.Replace(s, "disk:", "zone: "+zone+", disk:", 1) }

func TestFindings(t *testing.T) {
	tests := []struct {
		name  string
		pairs []string
		want  []string
	}{
		// The format.
		{"a later format", []string{"version: 1\n", "version: 2\n"}, []string{`error: version: version 2 of the format is not known, want 1`}},
		{"a missing section", []string{"etcd:\n  version: v3.6.5\n", ""}, []string{`error: required key "etcd" is missing`}},
		{"an empty section", []string{"cluster: lab", "cluster:"}, []string{`error: cluster: is empty, want a value`}},
		{"a section of the wrong shape", []string{"etcd:\n  version: v3.6.5\n", "etcd: [v3.6.5]\n"}, []string{`error: etcd: is a list, want a mapping`}},
		{"a key twice", []string{"cluster: lab", "cluster: lab\ncluster: lab"}, []string{`error: key "cluster" is here twice; the first is on line 4`}},
		{"an anchor and an alias", []string{"cluster: lab", "cluster: &a lab\nidentity: *a"}, []string{
			`error: YAML anchors are not accepted: a reviewer should see every value where it is used`,
			`error: YAML aliases are not accepted: a reviewer should see every value where it is used`,
		}},
		{"a merge key", []string{"cluster: lab", "cluster: lab\n<<: {a: b}"}, []string{`error: <<: unknown key "<<"`}},
		{"control characters", []string{"cluster: lab", `cluster: "a\u0007b"`}, []string{`error: cluster: "a\ab" is not text without control characters`}},

		// Flatcar, Kubernetes and the components.
		{"a version of another channel", []string{"4593.2.5", "4790.0.0"}, []string{`error: flatcar.version: 4790.0.0 is a version of channel alpha, and flatcar.channel is stable`}},
		{"a mirror may hold any channel", []string{"4593.2.5", "4790.0.0", "  # mirror: https://mirror.example.org/flatcar", "  mirror: https://mirror.example.org/flatcar"}, nil},
		{"no keyring", []string{"  keyring: keys/flatcar.asc\n", ""}, []string{`error: flatcar: required key "keyring" is missing`}},
		{"a keyring that is not there yet", []string{"keys/flatcar.asc", "k.asc"}, []string{`warning: flatcar.keyring: the keyring cannot be read, and imagectl lock needs it: no such file`}},
		{"a short key id", []string{"  # mirror:", "  primaryKey: \"0593B34A\"\n  # mirror:"}, []string{`error: flatcar.primaryKey: want the fingerprint of the primary key: 40 or 64 hexadecimal digits`}},
		{"Kubernetes without v", []string{"v1.36.3", "1.36.3"}, []string{`error: kubernetes.version: "1.36.3" lacks the leading v`}},
		{"Kubernetes too old", []string{"v1.36.3", "v1.33.0"}, []string{`error: kubernetes.version: Kubernetes 1.33 is not supported: this imagectl knows 1.34 to 1.36`}},
		{"etcd too old", []string{"v3.6.5", "v3.4.1"}, []string{`error: etcd.version: "v3.4.1" is not a version that imagectl knows how to use`}},
		{"an etcd that kubeadm refuses", []string{"v3.6.5", "v3.5.23"}, []string{`error: etcd.version: kubeadm refuses to start on etcd v3.5.23: it wants 3.5.24 or newer`}},
		{"the oldest etcd that kubeadm takes", []string{"v3.6.5", "v3.5.24"}, nil},
		{"times of etcd", etcdTimed("heartbeatInterval: 500ms", "electionTimeout: 5s"), nil},
		{"as short as etcd takes them", etcdTimed("heartbeatInterval: 10ms", "electionTimeout: 50ms"), nil},
		{"as long as etcd takes them", etcdTimed("heartbeatInterval: 10s", "electionTimeout: 50s"), nil},
		{"an election timeout alone", etcdTimed("electionTimeout: 500ms"), nil},
		{"a heartbeat alone", etcdTimed("heartbeatInterval: 200ms"), nil},
		{"a heartbeat that is too short", etcdTimed("heartbeatInterval: 9ms"), []string{`error: etcd.heartbeatInterval: 9ms is less than the 10ms below which members do little but beat; it is to be about the round trip between them`}},
		{"no heartbeat", etcdTimed("heartbeatInterval: 0s"), []string{`error: etcd.heartbeatInterval: 0s is less than the 10ms below which members do little but beat; it is to be about the round trip between them`}},
		{"an election timeout that is too long", etcdTimed("heartbeatInterval: 1s", "electionTimeout: 50001ms"), []string{`error: etcd.electionTimeout: etcd refuses 50.001s: it takes 50s at most`}},
		{"fewer than five heartbeats", etcdTimed("heartbeatInterval: 500ms", "electionTimeout: 2499ms"), []string{`error: etcd.electionTimeout: etcd refuses an election timeout of 2.499s with a heartbeat of 500ms: it wants 5 heartbeats at least, and ten are good`}},
		{"a heartbeat that is long for etcd's own timeout", etcdTimed("heartbeatInterval: 201ms"), []string{`error: etcd.heartbeatInterval: etcd refuses an election timeout of 1s with a heartbeat of 201ms: it wants 5 heartbeats at least, and ten are good`}},
		{"a timeout that is short for etcd's own heartbeat", etcdTimed("electionTimeout: 499ms"), []string{`error: etcd.electionTimeout: etcd refuses an election timeout of 499ms with a heartbeat of 100ms: it wants 5 heartbeats at least, and ten are good`}},
		{"parts of milliseconds", etcdTimed("heartbeatInterval: 10500us", "electionTimeout: 0.5ms"), []string{
			`error: etcd.heartbeatInterval: 10.5ms is no whole number of milliseconds, and etcd counts in those`,
			`error: etcd.electionTimeout: 500µs is no whole number of milliseconds, and etcd counts in those`,
		}},
		{"times that are none", etcdTimed("heartbeatInterval: 500"), []string{`error: etcd.heartbeatInterval: 500 is a number for YAML, want text`}},
		{"times of the wrong component", []string{"  version: v1.9.1\n", "  version: v1.9.1\n  electionTimeout: 5s\n"}, []string{`error: cni.electionTimeout: unknown key "electionTimeout"`}},
		{"an endpoint as URL", []string{"  podCIDR", "  endpoint: https://api:6443/\n  podCIDR"}, []string{`error: kubernetes.endpoint: want host:port without https://`}},
		{"an endpoint without port", []string{"  podCIDR", "  endpoint: api.example.org\n  podCIDR"}, []string{`error: kubernetes.endpoint: "api.example.org" is not host:port`}},
		{"an address that moves", []string{"  podCIDR", "  apiVIP: [10.0.0.100]\n  podCIDR"}, nil},
		{"addresses that move and are others'", []string{"  podCIDR", "  apiVIP: [10.0.0.11]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.11 is an address of cp1`}},
		{"an address that moves into a range", []string{"  podCIDR", "  apiVIP: [10.0.0.210]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250`}},
		{"an address that moves and is the server's", []string{"  podCIDR", "  apiVIP: [10.0.0.2]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.2 is the address of a server`}},
		{"an address that moves and is the router's", []string{"  podCIDR", "  apiVIP: [10.0.0.1]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.1 is the address of the router`}},
		{"an address that moves among pods", []string{"  podCIDR", "  apiVIP: [10.244.0.9]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.244.0.9 is in the network of the pods, kubernetes.podCIDR`}},
		{"an address that moves among services", []string{"  podCIDR", "  apiVIP: [10.96.0.1]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.96.0.1 is in the network of the services, kubernetes.serviceCIDR`}},
		{"an address that moves for everybody", []string{"  podCIDR", "  apiVIP: [10.0.0.255]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.255 is no host's address in 10.0.0.0/24`}},
		{"an address that moves elsewhere", []string{"  podCIDR", "  apiVIP: [10.0.1.9]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: 10.0.1.9 is in no network that cp1 is in`}},
		{"an address that moves on the loopback", []string{"  podCIDR", "  apiVIP: [127.0.0.1]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[0]: people outside the cluster cannot reach 127.0.0.1`}},
		{"two addresses that move", []string{"  podCIDR", "  apiVIP: [10.0.0.100, 10.0.0.101]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[1]: the API has an address of the same family already: kubernetes.apiVIP[0]`}},
		{"an address of IPv6 that moves in no network", []string{"  podCIDR", "  apiVIP: [10.0.0.100, \"fd00:10::100\"]\n  podCIDR"}, []string{`error: kubernetes.apiVIP[1]: no network of IPv6 is known that cp1 is in`}},
		{"addresses of both families that move", []string{"  podCIDR", "  apiVIP: [10.0.0.100, \"fd00:10::100\"]\n  podCIDR", "  interface: eth1\n", "  interface: eth1\n  dhcp6: {address: \"fd00:10::1\", subnets: [{cidr: \"fd00:10::/64\", range: {first: \"fd00:10::200\", last: \"fd00:10::2ff\"}}]}\n"}, nil},
		{"an address of IPv6 that moves into a range", []string{"  podCIDR", "  apiVIP: [\"fd00:10::100\"]\n  podCIDR", "  interface: eth1\n", "  interface: eth1\n  dhcp6: {address: \"fd00:10::1\", subnets: [{cidr: \"fd00:10::/64\", range: {first: \"fd00:10::100\", last: \"fd00:10::1ff\"}}]}\n"}, []string{`error: kubernetes.apiVIP[0]: fd00:10::100 is inside the dynamic range fd00:10::100 to fd00:10::1ff`}},
		{"a control plane in another network than the address that moves", []string{"  podCIDR", "  apiVIP: [10.0.0.100]\n  podCIDR", "  interface: eth1\n", "  interface: eth1\n  relays: [10.0.0.3]\n", "address: 10.0.0.11", "address: 10.1.0.11", "  subnets:\n", "  subnets:\n    - {cidr: 10.1.0.0/24, router: 10.1.0.1}\n"}, []string{`error: kubernetes.apiVIP[0]: 10.0.0.100 is in 10.0.0.0/24, and cp1 is not: its address is 10.1.0.11`}},
		{"a password in a URL", []string{"bin/bootstrapd", "https://me:hunter2@example.org/b"}, []string{`error: agent.source: a URL here must not carry a user or a password: cluster.yaml and the lock file are in git`}},
		{"another scheme", []string{"bin/bootstrapd", "file:///bin/b"}, []string{`error: agent.source: a source is an http or https URL or a path, not file://`}},
		{"a secret written out", []string{"roles:", "upload:\n  - {name: a, type: opennebula, endpoint: \"https://one/RPC2\", datastore: d, username: u, password: hunter2}\nroles:"}, []string{`error: upload[0].password: a secret is never written here, only where it is: one of file, env, age`}},
		{"a secret in two places", []string{"roles:", "upload:\n  - {name: a, type: opennebula, endpoint: \"https://one/RPC2\", datastore: d, username: u, password: {env: A, file: b}}\nroles:"}, []string{`error: upload[0].password: want exactly one of file, env, age`}},

		// Networks.
		{"pods overlap services", []string{"10.244.0.0/16", "10.100.0.0/16"}, []string{`error: kubernetes.serviceCIDR: kubernetes.serviceCIDR 10.96.0.0/12 overlaps kubernetes.podCIDR 10.100.0.0/16`}},
		{"pods overlap the boot network", []string{"10.244.0.0/16", "10.0.0.0/16"}, []string{`error: boot.subnets[0].cidr: boot.subnets[0] 10.0.0.0/24 overlaps kubernetes.podCIDR 10.0.0.0/16`}},
		{"too few pod networks", []string{"10.244.0.0/16", "10.244.0.0/24"}, []string{`error: kubernetes.podCIDR: 10.244.0.0/24 has room for 1 nodes of a /24 each, and there are 2 machines`}},
		{"an IPv6 pod network", []string{"10.244.0.0/16", "fd00::/48"}, []string{`error: kubernetes.podCIDR: IPv6 is not supported yet`}},
		{"an IPv6 boot network", []string{"10.0.0.0/24", "fd00::/64"}, []string{
			`error: server.address: the server's address 10.0.0.2 is in none of boot.subnets, so no machine reaches it without a relay`,
			`error: boot.subnets[0].cidr: boot.subnets are IPv4 networks; those of IPv6 stand in boot.dhcp6.subnets`,
			`error: machines[0].address: 10.0.0.11 of cp1 is in none of boot.subnets`,
			`error: machines[1].address: 10.0.0.21 of worker1 is in none of boot.subnets`,
		}},
		{"a server of IPv6", []string{"  address: 10.0.0.2\n", "  address: fd00::1\n"}, []string{`error: server.address: IPv6 is not supported yet`}},
		{"the server outside", []string{"  address: 10.0.0.2\n", "  address: 10.1.0.2\n"}, []string{`error: server.address: the server's address 10.1.0.2 is in none of boot.subnets, so no machine reaches it without a relay`}},
		{"the server in the range", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.210\n"}, []string{`error: server.address: the server's address 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250`}},
		{"a range backwards", []string{"first: 10.0.0.200, last: 10.0.0.250", "first: 10.0.0.250, last: 10.0.0.200"}, []string{`error: boot.subnets[0].range.last: the range ends at 10.0.0.200, before it begins at 10.0.0.250`}},
		{"a range that leaves the subnet", []string{"last: 10.0.0.250", "last: 10.0.1.5"}, []string{`error: boot.subnets[0].range.last: 10.0.1.5 is not inside 10.0.0.0/24`}},
		{"a range with the broadcast address", []string{"last: 10.0.0.250", "last: 10.0.0.255"}, []string{`error: boot.subnets[0].range.last: 10.0.0.255 is the broadcast address of 10.0.0.0/24`}},
		{"a range over a machine", []string{"first: 10.0.0.200", "first: 10.0.0.20"}, []string{`error: machines[1].address: 10.0.0.21 is inside the dynamic range 10.0.0.20 to 10.0.0.250, where another machine may get it`}},
		{"the network address", []string{"address: 10.0.0.11", "address: 10.0.0.0"}, []string{`error: machines[0].address: 10.0.0.0 is the network address of 10.0.0.0/24`}},
		{"the server's address", []string{"address: 10.0.0.11", "address: 10.0.0.2"}, []string{`error: machines[0].address: 10.0.0.2 is the server's own address`}},
		{"the router's address", []string{"address: 10.0.0.11", "address: 10.0.0.1"}, []string{`error: machines[0].address: 10.0.0.1 is the router's address`}},
		{"one address twice", []string{"address: 10.0.0.21", "address: 10.0.0.11"}, []string{`error: machines[1].address: address 10.0.0.11 is used twice: first at cluster.yaml:56:14 (machines[0].address)`}},
		{"no address", []string{"    address: 10.0.0.21\n", ""}, []string{`error: machines[1]: required key "address" is missing: under dhcp: authoritative every machine has a reserved address`}},
		{"DHCP of somebody else's needs neither addresses nor subnets", []string{"dhcp: authoritative", "dhcp: off", "    address: 10.0.0.21\n", "", "  interface: eth1\n", ""}, nil},
		{"a proxy needs neither addresses nor subnets", []string{"dhcp: authoritative", "dhcp: proxy", "    address: 10.0.0.21\n", ""}, nil},
		{"a proxy on port 4011 needs no interface", []string{"dhcp: authoritative", "dhcp: proxy-4011", "  interface: eth1\n", ""}, nil},
		{"a proxy without an interface", []string{"dhcp: authoritative", "dhcp: proxy", "  interface: eth1\n", ""}, []string{`error: boot: required key "interface" is missing: dhcp: proxy answers on one interface`}},
		{"the server behind relays", []string{"  address: 10.0.0.2\n", "  address: 10.1.0.2\n", "  interface: eth1\n", "  interface: eth1\n  relays: [10.0.0.3, 10.0.0.4]\n"}, nil},
		{"two servers", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  peers: [10.0.0.3]\n"}, nil},
		{"servers at other people's addresses", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  peers: [10.0.0.2, 10.0.0.11, 10.0.0.210, 127.0.0.1, fd00::1]\n"}, []string{
			`error: server.peers[0]: server 10.0.0.2 is used twice: first at cluster.yaml:30:12 (server.address)`,
			`error: server.peers[1]: the server 10.0.0.11 has the address of cp1`,
			`error: server.peers[2]: the server's address 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250`,
			`error: server.peers[3]: machines cannot reach 127.0.0.1`,
			`error: server.peers[4]: IPv6 is not supported yet`,
		}},
		{"the server of another cluster", []string{"  interface: eth1\n", "  interface: eth1\n  neighbours: [{address: 10.0.0.3, machines: [\"52:54:00:00:00:aa\"]}]\n"}, nil},
		{"servers of other clusters that are ours", []string{"  interface: eth1\n", "  interface: eth1\n  neighbours: [{address: 10.0.0.2}, {address: 10.0.0.11, machines: [\"53:54:00:00:00:11\", \"52:54:00:12:34:01\"]}, {address: 10.0.0.210}, {address: 'fd00::1'}, {machines: []}]\n"}, []string{
			`error: boot.neighbours[0].address: server 10.0.0.2 is used twice: first at cluster.yaml:30:12 (server.address)`,
			`error: boot.neighbours[1].address: the server 10.0.0.11 has the address of cp1`,
			`error: boot.neighbours[1].machines[0]: 53:54:00:00:00:11 is a group address, no network card has it`,
			`error: boot.neighbours[2].address: the server 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250`,
			`error: boot.neighbours[3].address: fd00::1 is not an IPv4 address`,
			`error: boot.neighbours[4]: required key "address" is missing`,
		}},
		{"two servers for IPv6", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  peers: [10.0.0.3]\n", "  interface: eth1\n", "  interface: eth1\n  dhcp6: {address: 'fd00:10::1', subnets: [{cidr: 'fd00:10::/64', range: {first: 'fd00:10::100', last: 'fd00:10::1ff'}}]}\n"}, []string{
			`error: boot.dhcp6: peers has 0 addresses, and server.peers 1: each server boots machines from its own`,
		}},
		{"two servers with addresses for IPv6", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  peers: [10.0.0.3]\n", "  interface: eth1\n", "  interface: eth1\n  dhcp6: {address: 'fd00:10::1', peers: ['fd00:10::2'], subnets: [{cidr: 'fd00:10::/64', range: {first: 'fd00:10::100', last: 'fd00:10::1ff'}}]}\n"}, nil},
		{"servers for IPv6 that are not", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  peers: [10.0.0.3, 10.0.0.4]\n", "  interface: eth1\n", "  interface: eth1\n  dhcp6: {address: 'fd00:10::1', peers: ['fd00:10::101', 'fe80::1'], subnets: [{cidr: 'fd00:10::/64', range: {first: 'fd00:10::100', last: 'fd00:10::1ff'}}]}\n"}, []string{
			`error: boot.dhcp6.peers[0]: the server's address fd00:10::101 is inside the range fd00:10::100 to fd00:10::1ff`,
			`error: boot.dhcp6.peers[1]: fe80::1 is not an IPv6 address that machines can use in a URL`,
		}},
		{"relays at other people's addresses", []string{"  interface: eth1\n", "  interface: eth1\n  relays: [10.0.0.11, 10.0.0.210, 10.0.0.3, 10.0.0.3, fd00::1]\n"}, []string{
			`error: boot.relays[0]: the relay 10.0.0.11 has the address of cp1`,
			`error: boot.relays[1]: the relay 10.0.0.210 is inside the dynamic range 10.0.0.200 to 10.0.0.250`,
			`error: boot.relays[3]: relay 10.0.0.3 is used twice: first at cluster.yaml:34:35 (boot.relays[2])`,
			`error: boot.relays[4]: IPv6 is not supported yet`,
		}},
		{"two subnets with the same addresses", []string{"  subnets:\n", "  subnets:\n    - {cidr: 10.0.0.128/25, interface: eth2, router: 10.0.0.129, range: {first: 10.0.0.190, last: 10.0.0.220}}\n"},
			[]string{`error: boot.subnets[1].cidr: boot.subnets[1] 10.0.0.0/24 overlaps boot.subnets[0] 10.0.0.128/25`}},
		{"what clients of a subnet are told", []string{"    - cidr: 10.0.0.0/24\n", "    - cidr: 10.0.0.0/24\n      mtu: 9000\n      routes: [{to: 10.64.0.0/10, via: 10.0.0.253}]\n"}, nil},
		{"what no client can use", []string{"    - cidr: 10.0.0.0/24\n", "    - cidr: 10.0.0.0/24\n      mtu: 500\n      routes: [{to: 10.64.0.0/8, via: 10.0.0.253}, {via: 10.0.0.253}, {to: 0.0.0.0/0, via: 10.0.0.253}, {to: 'fd00::/8', via: 10.0.0.253}, {to: 10.64.0.0/10, via: 10.1.0.1}, {to: 10.64.0.0/10, via: 10.0.0.255}]\n"}, []string{
			`error: boot.subnets[0].mtu: an MTU of 500 is out of range: want 1280 to 65535`,
			`error: boot.subnets[0].routes[0].to: "10.64.0.0/8" is not a network: bits are set behind the prefix length`,
			`error: boot.subnets[0].routes[1]: required key "to" is missing`,
			`error: boot.subnets[0].routes[2].to: the default route is the subnet's router`,
			`error: boot.subnets[0].routes[3].to: fd00::/8 is not an IPv4 network`,
			`error: boot.subnets[0].routes[4].via: 10.1.0.1 is not inside 10.0.0.0/24`,
			`error: boot.subnets[0].routes[5].via: 10.0.0.255 is the broadcast address of 10.0.0.0/24`,
		}},
		{"more routes than an answer has room for", []string{"    - cidr: 10.0.0.0/24\n", "    - cidr: 10.0.0.0/24\n      routes: [" + strings.Repeat("{to: 10.64.0.0/10, via: 10.0.0.253}, ", maxSubnetRoutes+1) + "]\n"}, []string{
			`error: boot.subnets[0].routes[16]: a subnet can have 16 routes`,
		}},
		{"a second interface", []string{"  subnets:\n", "  subnets:\n    - {cidr: 10.9.0.0/24, interface: eth1.9, router: 10.9.0.1}\n"}, nil},
		{"a second subnet that cannot work", []string{"  subnets:\n", "  subnets:\n    - {cidr: 10.9.0.0/24, interface: eth1}\n    - {cidr: 10.8.0.0/24, interface: eth 2, router: 10.8.0.1}\n", "    - cidr: 10.0.0.0/24\n", "    - cidr: 10.0.0.0/24\n      interface: eth7\n"}, []string{
			`error: boot.subnets[0]: the machines of 10.9.0.0/24 cannot reach the server 10.0.0.2 without a router`,
			`error: boot.subnets[0].interface: boot.interface eth1 is for the subnet of server.address; another subnet needs another interface, or a relay`,
			`error: boot.subnets[1].interface: "eth 2" is not the name of a network interface`,
			`error: boot.subnets[2].interface: 10.0.0.0/24 is the subnet of server.address, which is on boot.interface eth1`,
		}},
		{"authoritative DHCP without a network", []string{"  interface: eth1\n", "", "  subnets:\n    - cidr: 10.0.0.0/24\n", "  # \n", "      range: {first: 10.0.0.200, last: 10.0.0.250}\n      router: 10.0.0.1\n      dns: [10.0.0.1]\n", ""}, []string{
			`error: boot: required key "interface" is missing: dhcp: authoritative answers on one interface`,
			`error: boot: required key "subnets" is missing: dhcp: authoritative gives out addresses`,
		}},
		{"mirrors", []string{"  # mirror: https://mirror.example.org/flatcar", "  mirrors: [\"https://a.example.org/{channel}\", mirror, \"../{arch}\"]\n  signature: sig"}, nil},
		{"mirrors that are the same", []string{"  # mirror: https://mirror.example.org/flatcar", "  mirrors: [a, ./a, \"https://{channel}.release.flatcar-linux.net\"]"}, []string{
			`error: flatcar.mirrors[1]: mirror a is used twice: first at cluster.yaml:12:13 (flatcar.mirrors[0])`,
			`error: flatcar.mirrors[2]: mirror https://stable.release.flatcar-linux.net is used twice: first at cluster.yaml:7:3 (flatcar.mirror)`,
		}},
		{"mirrors that are none", []string{"  # mirror: https://mirror.example.org/flatcar", "  mirrors: [\"ftp://a.example.org\", \"\", \"https://{version}{board}\"]"}, []string{
			`error: flatcar.mirrors[0]: a source is an http or https URL or a path, not ftp://`,
			`error: flatcar.mirrors[1]: is empty, want a URL or a path`,
			`error: flatcar.mirrors[2]: unknown placeholder {board}`,
		}},
		{"one mirror where a list is wanted", []string{"  # mirror: https://mirror.example.org/flatcar", "  mirrors: a"}, []string{`error: flatcar.mirrors: is a value, want a list`}},
		{"a signature of another kind", []string{"  # mirror: https://mirror.example.org/flatcar", "  signature: minisign"}, []string{`error: flatcar.signature: "minisign" is not one of auto, sig, digests`}},
		{"an ISO image for UEFI", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: boot/linuxx64.efi.stub}\n"}, nil},
		{"an ISO image without its stub", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {}\n"}, []string{`error: boot.iso: required key "stub" is missing`}},
		{"half of what BIOS needs", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a, isolinux: b, mbr: c}\n"}, []string{`error: boot.iso: isolinux, ldlinux and mbr belong together: BIOS needs all three, UEFI none`}},
		{"Secure Boot", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: keys/db.key}}\n"}, nil},
		{"Secure Boot without what is signed", []string{"  interface: eth1\n", "  interface: eth1\n  secureBoot: {certificate: db.crt, key: {env: DB_KEY}}\n"}, []string{`error: boot.secureBoot: there is nothing to sign: boot.iso names what UEFI starts`}},
		{"Secure Boot by nobody", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {}\n"}, []string{`error: boot.secureBoot: required key "certificate" is missing`, `error: boot.secureBoot: required key "key" is missing`}},
		{"a certificate that is not there", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: no.crt, key: {file: db.key}}\n"}, []string{`error: boot.secureBoot.certificate: the certificate cannot be read: no such file`}},
		{"a key for a certificate", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: ec.crt, key: {file: db.key}}\n"}, []string{`error: boot.secureBoot.certificate: ec.crt cannot be used: it is a PEM block "EC PARAMETERS", want CERTIFICATE`}},
		{"a key in a token", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: \"pkcs11:token=prod;id=%01\"}, pin: {env: PIN}}\n"}, nil},
		{"a key in a token, without an id", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: \"pkcs11:object=db\"}, pin: {file: secrets/pin}}\n"}, []string{`error: boot.secureBoot.key.file: the URI of the key in a token cannot be used: it has no id, by which the key is found: pkcs11-tool --login --list-objects shows ids, and id=%0A%0B is that of the ID 0a0b`}},
		{"a key in a token, without its PIN", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: \"pkcs11:id=%01\"}}\n"}, []string{`error: boot.secureBoot: a key in a token needs pin: where the PIN is`}},
		{"a PIN that is written out", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: \"pkcs11:id=%01\"}, pin: \"1234\"}\n"}, []string{`error: boot.secureBoot.pin: a secret is never written here, only where it is: one of file, env, age`}},
		{"a PIN of a file", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {file: db.key}, pin: {env: PIN}}\n"}, []string{`error: boot.secureBoot.pin: only a key in a token (pkcs11:…) has a PIN`}},
		{"a key that is encrypted", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: {age: db.age}}\n"}, []string{`error: boot.secureBoot.key.age: age is not supported yet here`}},
		{"a key that is written out", []string{"  interface: eth1\n", "  interface: eth1\n  iso: {stub: a}\n  secureBoot: {certificate: db.crt, key: \"-----BEGIN\"}\n"}, []string{`error: boot.secureBoot.key: a secret is never written here, only where it is: one of file, env, age`}},
		{"ports that are the same", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  httpPort: 8443\n"}, []string{`error: server.httpPort: httpPort and httpsPort are both 8443`}},
		{"a port out of range", []string{"  address: 10.0.0.2\n", "  address: 10.0.0.2\n  httpPort: 70000\n"}, []string{`error: server.httpPort: 70000 is not a port: want 1 to 65535`}},

		// Machines.
		{"a group MAC", []string{"52:54:00:00:00:11", "01:00:5e:00:00:11"}, []string{`error: machines[0].match.mac[0]: 01:00:5e:00:00:11 is a group address, no network card has it`}},
		{"one MAC twice, in another spelling", []string{"52:54:00:00:00:21", "52-54-00-00-00-11"}, []string{`error: machines[1].match.mac[0]: MAC 52:54:00:00:00:11 is used twice: first at cluster.yaml:55:19 (machines[0].match.mac[0])`}},
		{"an empty match", []string{`{mac: ["52:54:00:00:00:11"]}`, "{}"}, []string{`error: machines[0].match: says nothing: want mac, uuid, serial or selector`}},
		{"a UUID that every such board has", []string{`{mac: ["52:54:00:00:00:11"]}`, "{uuid: 00000000-0000-0000-0000-000000000000}"}, []string{`error: machines[0].match.uuid: 00000000-0000-0000-0000-000000000000 is what firmware without a UUID says`}},
		{"a serial that YAML takes for a number", []string{`{mac: ["52:54:00:00:00:11"]}`, "{serial: 0123}"}, []string{`error: machines[0].match.serial: 0123 is a number for YAML, want text`}},
		{"a role that is misspelt", []string{"    role: worker\n", "    role: wroker\n"}, []string{`error: machines[1].role: there is no role "wroker"`}},
		{"a disk without a rule", []string{"disk: {path: /dev/vda}\n\n# addons", "disk: {}\n\n# addons"}, []string{`error: machines[1].disk: selects nothing: a disk is only written when a rule names it`}},
		{"a disk that is a path elsewhere", []string{"/dev/vda}" + comment, "/dev/../etc/passwd}"}, []string{`error: machines[0].disk.path: "/dev/../etc/passwd" is not the path of a device`}},
		{"no disk", []string{"    disk: {path: /dev/vda}\n\n# addons", "\n# addons"}, []string{`error: machines[1]: required key "disk" is missing; only a machine with diskless: true needs none`}},
		{"a disk of the wrong shape", []string{"disk: {path: /dev/vda}\n\n# addons", "disk: sda\n\n# addons"}, []string{`error: machines[1].disk: is a value, want a mapping`}},
		{"a diskless worker", []string{"disk: {path: /dev/vda}\n\n# addons", "diskless: true\n\nidentity: {policy: tpm}\n# addons"}, nil},
		{"a diskless worker that a person approves each time", []string{"disk: {path: /dev/vda}\n\n# addons", "diskless: true\n\n# addons"}, []string{`warning: machines[1].diskless: worker1 makes a new key at every start, and a person has to approve each: identity.policy is approve`}},
		{"a diskless worker with a disk", []string{"disk: {path: /dev/vda}\n\n# addons", "disk: {path: /dev/vda}\n    diskless: true\n\nidentity: {policy: tpm}\n# addons"}, []string{`error: machines[1].disk: worker1 is diskless: nothing is ever installed on it`}},
		{"a worker that is said to have a disk", []string{"disk: {path: /dev/vda}\n\n# addons", "disk: {path: /dev/vda}\n    diskless: false\n\n# addons"}, nil},
		{"a diskless control plane", []string{cp1 + comment, strings.Replace(cp1, "disk: {path: /dev/vda}", "diskless: true", 1), "# addons", "identity: {policy: tpm}\n# addons"}, []string{`error: machines[0].diskless: cp1 is a control plane, and etcd's data has to outlive a start`}},
		{"disk sizes that exclude each other", []string{"path: /dev/vda}" + comment, "minSize: 2TB, maxSize: 1TiB}"}, []string{`error: machines[0].disk.maxSize: maxSize is below minSize: no disk matches`}},
		{"a BMC with a pin", bmc(`{kind: redfish, address: "10.9.0.1:8443", username: u, password: {file: a}, tls: {pin: "sha256:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB:AB"}}`), nil},
		{"a BMC by IPMI", bmc(`{kind: ipmi, address: bmc1.example.org, username: u, password: {age: a.age}, firmware: bios}`), nil},
		{"a BMC whose certificate nobody checks", bmc(`{kind: redfish, address: 10.9.0.1, username: u, password: {env: BMC}, tls: {insecure: lab without a network behind it}}`), []string{
			`warning: machines[1].bmc.tls.insecure: any certificate is accepted: whoever is on the way to this BMC gets its password (lab without a network behind it)`,
		}},
		{"a BMC that nothing says whom to trust of", bmc(`{kind: redfish, address: 10.9.0.1, username: u, password: {env: BMC}}`), []string{
			`error: machines[1].bmc: required key "tls" is missing: say whose certificate is trusted`,
		}},
		{"a BMC with two kinds of trust", bmc(`{kind: redfish, address: 10.9.0.1, username: u, password: {env: BMC}, tls: {ca: ca.pem, insecure: "because I say so"}}`), []string{
			`error: machines[1].bmc.tls: want exactly one of pin, ca, insecure`,
			`warning: machines[1].bmc.tls.insecure: any certificate is accepted: whoever is on the way to this BMC gets its password (because I say so)`,
		}},
		{"a BMC whose values are wrong", bmc(`{kind: redfsh, address: "https://10.9.0.1", username: "", password: {env: "A=b"}, tls: {pin: abc}, boot: hdd, firmware: efi}`), []string{
			`error: machines[1].bmc.kind: "redfsh" is not one of redfish, ipmi`,
			`error: machines[1].bmc.address: "https://10.9.0.1" is not a host or host:port, without https://`,
			`error: machines[1].bmc.username: "" is no user name that a BMC has: want 1 to 16 characters`,
			`error: machines[1].bmc.password.env: "A=b" is not the name of an environment variable`,
			`error: machines[1].bmc.tls.pin: "abc" is not the SHA-256 digest of a certificate: want 64 hexadecimal digits`,
			`error: machines[1].bmc.boot: "hdd" is not one of pxe, http, iso`,
			`error: machines[1].bmc.firmware: "efi" is not one of uefi, bios`,
		}},
		{"a BMC with a password in it", bmc(`{kind: ipmi, address: 10.9.0.1, username: u, password: calvin}`), []string{
			`error: machines[1].bmc.password: a secret is never written here, only where it is: one of file, env, age`,
		}},
		{"IPMI with what only Redfish has", bmc(`{kind: ipmi, address: 10.9.0.1, username: u, password: {env: BMC}, tls: {ca: a}, system: "1", boot: http}`), []string{
			`error: machines[1].bmc.tls: is for redfish, and this BMC is spoken to by ipmi`,
			`error: machines[1].bmc.system: is for redfish, and this BMC is spoken to by ipmi`,
			`error: machines[1].bmc.boot: http is for redfish with UEFI firmware`,
		}},
		{"selectors", []string{
			cp1 + comment, cp1 + "\n" + `  - {name: s1, role: worker, match: {selector: {}}, address: 10.0.0.31, disk: {path: /dev/vda}}
  - {name: s2, role: worker, match: {mac: ["52:54:00:aa:00:01"], selector: {mac: ["52:54:00:00:00:02"]}}, address: 10.0.0.32, disk: {path: /dev/vda}}
  - {name: s3, role: worker, match: {selector: {circuitID: ["a", "b"]}}, address: 10.0.0.33, disk: {path: /dev/vda}}
  - {name: s4, role: worker, match: {selector: {circuitID: ["b"], network: ["10.0.0.1/24"]}}, address: 10.0.0.34, disk: {path: /dev/vda}}
  - {name: s5, role: worker, match: {selector: {circuitID: ["b"], mac: ["52:54:00:00:01:00-52:54:00:00:01:ff"]}}, address: 10.0.0.35, disk: {path: /dev/vda}}
  - {name: s6, role: worker, match: {selector: {circuitID: ["c"], serial: ["/x/"]}}, address: 10.0.0.36, disk: {path: /dev/vda}}
  - {name: s7, role: worker, match: {selector: {circuitID: ["/[/"], port: ["x"]}}, address: 10.0.0.37, disk: {path: /dev/vda}}
`,
		}, []string{
			`error: machines[1].match.selector: selects nothing: want mac, uuid, serial, network, circuitID or remoteID`,
			"error: machines[2].match.selector: a machine that is named by mac, uuid or serial needs no selector",
			`error: machines[4].match.selector.network[0]: "10.0.0.1/24" is not an IPv4 network, such as 10.1.2.0/24`,
			"error: machines[5].match.selector: one machine can match this and the selector of s3 (machines[3].match.selector)",
			"error: machines[6].match.selector: a machine shows its serial number by HTTP, and network, circuitID and remoteID in DHCP, never together",
			"error: machines[7].match.selector.circuitID[0]: \"/[/\" is not a regular expression: error parsing regexp: missing closing ]: `[`",
			`error: machines[7].match.selector.port: unknown key "port"`,
		}},
		{"GRUB that is not there", []string{
			"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    firmware: {nbp: grub}\n",
		}, []string{`error: machines[1].firmware.nbp: there is no GRUB: boot.grub names where it and its shim come from`}},
		{"GRUB beside another DHCP server", []string{
			"dhcp: authoritative", "dhcp: proxy\n  nbp: grub\n  grub: {shim: a, grub: b}", "    address: 10.0.0.21\n", "    address: 10.0.0.21\n    firmware: {nbp: lilo}\n",
		}, []string{
			`error: boot.nbp: GRUB loads from the server that gave the address, which is another one under boot.dhcp: proxy`,
			`error: machines[1].firmware.nbp: "lilo" is not one of ipxe, grub`,
		}},
		{"what comes later", []string{"roles:", "operators: [{name: alice}]\nroles:"}, []string{`error: operators: is not supported yet`}},
		{"backups that nobody could open", []string{"roles:", "backup: {recipients: []}\nroles:"}, []string{`error: backup: names no recipient, so nobody could open a backup`}},
		{"a backup with everything wrong", []string{"roles:", "backup: {recipients: [age1zz, AGE-SECRET-KEY-1QQQ], target: backups, every: 5s, keep: 1, nodes: 9, etcd: {every: 1s, keep: 1, keepFor: 1s}}\nroles:"}, []string{
			`error: backup.recipients[0]: "age1zz" is no public key of age: want age1…`,
			`error: backup.recipients[1]: this is a secret key, which never belongs here`,
			`error: backup.target: "backups" is not an absolute path of a directory on the server's machine`,
			`error: backup.every: 5s is not between one minute and a week`,
			`error: backup.keep: 1 backups are not between 2 and 10000`,
			`error: backup.nodes: 9 copies on each control plane are not between 1 and 8`,
			`error: backup.etcd.every: 1s is not between one minute and a week`,
			`error: backup.etcd.keep: 1 snapshots are not between 2 and 10000`,
			`error: backup.etcd.keepFor: 1s is shorter than twice the 1s from one snapshot to the next`,
		}},
		{"copies of no backups, in no bucket", []string{"roles:", "backup: {recipients: [age1zz], bucket: store, nodes: 2, etcd: {every: 1h}}\nroles:"}, []string{
			`error: backup.recipients[0]: "age1zz" is no public key of age: want age1…`,
			`error: backup.bucket: copies what is in backup.target, which names no directory`,
			`error: backup.bucket: upload has no entry "store" of type s3`,
			`error: backup.nodes: gives control planes what is in backup.target, which names no directory`,
			`error: backup.etcd: saves etcd's snapshots in backup.target, which names no directory`,
		}},
		{"artefacts in a place that keeps none", []string{"roles:", `upload: [{name: c, type: libvirt, endpoint: "qemu+ssh://root@kvm1/system", datastore: default}]
roles:`, "  address: 10.0.0.2", "  address: 10.0.0.2\n  artefacts: c"}, []string{
			`error: server.artefacts: upload has no entry "c" of type s3 or oci`,
		}},
		{"other policies", []string{"roles:", "identity: {policy: ekg}\nroles:"}, []string{`error: identity.policy: "ekg" is not one of approve, token, tpm`}},
		{"what takes two persons", []string{"roles:", "policy: {secondPerson: [wipe, destory, restore]}\nroles:"}, []string{
			`error: policy.secondPerson[1]: "destory" is not one of wipe, destroy`,
			`error: policy.secondPerson[2]: "restore" is not one of wipe, destroy`,
		}},
		{"registers of TPMs that are none", []string{
			"roles:", "identity: {policy: tpm, tpm: {pcrs: [{index: 7, sha256: [abc]}, {index: 10, sha256: []}, {index: 4, sha256: []}]}}\nroles:",
		}, []string{
			`error: identity.tpm.pcrs[0].sha256[0]: "abc" is no value of a register: want 64 hexadecimal digits`,
			`error: identity.tpm.pcrs[1].index: register 10 is not asked for`,
			`error: identity.tpm.pcrs[2]: allows no value for register 4, so no machine would come in`,
		}},
		{"registers that nobody asks for", []string{
			"roles:", "identity: {tpm: {pcrs: [{index: 7, sha256: [" + strings.Repeat("ab", 32) + "]}]}}\nroles:",
		}, []string{`error: identity.tpm: nobody asks for TPMs: identity.policy is approve`}},
		{"a TPM that is none", []string{
			"roles:", "identity: {policy: tpm}\nroles:", "    address: 10.0.0.21\n", "    address: 10.0.0.21\n    tpm: {ek: abc}\n",
		}, []string{`error: machines[1].tpm.ek: "abc" is not the SHA-256 of an endorsement key: want 64 hexadecimal digits`}},
		{"a TPM that nobody asks for", []string{
			"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    tpm: {ek: " + strings.Repeat("ab", 32) + "}\n",
		}, []string{`error: machines[1].tpm.ek: nobody asks for this TPM: identity.policy is approve`}},
		{"a firewall that opens nothing, or what is no port", []string{
			"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    network: {firewall: {allow: [{from: [], ports: [1]}, {from: [10.0.0.1/24], ports: [70000]}, {ports: [9100]}, {from: [10.9.0.0/24], ports: [53], protocol: upd}]}}\n",
		}, []string{
			`error: machines[1].network.firewall.allow[0]: opens nothing: want from and ports, neither empty`,
			`error: machines[1].network.firewall.allow[1].from[0]: "10.0.0.1/24" is not a network: bits are set behind the prefix length`,
			`error: machines[1].network.firewall.allow[1].ports[0]: 70000 is not a port: want 1 to 65535`,
			`error: machines[1].network.firewall.allow[2]: required key "from" is missing`,
			`error: machines[1].network.firewall.allow[3].protocol: "upd" is not one of tcp, udp`,
		}},
		{"a firewall switched off without a reason", []string{"roles:", "network: {firewall: {off: \" \"}}\nroles:"}, []string{
			`error: network.firewall.off: want the reason why nodes need no firewall`,
		}},
		{"a firewall switched off", []string{"roles:", "network: {firewall: {off: the switch filters}}\nroles:"}, []string{
			`warning: network.firewall.off: anyone who reaches these nodes reaches kubelet, etcd and whatever pods open on the host (the switch filters)`,
		}},

		// Uploads.
		{"an upload", upload(`name: one, endpoint: "https://one.example.org/RPC2", options: {memoryMB: "4096", node: node.json}`), nil},
		{"an upload whose password anybody can read", upload(`name: one, endpoint: "http://10.0.0.9:2633/RPC2"`), []string{
			`error: upload[0].endpoint: the password would go to 10.0.0.9:2633 readable by anybody on the way`,
		}},
		{"and one where that is accepted", upload(`name: one, endpoint: "http://10.0.0.9:2633/RPC2", insecure: true`), []string{
			`warning: upload[0].endpoint: the password goes to 10.0.0.9:2633 readable by anybody on the way`,
		}},
		{"an upload with what its type has not got", upload(`name: prune, endpoint: "one:2633", bucket: b, options: {memory: "1", cpu: ""}`), []string{
			`error: upload[0].name: "prune" is a verb of imagectl upload; choose another name`,
			`error: upload[0].endpoint: "one:2633" is not an http or https URL`,
			`error: upload[0].bucket: type opennebula has no such key`,
			`error: upload[0].options.memory: type opennebula has no option "memory"; it has bus, ca, cpu, diskMB, fingerprint, firmware, frontendDirectory, group, memoryMB, network, node, stage, vcpu`,
			`error: upload[0].options.cpu: is empty`,
		}},
		{"uploads to a store, a registry and libvirt", []string{"roles:", `upload:
  - {name: a, type: s3, endpoint: "https://s3.example.org", bucket: vm, region: eu, username: k, password: {env: S}, options: {prefix: images, ca: ca.pem}}
  - {name: b, type: oci, endpoint: "https://registry.example.org/team/vm", options: {form: containerdisk}}
  - {name: c, type: libvirt, endpoint: "qemu+ssh://root@kvm1/system", datastore: default, options: {firmware: uefi, node: node.json}}
roles:`}, nil},
		{"uploads to vSphere and Proxmox VE", []string{"roles:", `upload:
  - {name: a, type: vsphere, endpoint: "https://vc.example.org/sdk", datastore: ds1, username: u, password: {env: S}, options: {datacenter: dc1, pool: c1, network: lan, node: node.json, fingerprint: "00"}}
  - {name: b, type: proxmox, endpoint: "https://pve1.example.org:8006", datastore: vms, username: "u@pve!t", password: {file: token}, options: {host: pve1, bridge: vmbr0, vmid: "9000"}}
roles:`}, nil},
		{"uploads to servers with certificates of their own", []string{"roles:", `upload:
  - {name: a, type: s3, endpoint: "https://s3.lab", bucket: vm, username: k, password: {env: S}, options: {fingerprint: "00"}}
  - {name: b, type: oci, endpoint: "https://registry.lab/vm", options: {fingerprint: "00"}}
  - {name: c, type: opennebula, endpoint: "https://one.lab/RPC2", datastore: d, username: u, password: {env: S}, options: {fingerprint: "00"}}
  - {name: d, type: openstack, options: {cloud: lab, fingerprint: "00"}}
  - {name: e, type: s3, endpoint: "http://127.0.0.1:9000", bucket: vm, username: k, password: {env: S}, options: {fingerprint: "00"}}
  - {name: f, type: hetzner, password: {env: S}, options: {fingerprint: "00"}}
roles:`}, []string{
			`error: upload[4].options.fingerprint: there is no certificate to compare: the endpoint is without TLS`,
			`error: upload[5].options.fingerprint: type hetzner has no option "fingerprint"; it has serverType`,
		}},
		{"uploads to the large clouds", []string{"roles:", `upload:
  - {name: a, type: aws, region: eu-central-1, options: {parameter: /vm}}
  - {name: b, type: azure, datastore: vms, region: westeurope, username: app, password: {env: S}, options: {subscription: s, resourceGroup: g, tenant: t}}
  - {name: c, type: gcp, bucket: staging, password: {file: key.json}, options: {project: p}}
roles:`}, nil},
		{"uploads to the large clouds without what they need", []string{"roles:", `upload:
  - {name: a, type: aws, bucket: b}
  - {name: b, type: azure, password: {env: S}, options: {gallery: vms}}
  - {name: c, type: gcp, bucket: staging, username: me}
roles:`}, []string{
			`error: upload[0]: required key "region" is missing, type aws needs it`,
			`error: upload[0].bucket: type aws has no such key`,
			`error: upload[1]: required key "datastore" is missing, type azure needs it`,
			`error: upload[1]: required key "region" is missing, type azure needs it`,
			`error: upload[1].options.gallery: type azure has no option "gallery"; it has ca, login, resourceGroup, subscription, tenant`,
			`error: upload[2]: required key "password" is missing, type gcp needs it`,
			`error: upload[2].username: type gcp has no such key`,
		}},
		{"uploads with keys of another type", []string{"roles:", `upload:
  - {name: a, type: s3, endpoint: "https://s3.example.org", datastore: d}
  - {name: b, type: oci, endpoint: "http://registry.example.org/team/vm", bucket: x}
  - {name: c, type: libvirt, endpoint: "qemu:///system", password: {env: S}}
roles:`}, []string{
			`error: upload[0]: required key "bucket" is missing, type s3 needs it`,
			`error: upload[0]: required key "username" is missing, type s3 needs it`,
			`error: upload[0]: required key "password" is missing, type s3 needs it`,
			`error: upload[0].datastore: type s3 has no such key`,
			`error: upload[1].endpoint: the password would go to registry.example.org readable by anybody on the way`,
			`error: upload[1].bucket: type oci has no such key`,
			`error: upload[2]: required key "datastore" is missing, type libvirt needs it`,
			`error: upload[2].password: type libvirt has no such key`,
		}},
		{"uploads to clouds", []string{"roles:", `upload:
  - {name: a, type: openstack, options: {cloud: prod, firmware: uefi, ca: ca.pem}}
  - {name: b, type: openstack, endpoint: "https://keystone.example.org/v3", region: eu, username: id, password: {env: S}}
  - {name: c, type: digitalocean, region: fra1, password: {env: S}, options: {directory: "https://b.example.org/images"}}
  - {name: d, type: hetzner, password: {env: S}, options: {serverType: cx33}}
roles:`}, nil},
		{"uploads to clouds that lack something", []string{"roles:", `upload:
  - {name: a, type: openstack, endpoint: "http://keystone.example.org/v3", datastore: d}
  - {name: b, type: digitalocean, username: u}
  - {name: c, type: hetzner, options: {type: cx33}}
roles:`}, []string{
			`error: upload[0].endpoint: the password would go to keystone.example.org readable by anybody on the way`,
			`error: upload[0].datastore: type openstack has no such key`,
			`error: upload[1]: required key "region" is missing, type digitalocean needs it`,
			`error: upload[1]: required key "password" is missing, type digitalocean needs it`,
			`error: upload[1].username: type digitalocean has no such key`,
			`error: upload[2]: required key "password" is missing, type hetzner needs it`,
			`error: upload[2].options.type: type hetzner has no option "type"; it has serverType`,
		}},
		{"an upload that is staged in a bucket and one that is staged on a host", []string{"roles:", `upload:
  - {name: a, type: opennebula, endpoint: "https://one.example.org/RPC2", datastore: d, username: u, password: {env: S}, options: {stage: c}}
  - {name: b, type: digitalocean, region: fra1, password: {env: S}, options: {stage: d}}
  - {name: c, type: ssh, endpoint: "ssh://oneadmin@one.example.org/var/tmp", password: {file: id_ed25519}, options: {hostKey: "ssh-ed25519 AAAA", url: "https://one.example.org/images"}}
  - {name: d, type: s3, endpoint: "https://fra1.digitaloceanspaces.com", bucket: vm, username: k, password: {env: S}, options: {acl: public-read}}
roles:`}, nil},
		{"an upload that is staged nowhere", []string{"roles:", `upload:
  - {name: a, type: proxmox, endpoint: "https://pve1.example.org:8006", datastore: vms, username: "u@pve!t", password: {env: S}, options: {host: pve1, stage: b}}
  - {name: b, type: hetzner, password: {env: S}}
  - {name: c, type: openstack, options: {stage: d, import: web-download}}
  - {name: d, type: ssh}
  - {name: e, type: openstack, options: {stage: f}}
roles:`}, []string{
			`error: upload[0].options.stage: upload has no entry "b" of type s3 or ssh`,
			`error: upload[3]: required key "endpoint" is missing, type ssh needs it`,
			`error: upload[3]: required option "hostKey" is missing: type ssh knows the host by it`,
			`error: upload[4].options.stage: upload has no entry "f" of type s3 or ssh`,
		}},
		{"a host whose URL is none, or has a password", []string{"roles:", `upload:
  - {name: a, type: ssh, endpoint: "ssh://ops:secret@h.example.org/srv", options: {hostKey: k}}
  - {name: b, type: ssh, endpoint: "h.example.org:/srv", options: {hostKey: k}}
  - {name: c, type: ssh, endpoint: "ssh://ops@h.example.org/", options: {hostKey: k}}
roles:`}, []string{
			`error: upload[0].endpoint: a URL here must not carry a password: cluster.yaml is in git`,
			`error: upload[1].endpoint: names no directory of a host`,
			`error: upload[2].endpoint: names no directory of a host`,
		}},
		{"an upload to what nobody knows", []string{"roles:", "upload: [{name: a, type: floppy}]\nroles:"}, []string{`error: upload[0].type: "floppy" is not one of opennebula, s3, oci, libvirt, vsphere, vsphere-library, proxmox, aws, azure, gcp, openstack, digitalocean, hetzner, ssh`}},
		{"an upload without what it needs", []string{"roles:", "upload: [{name: a, type: opennebula, datastore: d, username: u}]\nroles:"}, []string{
			`error: upload[0]: required key "endpoint" is missing, type opennebula needs it`,
			`error: upload[0]: required key "password" is missing, type opennebula needs it`,
		}},

		// Roles.
		{"an extension of ours", []string{"    kind: worker\n", "    kind: worker\n    extensions: [{name: etcd, source: a.raw}]\n"}, []string{`error: roles.worker.extensions[0].name: the extension etcd is built by imagectl; choose another name`}},
		{"one extension, two sources", []string{"    kind: worker\n", "    kind: worker\n    extensions: [{name: gvisor, source: a.raw}]\n", "    kind: control-plane\n", "    kind: control-plane\n    extensions: [{name: gvisor, source: b.raw}]\n"}, []string{`error: roles.worker.extensions[0].name: extension gvisor is another one here than at cluster.yaml:45:25`}},
		{"an extension from nowhere", worker("{name: gvisor}"), []string{`error: roles.worker.extensions[0]: an extension needs source or recipe`}},
		{"an extension from two places", worker("{name: gvisor, source: a.raw, recipe: gvisor}"), []string{`error: roles.worker.extensions[0].recipe: an extension is ready-made (source) or made by a recipe, not both`}},
		{"an unknown recipe", worker("{name: gvisor, recipe: gvisors}"), []string{`error: roles.worker.extensions[0].recipe: recipe "gvisors" is not known; known are gvisor, nvidia, tree, wasmedge`}},
		{"a recipe without its input", worker("{name: gvisor, recipe: gvisor}"), []string{`error: roles.worker.extensions[0].recipe: recipe gvisor needs the input release: gVisor's gvisor.tar.zstd or gvisor.tar.bz2, of 20260831 or later`}},
		{"an input that no recipe takes", worker("{name: w, recipe: wasmedge, inputs: {release: a.tar.gz, shim: b}}"), []string{`error: roles.worker.extensions[0].inputs.shim: recipe wasmedge takes no input shim; it takes release`}},
		{"inputs without a recipe", worker("{name: w, source: a.raw, inputs: {release: a.tar.gz}}"), []string{`error: roles.worker.extensions[0].inputs.release: inputs belong to a recipe, and this extension has none`}},
		{"an input with a password", worker("{name: w, recipe: wasmedge, inputs: {release: \"https://a:b@example.org/x\"}}"), []string{`error: roles.worker.extensions[0].inputs.release: a URL here must not carry a user or a password: cluster.yaml and the lock file are in git`}},
		{"one recipe twice in a role", worker("{name: a, recipe: wasmedge, inputs: {release: a}}, {name: b, recipe: wasmedge, inputs: {release: a}}"), []string{`error: roles.worker.extensions[1].recipe: recipe wasmedge is used twice: first at cluster.yaml:48:36 (roles.worker.extensions[0].recipe)`}},
		{"a label that a kubelet may not set", []string{"    kind: worker\n", "    kind: worker\n    labels: {node-role.kubernetes.io/worker: \"\"}\n"}, []string{`error: roles.worker.labels.node-role.kubernetes.io/worker: a kubelet may not set node-role.kubernetes.io/worker on its own node and would not start`}},
		{"a label that it may", []string{"    kind: worker\n", "    kind: worker\n    labels: {topology.kubernetes.io/zone: a, example.org/disk: ssd, node.kubernetes.io/pool: x}\n"}, nil},
		{"a taint without effect", []string{"    kind: worker\n", "    kind: worker\n    taints: [example.org/a=b]\n"}, []string{`error: roles.worker.taints[0]: "example.org/a=b" is not a taint: want key=value:NoSchedule, PreferNoSchedule or NoExecute`}},
		{"SSH by the kernel command line", []string{"[console=tty0, \"console=ttyS0,115200n8\"]\n  worker", "[sshkey=AAAA, systemd.debug-shell=1, ignition.config.url=http://e/, flatcar.oem.id=vmware]\n  worker"}, []string{
			`error: roles.control-plane.kernelArgs[0]: kernel argument sshkey is not accepted: it adds a key for SSH, and nobody logs in to a node`,
			`error: roles.control-plane.kernelArgs[1]: kernel argument systemd.debug-shell is not accepted: it opens a shell without a key`,
			`error: roles.control-plane.kernelArgs[2]: kernel argument ignition.config.url is not accepted: it is set by imagectl`,
			`error: roles.control-plane.kernelArgs[3]: kernel argument flatcar.oem.id is not accepted: it says which platform an image is for, and ours name none: one image is for all of them`,
		}},
		{"kernel arguments that GRUB would cut", []string{"[console=tty0, \"console=ttyS0,115200n8\"]\n  worker", "[a." + strings.Repeat("b", 2000) + "]\n  worker"}, []string{`error: roles.control-plane.kernelArgs[0]: with this argument the kernel command line has ` + strconv.Itoa(len(commandLine)+2003) + ` characters with Flatcar's own; the kernel reads 2047`}},

		// Quorum.
		{"no machines", []string{"machines:\n", "x: |\n"}, []string{`warning: there are no machines: images can be built, and nothing will boot`, `error: x: unknown key "x"`}},
		{"no control plane", []string{"role: control-plane", "role: worker"}, []string{`error: machines: no machine has a role of kind control-plane`}},
		{"an even number", []string{cp1 + comment, cp1 + cp2}, []string{`warning: machines: 2 control planes: quorum is 2 of 2, so 0 may fail, no more than with 1`}},
		{"a zone that is too much", []string{cp1 + comment, cp1 + "\n    zone: rack1" + zoned(cp2, "rack1") + zoned(cp3, "rack2")}, []string{`warning: machines: losing zone rack1 loses 2 of 3 etcd members, quorum is 2`}},
		{"zones that are well", []string{cp1 + comment, cp1 + "\n    zone: rack1" + zoned(cp2, "rack2") + zoned(cp3, "rack3")}, nil},
		{"a zone that nobody named", []string{cp1 + comment, cp1 + "\n    zone: rack1" + zoned(cp2, "rack2") + cp3}, []string{`warning: machines[2]: control plane cp3 has no zone, while others have: the loss of its zone is not accounted for`}},
	}
	cert, err := os.ReadFile("testdata/db.crt")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files := fake{"cluster.yaml": edit(t, tt.pairs...), "db.crt": string(cert), "ec.crt": "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"}
			_, found := Parse(files.read, "cluster.yaml")
			if diff := cmp.Diff(texts(found), tt.want); diff != "" {
				t.Error("got -, want +\n" + diff)
			}
			for _, f := range found {
				if f.Line == 0 || f.Column == 0 {
					t.Errorf("no position: %s", f)
				}
			}
		})
	}
}

func TestSyntaxErrorsPointAtTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "cluster.yaml:1:1: error: the file is empty",
		"- a\n":                       "cluster.yaml:1:1: error: the file holds a list, want a mapping with keys such as version and cluster",
		"version: 1\na: {b: 1\nc: 2}": "",
		"version: 1\n\ta: 1\n":        "cluster.yaml:2: error: not valid YAML: found a tab character that violates indentation",
		"version: 1\na: b: c\n":       "cluster.yaml:2: error: not valid YAML: mapping values are not allowed in this context",
		"version: 1\na: [1, 2\nb: 3":  "cluster.yaml:2: error: not valid YAML: did not find expected ',' or ']'",
		"\xff\xfe\x00":                "",
		strings.Repeat("[", 20000):    "",
	} {
		_, found := Parse(fake{"cluster.yaml": text}.read, "cluster.yaml")
		if len(found) == 0 {
			t.Errorf("%.20q: no finding", text)
		} else if want != "" && found[0].String() != want {
			t.Errorf("%.20q: got %s, want %s", text, found[0], want)
		}
	}
}

func TestFirewallsOfAllLevelsAddUp(t *testing.T) {
	text := edit(t,
		"roles:", "network: {firewall: {allow: [{from: [10.9.0.0/24], ports: [9100]}]}}\nroles:",
		"    kind: worker\n", "    kind: worker\n    network: {firewall: {allow: [{from: [0.0.0.0/0], ports: [53], protocol: udp}]}}\n",
		"    address: 10.0.0.21\n", "    address: 10.0.0.21\n    network: {firewall: {off: behind a gateway}}\n")
	spec, found := Parse(func(file string) ([]byte, error) {
		if file == "cluster.yaml" {
			return []byte(text), nil
		}
		return nil, nil
	}, "cluster.yaml")
	if errs, _ := found.Count(); errs > 0 {
		t.Fatal(found)
	}
	every := Allow{From: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}, Ports: []uint16{9100}}
	dns := Allow{From: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Ports: []uint16{53}, UDP: true}
	for name, want := range map[string]Firewall{
		"cp1": {Allow: []Allow{every}},
		"w1":  {Off: "behind a gateway", Allow: []Allow{every, dns}},
	} {
		for _, m := range spec.Machines {
			if diff := cmp.Diff(m.Firewall, want, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); m.Name == name && diff != "" {
				t.Errorf("%s: got -, want +\n%s", name, diff)
			}
		}
	}
}

func TestRawTypesCanAllBeDecoded(t *testing.T) {
	walkRaw(t, func(path string, f reflect.StructField, _ string) {
		switch f.Type.Kind() {
		case reflect.Struct, reflect.Slice:
		default:
			t.Errorf("%s: a field of kind %s", path, f.Type.Kind())
		}
	})
}

// walkRaw visits every key of the format.
func walkRaw(t *testing.T, visit func(path string, f reflect.StructField, option string)) {
	t.Helper()
	var walk func(path string, typ reflect.Type, option string)
	walk = func(path string, typ reflect.Type, inherited string) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Type == reflect.TypeFor[place]() {
				continue
			}
			key, option, _ := strings.Cut(f.Tag.Get("key"), ",")
			if key == "" {
				t.Errorf("%s.%s has no key", typ, f.Name)
			}
			if inherited == "later" {
				option = "later"
			}
			path := join(path, key)
			visit(path, f, option)
			inner := f.Type
			if inner.Kind() == reflect.Slice {
				path += "[]"
				inner = inner.Elem()
				if v, ok := inner.FieldByName("V"); ok && strings.HasPrefix(inner.Name(), "dictEntry") {
					path, inner = strings.TrimSuffix(path, "[]")+".NAME", v.Type
				}
			}
			if inner.Kind() == reflect.Struct && !strings.HasPrefix(inner.Name(), "field[") {
				walk(path, inner, option)
			}
		}
	}
	walk("", reflect.TypeFor[rawFile](), "")
}

// worker gives the worker of the test file extensions.
// upload replaces the start of the roles by an upload to OpenNebula before them.
func upload(more string) []string {
	return []string{"roles:", "upload: [{type: opennebula, datastore: d, username: u, password: {env: ONE}, " + more + "}]\nroles:"}
}

func worker(extensions string) []string {
	return []string{"    kind: worker\n", "    kind: worker\n    extensions: [" + extensions + "]\n"}
}

// etcdTimed puts lines below etcd.
func etcdTimed(lines ...string) []string {
	return []string{"  version: v3.6.5\n", "  version: v3.6.5\n  " + strings.Join(lines, "\n  ") + "\n"}
}
