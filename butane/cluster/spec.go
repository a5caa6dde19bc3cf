// Package cluster reads cluster.yaml: strictly, with the position of every value,
// and with every finding at once. Its Spec says what somebody wants; what it
// resolves to is a plan.
//
// Parse reads files only through the function it is given, with one exception:
// Butane reads files that a snippet embeds with local: from the snippet's own
// directory. It reads no clock and no environment.
package cluster

import (
	"net"
	"net/netip"
	"path"
	"time"

	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/release"
	"github.com/imagectl/imagectl/images/upstream"
	"github.com/imagectl/imagectl/pxe/selector"
)

// Spec is a valid cluster.yaml with the defaults filled in. Sources are http(s)
// URLs or paths; relative paths start at the directory of cluster.yaml. Templates
// in them are expanded.
type Spec struct {
	// Name is the cluster's name, an RFC 1123 label.
	Name string
	// Identity is approve, token or tpm.
	Identity string
	// PCRs are the values, SHA-256 in lower-case hexadecimal, that registers of a TPM may
	// have; nil for anything.
	PCRs map[uint][]string
	// SecondPerson is what one operator alone may not do: wipe, destroy.
	SecondPerson []string
	Flatcar      Flatcar
	Kubernetes   Kubernetes
	Etcd         Etcd
	CNI          Component
	// Agent is the source of the bootstrapd binary.
	Agent  string
	Server Server
	// Backup is of the server's state.
	Backup Backup
	Boot   Boot
	// Roles are sorted by name.
	Roles []Role
	// Machines and Addons are in the order of the file.
	Machines []Machine
	Addons   []Named
	// Uploads are in the order of the file.
	Uploads []Upload
}

// Flatcar is the base release.
type Flatcar struct {
	Channel, Version, Arch string
	// Mirror is the URL or directory that holds ARCH-usr/VERSION/.
	Mirror string
	// Mirrors hold the same, and are tried in their order when Mirror fails.
	Mirrors []string
	// Keyring is a path to OpenPGP public keys.
	Keyring string
	// PrimaryKey is the pinned fingerprint, upper-case hexadecimal.
	PrimaryKey string
	// Signature is where the release's signatures are.
	Signature release.Form
	// SBOM has the release's own bill of materials locked and merged into ours.
	SBOM bool
}

// Kubernetes is the version and the networks.
type Kubernetes struct {
	// Version with its leading v.
	Version string
	// Endpoint is host:port for kubeconfigs; empty when it is not set and no
	// control plane has an address.
	Endpoint string
	// APIVIP are addresses that one control plane has at a time: of IPv4, of IPv6, or one of
	// each; empty for none.
	APIVIP               []netip.Addr
	PodCIDR, ServiceCIDR netip.Prefix
	DNSDomain            string
	SANs                 []string
	// CAKeyOnNodes: control planes have the keys of Kubernetes' CAs, as kubeadm has it.
	CAKeyOnNodes              bool
	PodSecurity               PodSecurity
	Kubeadm, Kubelet, Kubectl string
	Images                    []Named
}

// PodSecurity is which pods are taken where nothing else is said: levels of Kubernetes' Pod
// Security Standards.
type PodSecurity struct {
	// Enforce, Audit and Warn are privileged, baseline or restricted.
	Enforce, Audit, Warn string
	// Exempt are namespaces in which all is taken, besides kube-system, in the order of the
	// file.
	Exempt []string
}

// Component is a program with a version (leading v) and a source.
type Component struct {
	Version, Source string
}

// Etcd is the component, and how its members keep time: 0 for etcd's own.
type Etcd struct {
	Component
	Heartbeat, Election time.Duration
}

// Named is an input of the user's.
type Named struct {
	Name, Source string
}

// Server is where nodes reach imagectl serve.
type Server struct {
	Address netip.Addr
	// Peers are further servers, each with an imagectl serve of its own.
	Peers               []netip.Addr
	HTTPPort, HTTPSPort int
	SANs                []string
	// Artefacts is the name of an upload of type s3 or oci that keeps what servers serve;
	// empty where each has it in its own output directory.
	Artefacts string
}

