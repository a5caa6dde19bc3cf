// Package boot is the vocabulary of netbooting: who is asking, and what it
// gets. It knows no protocol and no cluster.yaml; the protocol servers ask a
// Source, which somebody else implements.
package boot

import (
	"net"
	"net/netip"
	"strings"
	"time"
)

// Firmware is what runs before the network boot program.
type Firmware string

// The firmware kinds that a client can announce (RFC 4578 option 93 and the
// IANA "Processor Architecture Types" registry).
const (
	BIOS      Firmware = "bios"
	UEFIx64   Firmware = "uefi-x64"
	UEFIarm64 Firmware = "uefi-arm64"
)

// uefi begins the name of every UEFI; what follows is its processor.
const uefi = "uefi-"

// OtherUEFI is UEFI on a processor that nothing is served for, by its name.
func OtherUEFI(processor string) Firmware { return Firmware(uefi + processor) }

// Arch is the processor that firmware of a kind runs on, as flatcar.arch writes it: amd64,
// arm64, or one that is neither; empty when nobody said which firmware it is.
func (f Firmware) Arch() string {
	switch f {
	case BIOS, UEFIx64:
		return "amd64"
	}
	return strings.TrimPrefix(string(f), uefi)
}

// Machine is what a client says about itself. Every field but MAC may be zero.
// Nothing secret is ever granted on it.
type Machine struct {
	MAC net.HardwareAddr
	// UUID is the SMBIOS UUID in lower-case text form.
	UUID     string
	Serial   string
	Firmware Firmware
	// Network is where its DHCP request came from: the relay's address in its network,
	// or ours there. CircuitID and RemoteID are what a relay said of its switch port
	// (option 82), as pxe/selector writes them. All are unset in requests by HTTP.
	Network             netip.Addr
	CircuitID, RemoteID string
	// Here says that the machine is there, as far as a network can tell: it asks by DHCP,
	// or from an address that DHCP has given to its card. Of others, who may say what they
	// like, nothing is remembered.
	Here bool
	// Holds are the machines of cluster.yaml whose addresses its card has by leases that go
	// on.
	Holds []string
}

// Program is what UEFI on x86-64 loads by PXE.
type Program string

// The programs. BIOS gets iPXE in any case, and so does who boots by another protocol.
const (
	IPXE Program = ""
	// GRUB is loaded by shim, which is loaded by the firmware.
	GRUB Program = "grub"
)

// Action is what happens to a machine that netboots.
type Action string

// The actions.
const (
	// Install: boot the installer, which may write the disk its rule selects.
	Install Action = "install"
	// Discover: boot the installer without permission to write any disk.
	Discover Action = "discover"
	// Run: boot the machine's own system into its memory; it has no disk to install to.
	Run Action = "run"
	// Local: continue with the machine's own disk.
	Local Action = "local"
	// None: stay silent.
	None Action = "none"
)

// Loads says whether a machine gets a kernel from us.
func (a Action) Loads() bool { return a == Install || a == Discover || a == Run }

// Answer is the decision for one machine, with its reason.
type Answer struct {
	Action Action
	// Name is the machine's name in cluster.yaml; empty when unknown.
	Name string
	// Address is the machine's reserved address; the zero value means none.
	Address netip.Addr
	// Code is a stable word for metrics and tests (not-armed, armed, unknown-machine, ...).
	Code string
	// Reason is one sentence for people.
	Reason string
	// Refused says that somebody has to act before the machine gets further.
	Refused bool
	// Told says that nothing but the machine's own screen can tell whoever stands before
	// it: it gets iPXE by any protocol, which shows Reason for a while before it goes on.
	Told bool
	// LocalBoot says how to continue with the own disk: exit, sanboot or poweroff.
	LocalBoot string
	Program   Program
	// Quirks are names that cluster.yaml gives the machine (pxe/quirk).
	Quirks []string
	// Kernel, Initrd are set for what Loads.
	Kernel Blob
	Initrd []Blob
	// Configured says that the last of Initrd brings the first Ignition config, so that
	// the kernel has nothing to ask a server for.
	Configured bool
	// Args are kernel arguments without initrd= and ignition.config.url=.
	Args []string
}

// Blob names immutable content by digest.
type Blob struct {
	Name   string
	SHA256 string
	// Size in bytes.
	Size int64
}

// Source decides. Decide must be quick and must not touch a disk or a network:
// it is called per packet. Ignition is called once per boot. Both are safe for
// concurrent use.
type Source interface {
	Decide(Machine) Answer
	// Ignition returns the first Ignition config of a machine whose answer Loads. It
	// contains no secret.
	Ignition(Machine) ([]byte, error)
}

