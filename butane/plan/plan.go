// Package plan is the complete description of a cluster: cluster.yaml and the
// lock file resolved, defaults filled in, no optionals left. Everything after it
// reads plans and never cluster.yaml.
package plan

import (
	"net"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/butane/cluster"
	"github.com/imagectl/imagectl/images/lock"
	"github.com/imagectl/imagectl/images/upstream"
	"github.com/imagectl/imagectl/pxe/selector"
)

// Plan is one cluster. Slices are sorted by name unless said otherwise.
type Plan struct {
	Cluster  string
	Identity Identity
	// PCRs are the values, SHA-256 in hexadecimal, that registers of a TPM may have; nil for
	// anything.
	PCRs map[uint][]string
	// SecondPerson is what one operator alone may not do: wipe, destroy.
	SecondPerson []string
	Flatcar      Flatcar
	Kubernetes   Kubernetes
	Etcd         Etcd
	Server       Server
	// Backup is of the server's state.
	Backup cluster.Backup
	Boot   Boot
	// Agent is the bootstrapd binary.
	Agent lock.Blob
	// Images are container image archives for every node.
	Images []lock.Blob
	Roles  []Role
	// Machines are in the order of cluster.yaml.
	Machines []Machine
	// Addons are in the order of cluster.yaml.
	Addons []Addon
}

// Flatcar is the base release.
type Flatcar struct {
	Channel, Version string
	// Arch is amd64 or arm64.
	Arch      string
	Image     lock.Blob
	PXEKernel lock.Blob
	PXEInitrd lock.Blob
	// SBOM is the release's bill of materials; the zero value when cluster.yaml
	// does not ask for it.
	SBOM lock.Blob
}

// Kubernetes is what kubeadm is told.
type Kubernetes struct {
	// Version with its leading v.
	Version string
	// Endpoint is the host:port that kubeconfigs outside the nodes use.
	Endpoint string
	// APIVIP are addresses that one control plane has at a time.
	APIVIP      []netip.Addr
	PodCIDR     netip.Prefix
	ServiceCIDR netip.Prefix
	DNSDomain   string
	// SANs are further names and addresses in the API server's certificate.
	SANs []string
	// CAKeyOnNodes: control planes have the keys of Kubernetes' CAs; otherwise the server
	// alone.
	CAKeyOnNodes              bool
	PodSecurity               cluster.PodSecurity
	Kubeadm, Kubelet, Kubectl lock.Blob
	CNI                       lock.Blob
}

// Etcd is the node side etcd.
type Etcd struct {
	// Version with its leading v.
	Version string
	Archive lock.Blob
	// Heartbeat and Election are 0 for etcd's own.
	Heartbeat, Election time.Duration
}

// Server is how nodes reach imagectl serve.
type Server struct {
	// Address on the boot network; in a running server its own.
	Address netip.Addr
	// Peers are the addresses of further servers.
	Peers []netip.Addr
	// HTTPPort serves public boot files, HTTPSPort everything else.
	HTTPPort, HTTPSPort int
	// SANs are further names and addresses in the server's certificate.
	SANs []string
	// Artefacts is the name of an upload that keeps what servers serve; empty for none.
	Artefacts string
}

// Identity says how a machine may prove who it is.
type Identity string

// The policies. With tokens, a code that an operator compares is good as well; with
// TPMs too, for a machine whose TPM is not listed.
const (
	ByApproval Identity = "approve"
	ByToken    Identity = "token"
	ByTPM      Identity = "tpm"
)

// DHCPMode says how the boot server takes part in DHCP.
type DHCPMode string

// The modes. A proxy names boot programs beside the DHCP server that gives out the
// addresses; on that server's own host it can only do so on port 4011.
const (
	DHCPAuthoritative DHCPMode = "authoritative"
	DHCPProxy         DHCPMode = "proxy"
	DHCPProxy4011     DHCPMode = "proxy-4011"
	DHCPOff           DHCPMode = "off"
)

// DHCP6Mode says how the boot server takes part in DHCPv6.
type DHCP6Mode string

// The modes: it gives out addresses, it only names boot programs, or another server
// does both.
const (
	DHCP6Stateful  DHCP6Mode = "stateful"
	DHCP6Stateless DHCP6Mode = "stateless"
	DHCP6Off       DHCP6Mode = "off"
)

// DHCP6 is booting by IPv6; the zero value means that there is none.
type DHCP6 struct {
	Mode DHCP6Mode
	// Address is the server's on Boot.Interface: boot files come from it. In a running
	// server it is its own.
	Address netip.Addr
	// Peers are those of Server.Peers, in the same order.
	Peers       []netip.Addr
	RapidCommit bool
	Subnets     []Subnet6
}

// Subnet6 is one IPv6 network.
type Subnet6 struct {
	Prefix netip.Prefix
	// First and Last bound the range of addresses, both included; both are the zero
	// value when there is none.
	First, Last  netip.Addr
	DNS          []netip.Addr
	Domain       string
	LeaseSeconds int
}

// UnknownMachines says what a machine that cluster.yaml does not list gets.
type UnknownMachines string