// Backup says how the server's state is saved; the zero value, that it is not.
type Backup struct {
	// Recipients are the public halves of recovery keys (age1…).
	Recipients []string
	// Target is a directory of the server's machine; empty for none.
	Target string
	// Bucket is the name of an upload of type s3 that gets copies; empty for none.
	Bucket string
	Every  time.Duration
	// Keep is how many of the newest stay.
	Keep int
	// Nodes is how many of them each control plane keeps too; 0 for none.
	Nodes int
	// Etcd is how snapshots of the cluster's etcd are taken, to the same recipients and places but
	// for the control planes; the zero value, that none are.
	Etcd SaveEtcd
}

// SaveEtcd says how snapshots of the cluster's etcd are taken.
type SaveEtcd struct {
	Every time.Duration
	// Keep is how many of the newest stay, KeepFor how long one stays at most; 0 for ever.
	Keep    int
	KeepFor time.Duration
}

// Boot is the boot network.
type Boot struct {
	Interface string
	// DHCP is authoritative, proxy, proxy-4011 or off.
	DHCP string
	// Unknown is discover or ignore.
	Unknown string
	// NBP is that of machines that are not listed: ipxe or grub.
	NBP     string
	Subnets []Subnet
	// Relays may be empty.
	Relays []netip.Addr
	// Neighbours are in the order of the file.
	Neighbours         []Neighbour
	DHCP6              DHCP6
	IPXEBIOS, IPXEUEFI string
	// IPXEArm64 is empty where no machine of that kind gets iPXE.
	IPXEArm64  string
	GRUB       GRUB
	ISO        ISO
	SecureBoot SecureBoot
	// Syslog says that the server hears what machines say by syslog.
	Syslog        bool
	InstallerArgs []string
}

// GRUB names the programs that UEFI on x86-64 loads by PXE in place of iPXE. Both are
// empty when nobody wants them.
type GRUB struct{ Shim, GRUB string }

// ISO names the programs that start the installer from an ISO image. All are
// empty when no such image is wanted, and all but Stub when only UEFI shall boot it.
type ISO struct{ Stub, ISOLINUX, LDLINUX, MBR string }

// SecureBoot says who signs what UEFI starts; the zero value, that nobody does.
type SecureBoot struct {
	// Certificate in DER form.
	Certificate []byte
	// Key is that certificate's, in a file or the environment. When File is a URI
	// with pkcs11.Scheme it is in a token, and PIN opens that.
	Key, PIN Secret
}

// Subnet is one DHCP subnet. Zero addresses mean that there is none.
type Subnet struct {
	Prefix netip.Prefix
	// Interface is the server's in this subnet; empty for Boot.Interface, or none.
	Interface           string
	First, Last, Router netip.Addr
	DNS, NTP            []netip.Addr
	Domain              string
	// MTU is 0 for not told.
	MTU          int
	Routes       []SubnetRoute
	LeaseSeconds int
}

// SubnetRoute leads to a network through a router of the subnet.
type SubnetRoute struct {
	To  netip.Prefix
	Via netip.Addr
}

// DHCP6 is booting by IPv6; the zero value means that there is none.
type DHCP6 struct {
	// Mode is stateful, stateless or off.
	Mode string
	// Address is the server's on Boot.Interface.
	Address netip.Addr
	// Peers are those of Server.Peers, in the same order.
	Peers       []netip.Addr
	RapidCommit bool
	Subnets     []Subnet6
}

// Subnet6 is one IPv6 network. Zero addresses mean that there is none.
type Subnet6 struct {
	Prefix       netip.Prefix
	First, Last  netip.Addr
	DNS          []netip.Addr
	Domain       string
	LeaseSeconds int
}

// Role is a kind of machine.
type Role struct {
	Name         string
	ControlPlane bool
	Butane       []Snippet
	Extensions   []Extension
	KernelArgs   []string
	Labels       map[string]string
	Taints       []string
}

// Extension is a system extension, ready-made when Source is set.
type Extension struct {
	Name, Source string
	// Recipe is nil for a ready-made one. Inputs are the recipe's, in its order.
	Recipe *upstream.Recipe
	Inputs []Named
}

// wants are the inputs to lock.
func (e Extension) wants() []release.Want {
	id := lock.ExtensionPrefix + lock.ID(e.Name)
	if e.Recipe == nil {
		return []release.Want{{ID: id, Source: e.Source}}
	}
	var out []release.Want
	for _, i := range e.Inputs {
		out = append(out, release.Want{ID: id + "/" + lock.ID(i.Name), Source: i.Source})
	}
	return out
}

// Snippet is a Butane file that was read and translates.
type Snippet struct {
	// File is the path as it is reported.
	File    string
	Content []byte
	// Dir is where its local references start.
	Dir string
}

