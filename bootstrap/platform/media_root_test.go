//go:build root

package platform

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/host"
	"github.com/imagectl/imagectl/test/uml"
)

// TestMain is also the program that reads the media inside the Linux of the test below, and
// writes networkd's files, as the agent does.
func TestMain(m *testing.M) {
	if os.Getenv("PLATFORM_ROLE") == "" {
		os.Exit(m.Run())
	}
	if err := readMedia(); err != nil {
		fmt.Println("@@wrong", err)
		os.Exit(1)
	}
}

func readMedia() error {
	h := &host.Host{}
	n, err := Addresses(context.Background(), h)
	if err != nil {
		return err
	}
	fmt.Println("@@from", n.From)
	fmt.Println("@@hostname", n.Hostname)
	for _, f := range n.Files() {
		if err := h.WriteFile(f.Path, f.Content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Media that genisoimage and mkfs.vfat made, as Nova, Ironic and Proxmox VE make theirs, are
// found by the labels that blkid sees, mounted by Linux and read; and Debian's systemd-networkd
// makes of that a bond with a VLAN on it, a plain card, and what version 2 says, in whose
// networks the router answers.
func TestMediaOfOtherHandsInALinuxOfItsOwn(t *testing.T) {
	const (
		bond = `{"links": [
 {"id": "interface0", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:10"},
 {"id": "interface1", "type": "phy", "ethernet_mac_address": "02:00:00:00:00:11"},
 {"id": "bond0", "type": "bond", "bond_links": ["interface0", "interface1"], "bond_mode": "active-backup", "ethernet_mac_address": "02:00:00:00:00:10", "mtu": 1480},
 {"id": "vlan0", "type": "vlan", "vlan_link": "bond0", "vlan_id": 42, "vlan_mac_address": "02:00:00:00:00:42", "mtu": 1400}],
 "networks": [{"id": "network0", "type": "ipv4", "link": "vlan0", "ip_address": "10.42.0.11", "netmask": "255.255.255.0", "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.42.0.1"}]}],
 "services": [{"type": "dns", "address": "10.42.0.53"}]}`
		pve = `version: 1
config:
    - type: physical
      name: eth0
      mac_address: '02:00:00:00:00:10'
      subnets:
      - type: static
        address: '10.5.0.12'
        netmask: '255.255.255.0'
        gateway: '10.5.0.1'
      - type: static6
        address: '2001:db8:5::12/64'
        gateway: '2001:db8:5::1'
    - type: nameserver
      address:
      - '10.5.0.53'
`
		netplan = `network:
  version: 2
  ethernets:
    uplink: {match: {name: "eth1"}, addresses: [10.5.0.13/24], routes: [{to: 10.60.0.0/16, via: 10.5.0.1, metric: 9}]}
`
	)
	work, media := t.TempDir(), t.TempDir()
	file := func(medium, name, text string) string {
		t.Helper()
		p := filepath.Join(media, medium, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := func(argv ...string) {
		t.Helper()
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s (make deps installs it)", argv, err, out)
		}
	}
	file("nova", networkDataFile, bond)
	file("nova", metaDataFile, `{"uuid": "83679162-1378-4288-a2d4-70e13ec132aa", "hostname": "w1.novalocal", "name": "w1"}`)
	// nova/virt/configdrive.py, _make_iso9660
	run("genisoimage", "-quiet", "-o", filepath.Join(work, "nova.iso"), "-ldots", "-allow-lowercase", "-allow-multidot", "-l", "-publisher", "nova", "-J", "-r", "-V", "config-2", filepath.Join(media, "nova"))
	file("pve", "network-config", pve)
	file("pve", "meta-data", "instance-id: 0123\n")
	file("pve", "user-data", "#cloud-config\nhostname: w2\nmanage_etc_hosts: true\nfqdn: w2.example.org\n")
	// qemu-server, Cloudinit.pm, commit_cloudinit_disk
	run("genisoimage", "-quiet", "-iso-level", "3", "-R", "-V", "cidata", "-o", filepath.Join(work, "pve.iso"), filepath.Join(media, "pve"))
	stick := filepath.Join(work, "stick.img")
	run("mkfs.vfat", "-C", "-n", "CIDATA", stick, "1024")
	run("mcopy", "-i", stick, file("stick", "network-config", netplan), file("stick", "meta-data", "local-hostname: w3\n"), "::")

	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := uml.Run(t, "testdata/media.sh", work, "PROGRAM="+program, "ubdar="+filepath.Join(work, "nova.iso"), "ubdbr="+filepath.Join(work, "pve.iso"), "ubdcr="+stick,
		uml.Cable("eth0", "02:00:00:00:00:10", "21000", "21002"), uml.Cable("eth2", "02:00:00:00:00:12", "21002", "21000"),
		uml.Cable("eth1", "02:00:00:00:00:11", "21001", "21003"), uml.Cable("eth3", "02:00:00:00:00:13", "21003", "21001"))
	defer func() {
		if t.Failed() {
			for word, lines := range s {
				t.Logf("%s:\n%s", word, strings.Join(lines, "\n"))
			}
		}
	}()
	for _, line := range append(s["log"], s["wrong"]...) {
		low := strings.ToLower(line)
		if strings.Contains(line, "30-imagectl-context-") && !strings.Contains(line, "onfiguring with") || strings.Contains(low, "could not") || strings.Contains(low, "failed") || s["wrong"] != nil {
			t.Errorf("something does not like a file: %s", line)
		}
	}
	for word, want := range map[string][]string{
		"from":     {"config-2 openstack/latest/network_data.json", "cidata network-config", "CIDATA network-config"},
		"hostname": {"w1", "w2", "w3"},
		"online":   {"yes", "yes", "yes"},
		"ping":     {"vlan", "plain", "plain6", "netplan"},
	} {
		if !slices.Equal(s[word], want) {
			t.Errorf("%s: got %q, want %q", word, s[word], want)
		}
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
				ID, Miimon int
				Mode       string
			} `json:"info_data"`
		}
		Info []struct {
			Local  string
			Length int `json:"prefixlen"`
			Scope  string
		} `json:"addr_info"`
	}
	if len(s["links"]) != 3 {
		t.Fatalf("%d lines of links, want 3", len(s["links"]))
	}
	var got [3]map[string]link
	for i, line := range s["links"] {
		var all []link
		if err := json.Unmarshal([]byte(line), &all); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got[i] = map[string]link{}
		for _, l := range all {
			got[i][l.Name] = l
		}
	}
	global := func(l link) (out []string) {
		for _, i := range l.Info {
			if i.Scope == "global" {
				out = append(out, netip.PrefixFrom(netip.MustParseAddr(i.Local), i.Length).String())
			}
		}
		return out
	}
	if b := got[0]["bond0"]; b.Linkinfo.Kind != "bond" || b.Linkinfo.Data.Mode != "active-backup" || b.Linkinfo.Data.Miimon != 100 || b.MTU != 1480 || b.Address != "02:00:00:00:00:10" || global(b) != nil {
		t.Errorf("bond0: got %+v", b)
	}
	if v := got[0]["vlan42"]; v.Linkinfo.Kind != "vlan" || v.Linkinfo.Data.ID != 42 || v.Below != "bond0" || v.MTU != 1400 || v.Address != "02:00:00:00:00:42" {
		t.Errorf("vlan42: got %+v", v)
	}
	for i, want := range []map[string][]string{
		{"vlan42": {"10.42.0.11/24"}, "eth0": nil, "eth1": nil},
		{"eth0": {"10.5.0.12/24", "2001:db8:5::12/64"}, "eth1": nil},
		{"eth0": nil, "eth1": {"10.5.0.13/24"}},
	} {
		for name, addresses := range want {
			if has := global(got[i][name]); !slices.Equal(has, addresses) {
				t.Errorf("medium %d: %s has %q, want %q", i, name, has, addresses)
			}
		}
	}
	for _, name := range []string{"eth0", "eth1"} {
		if got[0][name].Master != "bond0" {
			t.Errorf("%s is in %q, want bond0", name, got[0][name].Master)
		}
	}
}
