// Package test holds what is asserted about the whole tree; scenarios are in the
// directories below it.
package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/imagectl/imagectl/"

// layers says which packages of ours a package may import directly. A stage
// imports the type of its input, never its consumer: read a row from right to
// left. A package that is missing here fails the test, so a new one is a decision.
//
// "cmd/imagectl/cli" wires everything and may import anything but test/.
var layers = map[string][]string{
	"cmd/imagectl":   {"cmd/imagectl/cli"},
	"cmd/bootstrapd": {"bootstrap/agent", "bootstrap/balancer", "bootstrap/etcd", "bootstrap/guestinfo", "bootstrap/host", "bootstrap/install", "bootstrap/kubeadm", "bootstrap/nodeapi", "bootstrap/nodeconf"},

	"butane/diag":     {},
	"butane/lockdown": {},
	"butane/snippet":  {"butane/diag", "butane/lockdown"},
	"butane/cluster":  {"butane/diag", "butane/snippet", "images/lock", "images/pkcs11", "images/release", "images/secureboot", "images/upstream", "pxe/quirk", "pxe/selector"},
	"butane/plan":     {"butane/cluster", "butane/diag", "butane/lockdown", "images/lock", "images/release", "images/upstream", "pxe/selector"},
	"butane/render":   {"butane/cluster", "butane/lockdown", "butane/plan", "butane/snippet", "bootstrap/nodeconf", "images/upstream"},

	"images/fstree": {},
	"images/lock":   {},
	// Only tests of the writers use it: trees to write and judges to run.
	"images/fstree/fstreetest": {"images/fstree"},
	"images/sparse":            {},
	"images/sparse/sparsetest": {"images/sparse"},
	"images/bzip2":             {},
	"images/extent":            {"images/sparse"},
	"images/chunk":             {"images/sparse"},
	"images/compress":          {"images/chunk"},
	"images/qcow2":             {"images/chunk"},
	"images/vhd":               {"images/sparse"},
	"images/squashfs":          {"images/fstree"},
	"images/ext4":              {"images/fstree"},
	"images/btrfs":             {"images/fstree"},
	"images/cpio":              {"images/fstree"},
	"images/fat":               {"images/fstree"},
	"images/iso":               {"images/fstree"},
	"images/secureboot":        {},
	"images/pkcs11":            {},
	"images/uki":               {"images/fstree"},
	"images/medium":            {"images/cpio", "images/fat", "images/fstree", "images/iso", "images/uki"},
	"images/disk":              {"images/sparse"},
	"images/vmdk":              {"images/chunk"},
	"images/ova":               {},
	"images/store":             {"images/lock", "images/sparse"},
	"images/upload":            {"images/store"},
	"images/shelf":             {"images/store", "images/upload"},
	"images/upload/staging":    {"images/upload"},
	"images/upload/opennebula": {"images/store", "images/upload", "images/upload/pin"},
	"images/upload/s3":         {"images/store", "images/upload"},
	"images/upload/oci":        {"images/store", "images/upload"},
	"images/upload/libvirt":    {"images/sparse", "images/store", "images/upload", "images/upload/sshconn"},
	"images/upload/pin":        {},
	"images/upload/sshconn":    {},
	"images/upload/hostdir":    {"images/upload", "images/upload/sshconn"},
	"images/upload/vsphere":    {"images/ova", "images/store", "images/upload", "images/upload/rest", "images/vmdk"},
	"images/upload/proxmox":    {"images/iso", "images/store", "images/upload"},
	"images/upload/rest":       {"images/upload", "images/upload/pin", "images/upload/stall"},
	"images/upload/stall":      {"images/upload"},
	"images/upload/aws":        {"images/sparse", "images/store", "images/upload", "images/upload/rest"},
	"images/upload/azure":      {"images/sparse", "images/store", "images/upload", "images/upload/rest"},
	"images/upload/gcp":        {"images/compress", "images/sparse", "images/store", "images/upload", "images/upload/rest"},
	// Platforms that have no name which points to a version.
	"images/upload/bearer":       {"images/upload", "images/upload/rest"},
	"images/upload/glance":       {"images/store", "images/upload"},
	"images/upload/digitalocean": {"images/store", "images/upload", "images/upload/bearer"},
	"images/upload/hetzner":      {"images/store", "images/upload", "images/upload/bearer", "images/upload/sshconn"},
	// Only tests of targets use these: the suite that each has to stand, and servers
	// in the place of platforms.
	"images/upload/uploadtest":          {"images/qcow2", "images/sparse/sparsetest", "images/store", "images/upload", "images/upload/stall", "images/vmdk"},
	"images/upload/opennebula/onedtest": {},
	"images/upload/proxmox/proxmoxtest": {},
	"images/release":                    {"images/lock", "images/store"},
	"images/bundle":                     {"images/lock", "images/store"},
	"images/sysext":                     {"bootstrap/firewall", "images/fstree", "images/squashfs"},
	"images/upstream":                   {},
	"images/inventory":                  {},
	"images/sbom":                       {"images/inventory", "images/lock"},
	"images/provenance":                 {"images/lock"},
	"images/evidence":                   {"images/provenance", "images/sbom", "images/store"},
	"images/diff":                       {"images/evidence", "images/lock", "images/provenance", "images/sbom", "images/store"},
	"images/build":                      {"images/btrfs", "images/bzip2", "images/compress", "images/disk", "images/evidence", "images/ext4", "images/extent", "images/fstree", "images/inventory", "images/lock", "images/medium", "images/ova", "images/provenance", "images/qcow2", "images/sbom", "images/sparse", "images/store", "images/sysext", "images/uki", "images/upstream", "images/vhd", "images/vmdk"},

	"pxe/admit":    {},
	"pxe/boot":     {},
	"pxe/limit":    {},
	"pxe/datagram": {},
	"pxe/listen":   {"pxe/datagram"},
	"pxe/routes":   {},
	"pxe/bmc":      {},
	"pxe/quirk":    {},
	"pxe/tftp":     {"pxe/boot", "pxe/datagram", "pxe/quirk"},
	"pxe/selector": {},
	"pxe/syslog":   {},
	"pxe/journal":  {},
	"pxe/dhcp":     {"pxe/admit", "pxe/boot", "pxe/datagram", "pxe/journal", "pxe/quirk", "pxe/selector"},
	"pxe/dhcp6":    {"pxe/admit", "pxe/boot", "pxe/dhcp", "pxe/journal"},
	"pxe/httpboot": {"pxe/boot", "pxe/limit", "pxe/routes"},
	"pxe/grub":     {"pxe/boot", "pxe/httpboot"},
	"pxe/replay":   {"pxe/boot", "pxe/dhcp", "pxe/dhcp6", "pxe/grub", "pxe/quirk", "pxe/tftp"},
	"pxe/leases":   {"bootstrap/store", "pxe/dhcp", "pxe/dhcp6", "pxe/journal"},
	"pxe/catalog":  {"pxe/boot", "pxe/selector", "butane/plan", "bootstrap/machine", "images/lock"},
	"pxe/funnel":   {"pxe/boot"},
	"pxe/metrics":  {"pxe/admit", "pxe/boot", "pxe/dhcp", "pxe/dhcp6", "pxe/funnel"},
	"pxe/server":   {"pxe/admit", "pxe/boot", "pxe/dhcp", "pxe/dhcp6", "pxe/grub", "pxe/httpboot", "pxe/limit", "pxe/listen", "pxe/quirk", "pxe/syslog", "pxe/tftp"},

	// Only tests of journals use it.
	"pxe/journal/journaltest": {"pxe/journal"},

	"bootstrap/dashboard":      {},
	"bootstrap/api":            {},
	"bootstrap/api/apiconnect": {"bootstrap/api"},
	"bootstrap/machine":        {},
	"bootstrap/nodeconf":       {},
	"bootstrap/pki":            {},
	"bootstrap/audit":          {},
	"bootstrap/store":          {"bootstrap/machine"},
	// Only tests use it: an etcd for several servers.
	"bootstrap/store/storetest": {"bootstrap/store"},
	"bootstrap/backup":          {"bootstrap/backup/files", "bootstrap/store"},
	"bootstrap/backup/bucket":   {"bootstrap/backup/files"},
	"bootstrap/backup/etcdsnap": {"bootstrap/backup/files", "bootstrap/pki"},
	"bootstrap/backup/files":    {"bootstrap/pki"},
	"bootstrap/backup/nodecopy": {"bootstrap/api", "bootstrap/api/apiconnect", "bootstrap/backup/files", "bootstrap/pki"},
	"bootstrap/tpm":             {},
	"bootstrap/tpm/tpmtest":     {"bootstrap/host", "bootstrap/tpm"},
	"bootstrap/enrol":           {"bootstrap/machine", "bootstrap/pki", "bootstrap/tpm"},
	"bootstrap/coordinator":     {"bootstrap/machine"},
	"bootstrap/serverapi":       {"bootstrap/api", "bootstrap/api/apiconnect", "bootstrap/audit", "bootstrap/backup", "bootstrap/backup/etcdsnap", "bootstrap/backup/files", "bootstrap/coordinator", "bootstrap/enrol", "bootstrap/machine", "bootstrap/nodeapi", "bootstrap/nodeconf", "bootstrap/pki", "bootstrap/store", "bootstrap/tpm", "pxe/limit", "pxe/routes"},

	"bootstrap/host":          {},
	"bootstrap/platform":      {"bootstrap/nodeconf"},
	"bootstrap/guestinfo":     {},
	"bootstrap/efiboot":       {},
	"bootstrap/lldp":          {},
	"bootstrap/ipmi":          {},
	"bootstrap/firewall":      {},
	"bootstrap/host/hosttest": {"bootstrap/host"},
	"bootstrap/etcd":          {},
	"bootstrap/kubeadm":       {},
	"bootstrap/balancer":      {},
	"bootstrap/vip":           {},
	"bootstrap/install":       {"bootstrap/api", "bootstrap/host", "images/extent"},
	"bootstrap/inspect":       {"bootstrap/api"},
	"bootstrap/nodeapi":       {"bootstrap/api", "bootstrap/api/apiconnect", "bootstrap/audit", "bootstrap/backup/files", "bootstrap/pki"},
	"bootstrap/agent":         {"bootstrap/api", "bootstrap/api/apiconnect", "bootstrap/audit", "bootstrap/backup/files", "bootstrap/balancer", "bootstrap/efiboot", "bootstrap/enrol", "bootstrap/etcd", "bootstrap/firewall", "bootstrap/host", "bootstrap/inspect", "bootstrap/install", "bootstrap/ipmi", "bootstrap/kubeadm", "bootstrap/lldp", "bootstrap/nodeapi", "bootstrap/nodeconf", "bootstrap/pki", "bootstrap/platform", "bootstrap/tpm", "bootstrap/vip"},
}