// Machine is one machine.
type Machine struct {
	Name, Role, Zone string
	MACs             []net.HardwareAddr
	// UUID is in lower case.
	UUID, Serial string
	// Selector recognises it instead; empty when one of the others does.
	Selector map[selector.Field][]string
	// EK is SHA-256 of its TPM's endorsement key, hexadecimal; empty for none.
	EK      string
	Address netip.Addr
	Disk    Disk
	// Diskless: it starts from the network into its memory each time, and Disk is empty.
	Diskless  bool
	Labels    map[string]string
	LocalBoot string
	// NBP is ipxe or grub.
	NBP string
	// Quirks are names that pxe/quirk knows.
	Quirks        []string
	InstallerArgs []string
	// BMC is nil when it has none that may be used.
	BMC *BMC
	// Firewall is that of the machine, of its role and of every node, together.
	Firewall Firewall
	// Network is that of the machine over its role's over every node's.
	Network Network
}

// Disk selects the disk to install to; all conditions that are set must hold.
type Disk struct {
	Path, Serial, WWN, Model string
	MinBytes, MaxBytes       int64
}

// Wants lists every input that must be locked, sorted by nothing in particular
// but always in the same order.
func (s Spec) Wants() []release.Want {
	flatcar := func(id lock.ID, file string) release.Want {
		at := path.Join(s.Flatcar.Arch+"-usr", s.Flatcar.Version, file)
		w := release.Want{
			ID:     id,
			Source: joinSource(s.Flatcar.Mirror, at),
			Signed: &release.SignedBy{Keyring: s.Flatcar.Keyring, Primary: s.Flatcar.PrimaryKey, Form: s.Flatcar.Signature},
		}
		for _, m := range s.Flatcar.Mirrors {
			w.Mirrors = append(w.Mirrors, joinSource(m, at))
		}
		return w
	}
	wants := []release.Want{
		flatcar(lock.FlatcarImage, "flatcar_production_image.bin.bz2"),
		flatcar(lock.FlatcarPXEKernel, "flatcar_production_pxe.vmlinuz"),
		flatcar(lock.FlatcarPXEInitrd, "flatcar_production_pxe_image.cpio.gz"),
		{ID: lock.Kubeadm, Source: s.Kubernetes.Kubeadm},
		{ID: lock.Kubelet, Source: s.Kubernetes.Kubelet},
		{ID: lock.Kubectl, Source: s.Kubernetes.Kubectl},
		{ID: lock.EtcdArchive, Source: s.Etcd.Source},
		{ID: lock.CNIArchive, Source: s.CNI.Source},
		{ID: lock.Agent, Source: s.Agent},
		{ID: lock.IPXEBIOS, Source: s.Boot.IPXEBIOS},
		{ID: lock.IPXEUEFIx64, Source: s.Boot.IPXEUEFI},
	}
	if s.Flatcar.SBOM {
		wants = append(wants, flatcar(lock.FlatcarSBOM, "flatcar_production_image_sbom.json"))
	}
	for _, w := range []release.Want{
		{ID: lock.IPXEUEFIArm64, Source: s.Boot.IPXEArm64},
		{ID: lock.GRUBShim, Source: s.Boot.GRUB.Shim},
		{ID: lock.GRUB, Source: s.Boot.GRUB.GRUB},
		{ID: lock.ISOStub, Source: s.Boot.ISO.Stub},
		{ID: lock.ISOLINUX, Source: s.Boot.ISO.ISOLINUX},
		{ID: lock.ISOLDLINUX, Source: s.Boot.ISO.LDLINUX},
		{ID: lock.ISOMBR, Source: s.Boot.ISO.MBR},
	} {
		if w.Source != "" {
			wants = append(wants, w)
		}
	}
	for _, i := range s.Kubernetes.Images {
		wants = append(wants, release.Want{ID: lock.ImagesPrefix + lock.ID(i.Name), Source: i.Source})
	}
	seen := map[string]bool{}
	for _, r := range s.Roles {
		for _, e := range r.Extensions {
			if !seen[e.Name] {
				wants = append(wants, e.wants()...)
			}
			seen[e.Name] = true
		}
	}
	for _, a := range s.Addons {
		wants = append(wants, release.Want{ID: lock.AddonPrefix + lock.ID(a.Name), Source: a.Source})
	}
	return wants
}
