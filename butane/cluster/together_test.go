package cluster

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sideYAML is a cluster beside another one. The words in capitals are what differs.
const sideYAML = `version: 1
cluster: NAME
flatcar: {channel: stable, version: 4593.2.5, keyring: keys/flatcar.asc}
kubernetes: {version: v1.36.3, podCIDR: 10.128.0.0/12, serviceCIDR: 10.96.0.0/16}
etcd: {version: v3.6.5}
cni: {version: v1.9.1}
agent: {source: bin/bootstrapd}
server: {address: 10.0.0.SERVER}
boot:
  interface: eth1
  dhcp: authoritative
  unknown: UNKNOWN
  neighbours: NEIGHBOURS
  subnets: [{cidr: 10.0.0.0/24, range: {first: 10.0.0.FIRST, last: 10.0.0.LAST}}]
roles:
  control-plane: {kind: control-plane}
machines:
  - {name: NAME-1, role: control-plane, match: {mac: ["52:54:00:00:00:MAC"]}, address: 10.0.0.ADDRESS, disk: {path: /dev/vda}}
`

func sideA() *strings.Replacer {
	return strings.NewReplacer("NAME", "prod", "SERVER", "2", "UNKNOWN", "discover", "NEIGHBOURS", `[{address: 10.0.0.3, machines: ["52:54:00:00:00:b1"]}]`, "FIRST", "100", "LAST", "119", "MAC", "a1", "ADDRESS", "11")
}

func TestClustersSideBySide(t *testing.T) {
	t.Parallel()
	good := []string{"NAME", "lab", "SERVER", "3", "UNKNOWN", "ignore", "NEIGHBOURS", "[{address: 10.0.0.2}]", "FIRST", "120", "LAST", "139", "MAC", "b1", "ADDRESS", "21"}
	for _, c := range []struct {
		name string
		// with comes before what the good one has.
		with []string
		want []string
	}{
		{"all is well", nil, nil},
		{"one machine twice", []string{"MAC", "a1"}, []string{
			`a.yaml:13:26: error: boot.neighbours[0].address: cluster prod discovers machines and would answer 1 of cluster lab: boot.neighbours has to list their cards, or boot.unknown to be ignore`,
			`b.yaml:18:54: error: machines[0].match.mac[0]: MAC 52:54:00:00:00:a1 of lab-1 is that of prod-1 at a.yaml:18:55 (machines[0].match.mac[0]): two clusters cannot both have it`,
		}},
		{"one address twice", []string{"ADDRESS", "11"}, []string{
			`b.yaml:18:86: error: machines[0].address: address 10.0.0.11 of lab-1 is that of prod-1 at a.yaml:18:87 (machines[0].address): two clusters cannot both have it`,
		}},
		{"one server's address is the other's machine's", []string{"ADDRESS", "2"}, []string{
			`b.yaml:13:26: error: boot.neighbours[0].address: the server 10.0.0.2 has the address of lab-1`,
		}},
		{"a machine in the other's range", []string{"ADDRESS", "105"}, []string{
			`b.yaml:18:86: error: machines[0].address: 10.0.0.105 of lab-1 is inside the dynamic range 10.0.0.100 to 10.0.0.119 of cluster prod at a.yaml:14:48, where another machine may get it`,
		}},
		{"ranges that overlap", []string{"FIRST", "119"}, []string{
			`b.yaml:14:48: error: boot.subnets[0].range.first: the dynamic range 10.0.0.119 to 10.0.0.139 overlaps 10.0.0.100 to 10.0.0.119 of cluster prod at a.yaml:14:48: one address would be given twice`,
		}},
		{"both answer strangers", []string{"UNKNOWN", "discover"}, []string{
			`b.yaml:12:12: error: boot.unknown: clusters prod and lab both answer machines that nobody lists (boot.unknown: discover) on one network; at most one can`,
			`b.yaml:13:26: error: boot.neighbours[0].address: cluster lab discovers machines and would answer 1 of cluster prod: boot.neighbours has to list their cards, or boot.unknown to be ignore`,
		}},
		{"the other is not named", []string{"NEIGHBOURS", "[]"}, []string{
			`b.yaml:11:9: error: boot.dhcp: the server 10.0.0.2 of cluster prod answers on the same network, and boot.neighbours does not name it`,
		}},
		{"one name", []string{"NAME", "prod"}, []string{
			`b.yaml:2:10: error: cluster: name prod of the cluster is that of the cluster at a.yaml:2:10 (cluster): two clusters cannot both have it`,
			`b.yaml:18:12: warning: machines[0].name: prod-1 is also a machine at a.yaml:18:12: two machines with one hostname are easily taken for each other`,
		}},
		{"a machine without a card", []string{`mac: ["52:54:00:00:00:MAC"]`, "serial: S1"}, []string{
			`b.yaml:18:56: error: machines[0].match: lab-1 has no match.mac, so cluster prod, which discovers machines on the same network, cannot tell it from a stranger`,
		}},
		{"another network", []string{"10.0.0.", "10.7.0.", "eth1", "eth2", "NEIGHBOURS", "[]"}, nil},
		{"another network on one interface", []string{"10.0.0.", "10.7.0.", "NEIGHBOURS", "[]"}, []string{
			`b.yaml:10:14: warning: boot.interface: cluster prod answers on eth1 too, in other subnets: on one host that takes boot.neighbours in both files`,
		}},
		{"not valid by itself", []string{"version: v1.36.3", "version: none", "MAC", "a1"}, []string{
			`b.yaml:4:23: error: kubernetes.version: "none" is not a Kubernetes version`,
		}},
	} {
		files := map[string]string{"a.yaml": sideA().Replace(sideYAML), "b.yaml": strings.NewReplacer(append(c.with, good...)...).Replace(sideYAML), "keys/flatcar.asc": "a key"}
		read := func(path string) ([]byte, error) {
			if text, ok := files[path]; ok {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		}
		specs, found := Together(read, []string{"a.yaml", "b.yaml"})
		found.Sort()
		var got []string
		for _, f := range found {
			got = append(got, f.String())
		}
		if d := cmp.Diff(c.want, got); d != "" || len(specs) != 2 {
			t.Errorf("%s: %d specs, -want +got\n%s", c.name, len(specs), d)
		}
	}
}

func TestNameIn(t *testing.T) {
	t.Parallel()
	files := map[string]string{"base.yaml": "cluster: base\nboot: {}\n", "over.yaml": "extends: base.yaml\ncluster: over\n", "none.yaml": "boot: {}\n", "broken.yaml": "cluster: [\n"}
	read := func(path string) ([]byte, error) {
		if text, ok := files[path]; ok {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
	for file, want := range map[string]string{"base.yaml": "base", "over.yaml": "over", "none.yaml": "", "broken.yaml": "", "missing.yaml": ""} {
		if got := NameIn(read, file); got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}
