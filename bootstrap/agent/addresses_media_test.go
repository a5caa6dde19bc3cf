package agent

import (
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
)

// files are networkd's, by their names' ends, that the machine has of its platform.
func (p *platformed) files() []string {
	p.t.Helper()
	all, err := p.Glob(cardFile + "*")
	if err != nil {
		p.t.Fatal(err)
	}
	for i, f := range all {
		all[i] = strings.TrimPrefix(f, cardFile)
	}
	slices.Sort(all)
	return all
}

// A config drive gives a bond with a VLAN at the first start, and at the next one a plain card:
// networkd's files are what it said last, and nothing is left of the bond.
func TestConfigureTakesAConfigDrivesBondAndGivesItUpAgain(t *testing.T) {
	t.Parallel()
	p := newPlatformed(t, "")
	_, _, node := unconfigured(t)
	media := map[string]string{
		"user_data":      string(node),
		"meta_data.json": `{"hostname": "w1.novalocal"}`,
		"network_data.json": `{"links": [
 {"id": "a", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:01"}, {"id": "b", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:02"},
 {"id": "c", "type": "bond", "bond_links": ["a", "b"], "bond_mode": "802.3ad", "ethernet_mac_address": "02:00:00:00:00:01"},
 {"id": "d", "type": "vlan", "vlan_link": "c", "vlan_id": 42, "vlan_mac_address": "02:00:00:00:00:03"}],
 "networks": [{"link": "d", "type": "ipv4", "ip_address": "10.0.0.5", "netmask": "255.255.255.0"}]}`,
	}
	p.Program("mount", func(host.Command) ([]byte, error) {
		for name, text := range media {
			if err := p.WriteFile(path.Join("/run/imagectl/medium/openstack/latest", name), []byte(text), 0o644); err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	if err := p.Remove(contextDevice); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteFile("/dev/disk/by-label/config-2", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]string{
		{"bond0.netdev", "bond0.network", "link0.network", "link1.network", "vlan42.netdev", "vlan42.network"},
		{"link0.network"},
	} {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if got := p.files(); !slices.Equal(got, want) || len(p.reloads) != i+1 {
			t.Errorf("start %d: got the files %q and networkd told %d times, want %q and %d", i, got, len(p.reloads), want, i+1)
		}
		media["network_data.json"] = `{"links": [{"id": "a", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:01"}], "networks": [{"link": "a", "type": "ipv4", "ip_address": "10.0.0.6", "netmask": "255.255.255.0"}]}`
	}
	if got, want := p.cards(), map[string]string{"link0.network": "10.0.0.6/24"}; !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := p.read(hostnamePath); got != "w1" {
		t.Errorf("/etc/hostname is %q, want w1", got)
	}
	if head := p.read(cardFile + "link0.network"); !strings.HasPrefix(head, "# Made by imagectl from config-2 openstack/latest/network_data.json; changes here do not last.\n") {
		t.Errorf("the file begins with %.120q", head)
	}
}

// A machine of VMware without a CD learns its addresses and its server by guestinfo.
func TestConfigureTakesGuestinfo(t *testing.T) {
	t.Parallel()
	p := newPlatformed(t, "")
	if err := p.Remove(contextDevice); err != nil {
		t.Fatal(err)
	}
	if err := p.WriteFile("/sys/class/dmi/id/product_name", []byte("VMware20,1\n"), 0o444); err != nil {
		t.Fatal(err)
	}
	node := strings.TrimSuffix(strings.TrimPrefix(nodeVariable(t), "IMAGECTL_NODE='"), "'\n")
	p.Program("/proc/self/exe", func(c host.Command) ([]byte, error) {
		if !slices.Equal(c.Argv, []string{"/proc/self/exe", "guestinfo"}) {
			t.Errorf("ran %v", c.Argv)
		}
		return []byte(`{"imagectl.node": "` + node + `", "hostname": "w1", "interface.0.mac": "02:00:00:00:00:01", "interface.0.ip.0.address": "10.0.0.5/24"}`), nil
	})
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	p.want("guestinfo", 1, map[string]string{"interface0.network": "10.0.0.5/24"}, "w1")
}
