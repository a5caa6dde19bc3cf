// Package platform finds the node configuration that a virtualisation platform
// gives to its machines. An image knows neither server nor CA, and a machine
// cloned from it meets no installer that could leave node.json; what there is
// instead is the one channel that each platform has for such data:
//
//	fw_cfg       QEMU, libvirt, Proxmox VE: the key opt/org.imagectl/node
//	CONTEXT      OpenNebula: the variable IMAGECTL_NODE of context.sh
//	cidata       NoCloud (Proxmox VE, KubeVirt, any CD drive): the file user-data
//	config-2     OpenStack, KubeVirt: the file openstack/latest/user_data
//	OVF ENV      vSphere: the property guestinfo.imagectl.node of ovf-env.xml, by the
//	             OVF transport "iso"
//	guestinfo    VMware: the variable guestinfo.imagectl.node, or that property by the OVF
//	             transport "com.vmware.guestInfo"
//	metadata     EC2, Google Cloud, Azure, Hetzner, DigitalOcean, OpenStack: the user
//	             data, by HTTP from the cloud's own address
//
// Each holds node.json (nodeconf), as it is or in base64. It is public, as
// node.json is: who changes it on the way changes the enrolment code.
//
// Some platforms have addresses for their machines, and often no DHCP: [Addresses] reads what
// OpenNebula's CONTEXT, a config drive, NoCloud and guestinfo say of network cards and of the
// machine's name, and [Network.Files] is that for systemd-networkd. Nothing else of them is of
// any effect: no key, user or script.
package platform

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/nodeconf"
)

const (
	// FirmwareKey is the name of QEMU's fw_cfg entry.
	FirmwareKey = "opt/org.imagectl/node"
	// ContextVariable is the name of OpenNebula's context variable.
	ContextVariable = "IMAGECTL_NODE"
	// Property is the key of the OVF property; the OVA has it (images/ova).
	Property = "guestinfo.imagectl.node"
	// Max bounds node.json and the files that hold it, in bytes; but a context.sh.
	Max = 64 << 10
)

// firmwareFile is where the kernel's module qemu_fw_cfg shows an entry
// (Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg).
const firmwareFile = "/sys/firmware/qemu_fw_cfg/by_name/" + FirmwareKey + "/raw"

// Machine is what can be read; *host.Host is one. All errors wrap
// fs.ErrNotExist when there is no such thing.
type Machine interface {
	ReadFile(name string) ([]byte, error)
	// ReadMedium reads at most limit bytes of a file in the file system with a
	// label.
	ReadMedium(ctx context.Context, label, file string, limit int64) ([]byte, error)
	// Guestinfo returns the variables that VMware keeps for the machine, without
	// the word guestinfo before their names.
	Guestinfo(ctx context.Context) (map[string]string, error)
}

// medium is a file system that a platform attaches.
type medium struct {
	label, file string
	// find takes node.json out of the file.
	find func([]byte) ([]byte, error)
	// max bounds the file, in bytes.
	max int64
}

// media are in the order in which they are asked. A FAT label is in capitals. OVF
// says nothing of labels and little of the file's name: these are those by which
// cloud-init's ds-identify and DataSourceOVF.py find it.
func media() []medium {
	all := func(b []byte) ([]byte, error) { return b, nil }
	ovf := func(b []byte) ([]byte, error) { return property(b, Property) }
	return []medium{
		{contextLabel, contextFile, func(b []byte) ([]byte, error) { return contextValue(b, ContextVariable) }, maxContext},
		{"cidata", "user-data", all, Max},
		{"CIDATA", "user-data", all, Max},
		{"config-2", "openstack/latest/user_data", all, Max},
		{"CONFIG-2", "openstack/latest/user_data", all, Max},
		{"OVF ENV", "ovf-env.xml", ovf, Max},
		{"OVF ENV", "ovf_env.xml", ovf, Max},
		{"OVFENV", "ovf-env.xml", ovf, Max},
		{"OVF-TRANSPORT", "ovf-env.xml", ovf, Max},
	}
}

// Find returns the first configuration and where it was found. Without one its
// error says what was looked for and what is wrong with what was there. It may take as
// long as web lets a request take, twice.
func Find(ctx context.Context, m Machine, web Web) (conf nodeconf.Config, from string, err error) {
	var wrong []error
	try := func(name string, b []byte, err error) bool {
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
		if err == nil {
			conf, err = parse(b)
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", name, err))
			return false
		}
		from = name
		return true
	}
	b, err := m.ReadFile(firmwareFile)
	if try("fw_cfg "+FirmwareKey, b, err) {
		return conf, from, nil
	}
	for _, d := range media() {
		b, err := m.ReadMedium(ctx, d.label, d.file, d.max+1)
		if err == nil {
			b, err = d.find(b)
		}
		if try(d.label+" "+d.file, b, err) {
			return conf, from, nil
		}
	}
	if b, found, err := guestConfig(ctx, m); found && try("guestinfo", b, err) {
		return conf, from, nil
	}
	s, err := cloud(m)
	if s != nil {
		b, err := s.userData(ctx, web)
		if try("the metadata of "+s.name, b, err) {
			return conf, from, nil
		}
	} else if err != nil {
		wrong = append(wrong, fmt.Errorf("finding out which cloud this is: %w", err))
	}
	if len(wrong) > 0 {
		return nodeconf.Config{}, "", fmt.Errorf("what the platform says is of no use: %w", errors.Join(wrong...))
	}
	return nodeconf.Config{}, "", fmt.Errorf("the platform says nothing: there is no fw_cfg key %s, no medium labelled CONTEXT, cidata, config-2 or OVF ENV and no guestinfo.imagectl.node, and the firmware names no cloud", FirmwareKey)
}

// parse reads node.json, as it is or in base64.
func parse(b []byte) (nodeconf.Config, error) {
	if len(b) > Max {
		return nodeconf.Config{}, fmt.Errorf("it has more than %d bytes", Max)
	}
	text := strings.TrimSpace(string(b))
	if !strings.HasPrefix(text, "{") {
		plain, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil || !strings.HasPrefix(strings.TrimSpace(string(plain)), "{") {
			return nodeconf.Config{}, errors.New("it is neither the JSON that imagectl machines config prints, nor that in base64")
		}
		text = string(plain)
	}
	conf, err := nodeconf.Parse([]byte(text))
	if err != nil {
		return nodeconf.Config{}, err
	}
	if conf.Mode != nodeconf.Node {
		// An installer may be told to write disks.
		return nodeconf.Config{}, fmt.Errorf("mode is %q; a machine that runs from its disk takes %q only", conf.Mode, nodeconf.Node)
	}
	return conf, nil
}
