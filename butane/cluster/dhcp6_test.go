package cluster

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// by6 gives the starter a section dhcp6.
func by6(text string) []string {
	return []string{"  interface: eth1\n", "  interface: eth1\n  dhcp6: " + text + "\n"}
}

func TestDHCP6Findings(t *testing.T) {
	for _, c := range []struct {
		name  string
		pairs []string
		want  []string
	}{
		{"all that is needed", by6(`{address: "fd00::1", subnets: [{cidr: "fd00::/64", range: {first: "fd00::1000", last: "fd00::1fff"}}]}`), nil},
		{"another server gives out the addresses", by6(`{mode: stateless, address: "fd00::1"}`), nil},
		{"another server does all", by6(`{mode: off, address: "fd00::1"}`), nil},
		{"no address", by6(`{mode: stateless}`), []string{`error: boot.dhcp6: required key "address" is missing`}},
		{"a mode that is none", by6(`{mode: statefull, address: "fd00::1", subnets: [{cidr: "fd00::/64", range: {first: "fd00::1000", last: "fd00::1fff"}}]}`),
			[]string{`error: boot.dhcp6.mode: "statefull" is not one of stateful, stateless, off`}},
		{"an IPv4 address", by6(`{mode: stateless, address: 10.0.0.2}`), []string{`error: boot.dhcp6.address: 10.0.0.2 is not an IPv6 address that machines can use in a URL`}},
		{"a link-local address", by6(`{mode: stateless, address: "fe80::1"}`), []string{`error: boot.dhcp6.address: fe80::1 is not an IPv6 address that machines can use in a URL`}},
		{"no interface", append(by6(`{mode: off, address: "fd00::1"}`), "  interface: eth1\n", "", "  dhcp: authoritative #", "  dhcp: off #"),
			[]string{`error: boot: required key "interface" is missing: dhcp6 answers on one interface`}},
		{"no subnet", by6(`{address: "fd00::1"}`), []string{`error: boot.dhcp6: none of its subnets contains its address fd00::1, so no machine beside the server gets one`}},
		{"no range", by6(`{address: "fd00::1", subnets: [{cidr: "fd00::/64"}]}`), []string{`error: boot.dhcp6.subnets[0]: required key "range" is missing: mode: stateful gives out addresses`}},
		{"a range that nobody uses", by6(`{mode: stateless, address: "fd00::1", subnets: [{cidr: "fd00::/64", range: {first: "fd00::1000", last: "fd00::1fff"}}]}`),
			[]string{`error: boot.dhcp6.subnets[0].range: under mode: stateless another server gives out the addresses`}},
		{"subnets that nobody uses", by6(`{mode: off, address: "fd00::1", subnets: [{cidr: "fd00::/64"}]}`), []string{`error: boot.dhcp6.subnets[0]: under mode: off another server knows the subnets`}},
		{"rapid commit without addresses", by6(`{mode: stateless, address: "fd00::1", rapidCommit: true}`), []string{`error: boot.dhcp6.rapidCommit: rapidCommit is for a server that gives out addresses`}},
		{"an IPv4 subnet", by6(`{mode: stateless, address: "fd00::1", subnets: [{cidr: 10.0.0.0/24}]}`),
			[]string{`error: boot.dhcp6.subnets[0].cidr: 10.0.0.0/24 is not an IPv6 network that machines can boot in: want a prefix of at most 120 bits, of 64 where they also configure themselves`}},
		{"ranges that are wrong", by6(`{address: "fd00::1", subnets: [{cidr: "fd00::/64", range: {first: "fd00::", last: "fd00::ffff:0:0"}}, {cidr: "fd00:0:0:1::/64", range: {first: "fd00:0:0:1::9", last: "fd00:0:0:1::1"}}, {cidr: "fd00:0:0:2::/64", range: {first: "fd00::9", last: "fd00:0:0:2::1"}}]}`),
			[]string{
				`error: boot.dhcp6.subnets[0].range.first: fd00:: is the network address of fd00::/64`,
				`error: boot.dhcp6.subnets[0].range.last: the range from fd00:: has more than 65536 addresses`,
				`error: boot.dhcp6.address: the server's address fd00::1 is inside the range fd00:: to fd00::ffff:0:0`,
				`error: boot.dhcp6.subnets[1].range.last: the range ends at fd00:0:0:1::1, before it begins at fd00:0:0:1::9`,
				`error: boot.dhcp6.subnets[2].range.first: fd00::9 is not inside fd00:0:0:2::/64`,
				`error: boot.dhcp6.subnets[2].range.last: the range from fd00::9 has more than 65536 addresses`,
			}},
		{"subnets that overlap", by6(`{mode: stateless, address: "fd00::1", subnets: [{cidr: "fd00::/64"}, {cidr: "fd00::/48"}]}`), []string{`error: boot.dhcp6.subnets[1].cidr: fd00::/48 overlaps fd00::/64`}},
		{"what stands in a subnet", by6(`{mode: stateless, address: "fd00::1", subnets: [{cidr: "fd00::/64", dns: [10.0.0.1], domain: "a b", lease: 1m}]}`), []string{
			`error: boot.dhcp6.subnets[0].dns[0]: 10.0.0.1 is not an IPv6 address`,
			`error: boot.dhcp6.subnets[0].domain: "a b" is not a DNS name`,
			`error: boot.dhcp6.subnets[0].lease: a lease of 1m0s is out of range: want 2m to 8760h`,
		}},
	} {
		_, found := Parse(fake{"cluster.yaml": edit(t, c.pairs...)}.read, "cluster.yaml")
		var got []string
		for _, line := range texts(found) {
			if len(line) > 6 && line[:6] == "error:" {
				got = append(got, line)
			}
		}
		if diff := cmp.Diff(got, c.want, cmpopts.SortSlices(func(a, b string) bool { return a < b }), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: got (-), want (+):\n%s", c.name, diff)
		}
	}
}

func TestDHCP6Values(t *testing.T) {
	s, found := Parse(fake{"cluster.yaml": edit(t, by6(`{address: "fd00::1", rapidCommit: true, subnets: [{cidr: "fd00::/64", range: {first: "fd00::1000", last: "fd00::1fff"}, dns: ["fd00::53"], domain: example.org, lease: 1h}]}`)...)}.read, "cluster.yaml")
	if found.Err() != nil {
		t.Fatal(texts(found))
	}
	want := DHCP6{Mode: "stateful", Address: netip.MustParseAddr("fd00::1"), RapidCommit: true, Subnets: []Subnet6{{
		Prefix: netip.MustParsePrefix("fd00::/64"), First: netip.MustParseAddr("fd00::1000"), Last: netip.MustParseAddr("fd00::1fff"),
		DNS: []netip.Addr{netip.MustParseAddr("fd00::53")}, Domain: "example.org", LeaseSeconds: 3600}}}
	if diff := cmp.Diff(s.Boot.DHCP6, want, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Errorf("got (-), want (+):\n%s", diff)
	}
}
