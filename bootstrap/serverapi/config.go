package serverapi

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/backup/etcdsnap"
	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// Config is what a Server works with. Fields are needed unless said otherwise.
type Config struct {
	Cluster string
	// Version of this program, for status.
	Version string
	// Machines are in the order of cluster.yaml.
	Machines   []Machine
	Kubernetes Kubernetes
	Etcd       Etcd
	// IgnoreUnknown turns machines away that cluster.yaml does not list.
	IgnoreUnknown bool
	// Tokens lets machines enrol themselves with a token (identity.policy).
	Tokens bool
	// TPM makes machines prove themselves by their TPM (identity.policy).
	TPM bool
	// PCRs is what the registers of a machine's TPM may hold when its key is let in or may be
	// accepted; nil for anything.
	PCRs tpm.PCRPolicy
	// SecondPerson is what one person alone may not do.
	SecondPerson []Danger
	// NodeServers are the https URLs that installed nodes call.
	NodeServers []string
	// ServerNames and ServerAddresses are what clients reach this server by.
	ServerNames     []string
	ServerAddresses []netip.Addr

	Store *store.Store
	// Boot explains the boot path; nil when this server boots nobody.
	Boot BootPath
	// Pages are served beside the calls.
	Pages []Page
	// Asked hears of each answer to an enrolment request; nil for nobody. It must not
	// block.
	Asked func(Asked)
	// Backups makes backups of the state; nil when cluster.yaml asks for none.
	Backups Backups
	// EtcdSnapshots says where snapshots of the cluster's etcd go, and when they are taken; nil when
	// cluster.yaml asks for none. Cluster, Program, Own, Max, Now and Log are filled in.
	EtcdSnapshots *etcdsnap.Config
	// BMC reaches machines' management controllers; nil when there are none.
	BMC BMC
	// Lifetimes of certificates; the zero value means the defaults.
	Lifetimes pki.Lifetimes
	Now       func() time.Time
	// ClockIsRight: Now is believed although the audit log has entries of a later time
	// (ClockError), which is written into it.
	ClockIsRight bool
	// Rand makes serial numbers and arming ids.
	Rand io.Reader
	Log  *slog.Logger
}

// Machine is one machine of the plan.
type Machine struct {
	Name, Role, Zone string
	ControlPlane     bool
	// MACs and UUID are lower case.
	MACs         []string
	UUID, Serial string
	// EK is the digest of its TPM's endorsement key (tpm.Attested); empty for one that
	// an operator accepts with the code.
	EK string
	// Address may be the zero value; then a node is known by the address that it
	// calls from.
	Address netip.Addr
	Labels  map[string]string
	Taints  []string
	Disk    *api.DiskRule
	// Diskless: there is nothing to install; it comes with a new key at each start.
	Diskless bool
	// Image is what an installation writes.
	Image Image
	// Files are written to ROOT besides node.json.
	Files []*api.File
	// Network is how the installed machine is connected; the same as Files have of it, with
	// the secrets that only a node is given.
	Network *api.Network
	// FirewallOff is the reason why it has no firewall; empty when it has one, which
	// lets in what Allow says besides the cluster's machines.
	FirewallOff string
	Allow       []*api.Firewall_Allow
}

// Image is an install stream.
type Image struct {
	URL, SHA256 string
	// Size is that of the compressed stream, RawSize that of the disk image.
	Size, RawSize uint64
	// RawSHA256 is the digest of the uncompressed stream.
	RawSHA256 string
}

// Etcd is how members of etcd keep time, in whole milliseconds; 0 for etcd's own. Members that run
// with other times are started anew, one at a time.
type Etcd struct {
	Heartbeat, Election time.Duration
}