// only says who may use what reaches outside the process or exits it.
var only = map[string][]string{
	"os/exec":                {"bootstrap/host", "bootstrap/tpm/tpmtest", "images/fstree/fstreetest"},
	"github.com/spf13/cobra": {"cmd/imagectl/cli"},
}

// inMemory are packages that are asked for every packet: they reach neither a disk nor the
// network nor a store. That the DHCP server's decisions do not wait for its store either is
// tested where it is (pxe/dhcp).
var inMemory = []string{"bootstrap/machine", "pxe/admit", "pxe/boot", "pxe/catalog", "pxe/grub", "pxe/quirk", "pxe/selector"}

func TestPacketsAreAnsweredFromMemory(t *testing.T) {
	reach := []string{"os", "os/exec", "io/fs", "io/ioutil", "path/filepath", "net/http", "syscall", "golang.org/x/sys/unix", module + "bootstrap/store", module + "images/store", module + "pxe/journal", module + "pxe/leases"}
	seen := 0
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(inMemory, name) {
			continue
		}
		seen++
		for _, imp := range p.Imports {
			if slices.Contains(reach, imp) {
				t.Errorf("%s → %s: it is asked for every packet, and answers from memory", name, imp)
			}
		}
	}
	if seen != len(inMemory) {
		t.Errorf("%d of the %d packages are there", seen, len(inMemory))
	}
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list ./...: %v", err)
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages; the test looks at the wrong tree", len(all))
	}
	return all
}