// The policies.
const (
	Discover UnknownMachines = "discover"
	Ignore   UnknownMachines = "ignore"
)

// NBP is what UEFI on x86-64 loads by PXE.
type NBP string

// The network boot programs.
const (
	NBPIPXE NBP = "ipxe"
	NBPGRUB NBP = "grub"
)

// Boot is the boot network.
type Boot struct {
	Interface string
	DHCP      DHCPMode
	Unknown   UnknownMachines
	Subnets   []Subnet
	// Relays are the DHCP relays that are listened to; when empty, all that are in a
	// subnet.
	Relays []netip.Addr
	// Neighbours are servers of other clusters that answer on the same network.
	Neighbours []cluster.Neighbour
	DHCP6      DHCP6
	IPXEBIOS   lock.Blob
	IPXEUEFI   lock.Blob
	// IPXEArm64 is the zero value where no machine of that kind gets iPXE.
	IPXEArm64 lock.Blob
	// NBP is that of machines that are not listed. Shim and GRUB are the zero value when
	// there is no GRUB.
	NBP  NBP
	Shim lock.Blob
	GRUB lock.Blob
	ISO  ISO
	// SecureBoot says who signs what UEFI starts; the zero value, that nobody does.
	SecureBoot cluster.SecureBoot
	// Syslog says that the server hears what machines say by syslog.
	Syslog bool
	// InstallerArgs are kernel arguments of the netbooted installer: the
	// lock-down's, then cluster.yaml's (console=...).
	InstallerArgs []string
}

// ISO holds the programs that start the installer from an ISO image; the zero
// value means that there shall be none, zero blobs but Stub that only UEFI boots it.
type ISO struct{ Stub, ISOLINUX, LDLINUX, MBR lock.Blob }

// Subnet is one DHCP subnet.
type Subnet struct {
	Prefix netip.Prefix
	// Interface is the server's in this subnet; empty for Boot.Interface, or none.
	Interface string
	// First and Last bound the dynamic range, both included; both are the zero
	// value when there is none.
	First, Last netip.Addr
	// Router may be the zero value.
	Router netip.Addr
	DNS    []netip.Addr
	NTP    []netip.Addr
	Domain string
	// MTU is 0 for not told.
	MTU    int
	Routes []cluster.SubnetRoute
	// LeaseSeconds is the lifetime of a lease.
	LeaseSeconds int
}

// Role is a kind of machine. Its image is built once.
type Role struct {
	Name         string
	ControlPlane bool
	// Butane are snippets in the order of cluster.yaml.
	Butane     []Snippet
	Extensions []Extension
	KernelArgs []string
	// Diskless: some of its machines are, and load its extensions one by one.
	Diskless bool
	Labels   map[string]string
	// Taints are key=value:effect.
	Taints []string
}

// Snippet is a Butane file.
type Snippet struct {
	// File is the path as written in cluster.yaml, for messages.
	File    string
	Content []byte
	// Dir is the directory that its local file references start from.
	Dir string
}

// Extension is a system extension of the user's.
type Extension struct {
	Name string
	// Blob is the ready-made image; the zero value when a recipe makes it.
	Blob lock.Blob
	// Recipe is nil for a ready-made image. Inputs are the recipe's, in its order.
	Recipe *upstream.Recipe
	Inputs []lock.Blob
}

// Machine is one machine of cluster.yaml.
type Machine struct {
	Name string
	Role string
	Zone string
	// MACs, UUID and Serial are what it is recognised by, or else Selector (pxe/selector).
	MACs   []net.HardwareAddr
	UUID   string
	Serial string
	// Selector is patterns by field.
	Selector map[selector.Field][]string
	// EK is SHA-256 of its TPM's endorsement key (DER SubjectPublicKeyInfo), hexadecimal;
	// empty for one that an operator accepts.
	EK string
	// Address is its reserved address; always set under DHCPAuthoritative.
	Address netip.Addr
	Disk    DiskRule
	// Diskless: it starts from the network into its memory each time, and Disk is empty.
	Diskless bool
	Labels   map[string]string
	// LocalBoot is how iPXE continues with the own disk: exit, sanboot or poweroff.
	LocalBoot string
	NBP       NBP
	// Quirks are names of firmware quirks that the machine has (pxe/quirk).
	Quirks []string
	// InstallerArgs are for its installer only.
	InstallerArgs []string
	// BMC is nil when it has none that may be used.
	BMC *cluster.BMC
	// Firewall is what opens more of the machine than the defaults do.
	Firewall cluster.Firewall
	// Network is how it is connected; the zero value, by DHCP on every card.
	Network cluster.Network
}

// DiskRule selects the disk to install to. All set conditions must hold and
// exactly one disk must match.
type DiskRule struct {
	Path   string
	Serial string
	WWN    string
	// Model is a path.Match pattern.
	Model string
	// MinBytes and MaxBytes are 0 when not set.
	MinBytes, MaxBytes int64
}

// Addon is a manifest that is applied once the API server runs.
type Addon struct {
	Name string
	Blob lock.Blob
}