// Kubernetes is what nodes are told about the cluster.
type Kubernetes struct {
	Version, PodCIDR, ServiceCIDR, DNSDomain string
	// Endpoint is the host:port that kubeconfigs outside the nodes use; empty
	// means the first of APIVIP, or the first control plane's address.
	Endpoint string
	// APIVIP are addresses that one control plane has at a time; empty for none.
	APIVIP []netip.Addr
	SANs   []string
	// CAKeyOnNodes puts the keys of Kubernetes' CAs on the control planes, as kubeadm
	// does; otherwise they stay on the server, which signs. It is looked at once, when
	// the cluster is made.
	CAKeyOnNodes bool
	PodSecurity  PodSecurity
	Addons       []*api.Addon
}

// PodSecurity is which pods API servers take: levels of Kubernetes' Pod Security Standards.
// The zero value is baseline, and restricted for audit and warnings.
type PodSecurity struct {
	Enforce, Audit, Warn string
	// Exempt are namespaces in which all is allowed, besides kube-system.
	Exempt []string
}

func (p PodSecurity) withDefaults() PodSecurity {
	p.Enforce, p.Audit, p.Warn = cmp.Or(p.Enforce, "baseline"), cmp.Or(p.Audit, "restricted"), cmp.Or(p.Warn, "restricted")
	return p
}

// Page is what people and monitoring fetch with GET.
type Page struct {
	// Path is the whole path; nothing below it is served.
	Path    string
	Handler http.Handler
	// Open needs no certificate; otherwise it takes an operator who may read.
	Open bool
}

// Asked is an answer to an enrolment request.
type Asked struct {
	At time.Time
	// Machine is its name in cluster.yaml; empty for one that is not there. MACs are
	// what it says it has.
	Machine string
	MACs    []string
	// Approved: it got a certificate. Waits: an operator has to compare its code.
	// Otherwise it was refused. Code and Reason are what it was told.
	Approved, Waits bool
	Code, Reason    string
}

// Backups makes backups of the server's state.
type Backups interface {
	// Save makes one where they belong.
	Save(ctx context.Context) (files.File, error)
	// Stream writes one, and returns what its file is called.
	Stream(ctx context.Context, w io.Writer) (string, error)
	State() backup.State
	// Open opens the newest good one; an error when name is another.
	Open(name string) (io.ReadCloser, error)
}

// BMC reaches the management controllers of machines. Its errors are for people:
// they say which BMC, what it answered and what to do.
type BMC interface {
	// Names tells how a machine's BMC is called; false where it has none.
	Names(machine string) (string, bool)
	// Power asks for an action and returns the power state after it.
	Power(ctx context.Context, machine string, a api.PowerMachineRequest_Action) (string, error)
	// Boot starts a machine for its installation, once. Before anything is switched it
	// asks still, and ends with its error; tell hears of every step.
	Boot(ctx context.Context, machine string, still func() error, tell func(string)) error
	// Media says whether Boot starts a machine from virtual media; then Eject takes them
	// out.
	Media(machine string) bool
	Eject(ctx context.Context, machine string) error
}

// BootPath explains what a machine gets when it netboots.
type BootPath interface {
	// Explain takes a MAC address, or a machine's name in cluster.yaml; false when
	// it is neither.
	Explain(machine string) (BootAnswer, bool)
	// Last returns the newest event of any of these MAC addresses.
	Last(macs []string) (BootEvent, bool)
	// Named says which machine of cluster.yaml booted with one of these MAC addresses,
	// where the file names it by a selector; empty when none did, or more than one.
	Named(macs []string) string
	// Notices are sentences on what is wrong with the boot network itself.
	Notices() []string
}

// BootAnswer is an answer on the boot path with its reason.
type BootAnswer struct {
	// Action is install, discover, local or none.
	Action, Code, Reason string
	// Machine is its name; empty when unknown.
	Machine string
	// Script is the iPXE script it would be given.
	Script string
	// Events are oldest first.
	Events []BootEvent
	// Console is what it said last by syslog, oldest first; the stage is the program
	// that speaks.
	Console []BootEvent
}

// BootEvent is one observation on the boot path.
type BootEvent struct {
	At            time.Time
	Stage, Detail string
}