func TestPackagesImportOnlyWhatTheirLayerAllows(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if strings.HasPrefix(name, "test") || p.ImportPath+"/" == module {
			continue
		}
		allowed, ok := layers[name]
		if !ok && name != "cmd/imagectl/cli" {
			t.Errorf("%s is in no layer: add it to the table in test/layers_test.go with what it may import", name)
			continue
		}
		for _, imp := range p.Imports {
			if users, limited := only[imp]; limited && !slices.Contains(users, name) {
				t.Errorf("%s imports %s; only %s may", name, imp, strings.Join(users, ", "))
			}
			dep, ours := strings.CutPrefix(imp, module)
			switch {
			case !ours:
			case strings.HasPrefix(dep, "test"):
				t.Errorf("%s → %s: nothing but tests imports test/", name, dep)
			case name == "cmd/imagectl/cli":
			case !slices.Contains(allowed, dep):
				t.Errorf("%s → %s: not allowed; %s may import %s", name, dep, name, orNothing(allowed))
			}
		}
	}
}

func orNothing(s []string) string {
	if len(s) == 0 {
		return "nothing of ours"
	}
	return fmt.Sprintf("only %s", strings.Join(s, ", "))
}

func TestLayerTableNamesNoPackageThatIsGone(t *testing.T) {
	have := map[string]bool{}
	for _, p := range packages(t) {
		have[strings.TrimPrefix(p.ImportPath, module)] = true
	}
	for name := range layers {
		if !have[name] {
			t.Errorf("the layer table names %s, which does not exist", name)
		}
	}
}