// Subnet is one IPv4 network in which DHCP gives out addresses.
type Subnet struct {
	Prefix netip.Prefix
	// First and Last bound the dynamic range, both included; both are the zero
	// value when there is none.
	First, Last netip.Addr
	// Router may be the zero value.
	Router netip.Addr
	DNS    []netip.Addr
	NTP    []netip.Addr
	// Domain may be empty.
	Domain string
	// MTU in bytes is told to who asks for it; 0 for nobody.
	MTU int
	// Routes are told to who asks for them, besides Router.
	Routes []Route
	// Lease is the lifetime of a lease.
	Lease time.Duration
}

// Route leads to a network through a router of the subnet. It is masked, and not the default.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

// Network is what DHCP knows besides single machines. It is immutable.
type Network struct {
	Subnets []Subnet
	// Reserved holds the machine's name for every reserved address: nobody else
	// gets it.
	Reserved map[netip.Addr]string
	// Proxy says that another server gives out the addresses here; ours only names
	// boot programs.
	Proxy bool
	// Relays are the relay agents that are listened to, by the address they put into
	// requests (giaddr). When empty, they are all whose address is in one of Subnets.
	Relays []netip.Addr
	// Neighbours are servers of other clusters that answer machines of theirs here. Where
	// there are some, whoever is not ours is left to them: nobody is refused an address that
	// one of them may have given.
	Neighbours []netip.Addr
	// OnlyListed says that nobody is answered who is not in cluster.yaml. It counts only
	// where there are Neighbours.
	OnlyListed bool
}

// CodeNeighbour is the code of answers to the machines of Network.Neighbours.
const CodeNeighbour = "neighbour"

// Network6 is what DHCPv6 knows besides single machines. It is immutable.
type Network6 struct {
	// Subnets: that of the server's address is the one without a relay.
	Subnets []Subnet6
	// Stateless says that another server, or nobody, gives out the addresses here; ours
	// only names boot programs.
	Stateless bool
	// RapidCommit allows two messages instead of four: the first one gives the address.
	// It is for a network without another DHCPv6 server.
	RapidCommit bool
}

// Subnet6 is one IPv6 network in which DHCPv6 answers.
type Subnet6 struct {
	Prefix netip.Prefix
	// First and Last bound the range of addresses, both included; both are the zero
	// value when there is none.
	First, Last netip.Addr
	DNS         []netip.Addr
	// Domain may be empty.
	Domain string
	// Lease is the lifetime of a lease.
	Lease time.Duration
}

// Stage is a step of the boot path that a server has seen.
type Stage string

// The stages in order.
const (
	StageDHCP     Stage = "dhcp"
	StageNBP      Stage = "nbp"
	StageScript   Stage = "script"
	StageKernel   Stage = "kernel"
	StageInitrd   Stage = "initrd"
	StageIgnition Stage = "ignition"
	// StageEnrolled: the installer's key is approved.
	StageEnrolled Stage = "enrolled"
)

// Event is one observation on the boot path.
type Event struct {
	At      time.Time
	Machine Machine
	Stage   Stage
	// Detail is one sentence: what was asked, what was answered, and why.
	Detail string

	// Name is the machine's in cluster.yaml; empty when it is not there.
	Name string
	// Firmware says that the machine's own firmware asks, not what it has loaded:
	// it has just started. Set for StageDHCP, and for all that UEFI HTTP boot asks: it
	// gets a program or, as StageScript, a refusal.
	Firmware bool
	// Action is the answer of StageScript, and of StageDHCP to UEFI HTTP boot.
	Action Action
	// Offer is what a StageDHCP event offered; empty for none. Whether the machine takes
	// it is known by its next request.
	Offer Offer
	// Refusal is set when the machine cannot go on.
	Refusal Refusal
}

// Offer is what DHCP offers to a machine that has not asked for it yet.
type Offer string

// The offers.
const (
	// OfferAddress: an address, with the boot program.
	OfferAddress Offer = "address"
	// OfferProgram: a boot program only; another server gives the address.
	OfferProgram Offer = "program"
)

// Refusal is a no with its reason. The zero value is none.
type Refusal struct {
	// Code is a stable word for metrics and tests, Reason one sentence for people.
	Code, Reason string
}

// Stages returns every stage, in the order of a boot.
func Stages() []Stage {
	return []Stage{StageDHCP, StageNBP, StageScript, StageKernel, StageInitrd, StageIgnition, StageEnrolled}
}

// Recorder takes events; it must not block.
type Recorder interface {
	Record(Event)
}
