package cli

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/imagectl/imagectl/butane/plan"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/dhcp6"
)

func addresses(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func TestEachServerFindsItsOwnAddress(t *testing.T) {
	t.Parallel()
	const first, second = "10.0.0.2", "10.0.0.3"
	for _, test := range []struct {
		name, flag string
		peers, has []netip.Addr
		own        string
		others     []netip.Addr
		err        string
	}{
		{"one server needs no look", "", nil, nil, first, nil, ""},
		{"the first of two", "", addresses(second), addresses("127.0.0.1", first), first, addresses(second), ""},
		{"the second of two", "", addresses(second), addresses(second), second, addresses(first), ""},
		{"by flag, where a machine has both", second, addresses(second), addresses(first, second), second, addresses(first), ""},
		{"none", "", addresses(second), addresses("10.0.0.9"), "", nil,
			"this machine has 0 of the addresses of server.address and server.peers ([10.0.0.2 10.0.0.3]); give it one, or say --address"},
		{"both", "", addresses(second), addresses(first, second), "", nil,
			"this machine has 2 of the addresses of server.address and server.peers ([10.0.0.2 10.0.0.3]); give it one, or say --address"},
		{"a flag that cluster.yaml does not name", "10.0.0.9", addresses(second), nil, "", nil,
			"--address 10.0.0.9 is none of server.address and server.peers in cluster.yaml ([10.0.0.2 10.0.0.3])"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := plan.Plan{Server: plan.Server{Address: netip.MustParseAddr(first), Peers: test.peers}}
			got, err := ownPlan(p, test.flag, test.has)
			if test.err != "" {
				if err == nil || err.Error() != test.err {
					t.Errorf("got %v, want %s", err, test.err)
				}
				return
			}
			if err != nil || got.Server.Address.String() != test.own || !slices.Equal(got.Server.Peers, test.others) {
				t.Errorf("got %+v, %v", got.Server, err)
			}
		})
	}
}

func TestServersShareThePoolWithoutTalking(t *testing.T) {
	t.Parallel()
	all := addresses("10.0.0.30", "10.0.0.3", "10.0.0.2")
	seen := map[dhcp.Share]bool{}
	for i, own := range all {
		peers := slices.Delete(slices.Clone(all), i, i+1)
		s := share(plan.Plan{Server: plan.Server{Address: own, Peers: peers}})
		if seen[s] || s.Of != 3 {
			t.Errorf("%s has the part %+v, as another server or as nobody", own, s)
		}
		seen[s] = true
	}
	if got := share(plan.Plan{Server: plan.Server{Address: all[0]}}); got != (dhcp.Share{}) {
		t.Errorf("a server that is alone has the part %+v", got)
	}
}

func TestEachServerHasItsOwnAddressAndNameInIPv6(t *testing.T) {
	t.Parallel()
	four, six := addresses("10.0.0.2", "10.0.0.3", "10.0.0.4"), addresses("fd00::2", "fd00::3", "fd00::4")
	p := plan.Plan{Server: plan.Server{Address: four[0], Peers: four[1:]}, Boot: plan.Boot{DHCP6: plan.DHCP6{Address: six[0], Peers: six[1:]}}}
	names := map[string]string{}
	for i, a := range four {
		got, err := ownPlan(p, a.String(), nil)
		if err != nil || got.Boot.DHCP6.Address != six[i] || len(got.Boot.DHCP6.Peers) != 2 || slices.Contains(got.Boot.DHCP6.Peers, six[i]) {
			t.Fatalf("%s: got %+v, %v", a, got.Boot.DHCP6, err)
		}
		own, peers := serverDUIDs(got, []byte("ca"))
		names[a.String()] = own.String()
		if len(peers) != 2 || peers[0].String() == own.String() || peers[1].String() == own.String() {
			t.Errorf("%s calls itself %s, and the others %v", a, own, peers)
		}
	}
	if names["10.0.0.2"] == names["10.0.0.3"] || names["10.0.0.3"] == names["10.0.0.4"] {
		t.Errorf("two servers have one name: %v", names)
	}
	alone, peers := serverDUIDs(plan.Plan{Boot: plan.Boot{DHCP6: plan.DHCP6{Address: six[0]}}}, []byte("ca"))
	if want := dhcp6.ServerDUID([]byte("ca")); alone.String() != want.String() || peers != nil {
		t.Errorf("one server alone calls itself %s, want %s", alone, want)
	}
}
