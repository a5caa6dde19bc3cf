package firewall_test

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/firewall"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func addrs(text ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range text {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// controlPlane is a node of a cluster of three control planes with everything that an
// operator can add.
func controlPlane() firewall.Input {
	return firewall.Input{
		APIServer:     true,
		ControlPlanes: addrs("10.0.0.13", "10.0.0.11", "10.0.0.12", "fd00::11"),
		Workers:       addrs("10.0.0.21", "10.0.0.22", "10.0.0.21"),
		Pods:          prefixes("10.244.0.0/16"),
		Allow: []firewall.Allow{
			{From: prefixes("10.9.0.0/24", "10.9.0.7/32", "fd09::/64"), Ports: []uint16{9100, 179, 9100}},
			{From: prefixes("0.0.0.0/0", "::/0"), Ports: []uint16{53}, UDP: true},
		},
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	worker := controlPlane()
	worker.APIServer, worker.Allow = false, nil
	for name, in := range map[string]firewall.Input{"baseline": {}, "control-plane": controlPlane(), "worker": worker} {
		file := filepath.Join("testdata", name+".nft")
		got := firewall.Rules(in)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, string(want)); diff != "" {
			t.Errorf("%s: got -, want +\n%s", name, diff)
		}
	}
}

func TestTheSameInputInAnotherOrderGivesTheSameRules(t *testing.T) {
	t.Parallel()
	in := controlPlane()
	slices.Reverse(in.ControlPlanes)
	slices.Reverse(in.Workers)
	if diff := cmp.Diff(firewall.Rules(in), firewall.Rules(controlPlane())); diff != "" {
		t.Error(diff)
	}
}
