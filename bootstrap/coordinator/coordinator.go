// Package coordinator decides what each machine is to do next, from what the
// plan wants, what machines last said and what was chosen before. It is pure.
//
// What may happen only once in a cluster's life, the first etcd member and
// kubeadm init, hangs on Choices: Choose advances them, the caller stores them,
// and only stored choices reach Direct. So a server that dies at any moment
// never tells two machines to start a cluster.
package coordinator

import (
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Node is one machine of the plan with what is known about it.
type Node struct {
	Name         string
	ControlPlane bool
	// Zone is cluster.yaml's word for where it is; empty for none.
	Zone  string
	State machine.State
	// Seen is what it last said; nil when it has not called lately.
	Seen *Seen
	// Gone: it has not called for long, and a server was there to hear it.
	Gone bool
	// Former: it was a node of Kubernetes before it was installed anew, which may still know
	// that one.
	Former bool
	// Lost is the boot of the system that it ran when it was retired or replaced, and whose
	// node Kubernetes may still know; empty for none.
	Lost string
}

// Seen is a machine's own report.
type Seen struct {
	// Installer: the netbooted system in memory calls, not the installed one.
	Installer bool
	// EtcdHealthy: its member answers and is no learner.
	EtcdHealthy bool
	// EtcdMember: it is a member, learners included.
	EtcdMember bool
	// EtcdEmpty: it has looked, and there is no data of etcd on its disk.
	EtcdEmpty bool
	// EtcdMembers are the names on its member's list; empty when it does not answer.
	EtcdMembers []string
	// EtcdAlone is the last Choices.EtcdAloneID that it has done.
	EtcdAlone string
	// EtcdSnapshot is the SHA-256 of Choices.EtcdSnapshot when it has that file, EtcdStopped
	// Choices.EtcdAloneID when it has stopped its etcd for it.
	EtcdSnapshot, EtcdStopped string
	// Etcd is what its upkeep hangs on.
	Etcd Keeping
	// APIServerReady: its API server answers /readyz.
	APIServerReady bool
	// Joined: kubeadm init or join is complete.
	Joined bool
	// NodeReady: its Kubernetes node is Ready.
	NodeReady bool
	// AddonsApplied: every add-on is applied (the node that ran init).
	AddonsApplied bool
	// Certificates are those that kubeadm made on it.
	Certificates Certificates
	// Outdated: its API server runs without what Choices.Policy asks for, or with a
	// certificate that lacks an address.
	Outdated bool
	// EncryptionLoaded are the names of the keys that its API server has loaded, in their
	// order; empty while it has not said so.
	EncryptionLoaded []string
	// EncryptionRewritten is the key with which it has written all Secrets anew.
	EncryptionRewritten string
	// BootID is of the system that calls.
	BootID string
	// CATurn is the last CARotation.Turn that it has taken, and CADone the last that it is through
	// with. CAStale: its etcd runs with other CAs than those on its disk.
	CATurn, CADone uint64
	CAStale        bool
	// TimingStale: its etcd runs with other times than cluster.yaml has.
	TimingStale bool
	// RemovesFormer: it knows how to remove Node objects. FormerGone are those that it has
	// found gone, or has removed.
	RemovesFormer bool
	FormerGone    []Former
	// Drains: it knows how to drain nodes.
	Drains bool
}

// Choices are decisions that outlive everything. The zero value is a cluster
// that does not exist yet. A set field never changes, but that EtcdFirst and KubernetesFirst name
// another machine when theirs is retired before it was done, and no name leaves a list but
// that of a voter which was taken off etcd's own or was lost; EtcdJoining, EtcdLeaving,
// EtcdRemover, EtcdTending, EtcdRestarting, EtcdCA, EtcdAsked, EtcdAlone, EtcdSnapshot, EtcdActing, EtcdSaving and Renewing come and go, and the keys
// of Encryption follow each other. Where nothing is left but a snapshot, Kubernetes is formed again
// (begunAnew).
type Choices struct {
	// EtcdFirst is the machine that starts the etcd cluster.
	EtcdFirst string `json:"etcdFirst,omitempty"`
	// EtcdFormed: it has been seen healthy once; nothing starts a cluster again.
	EtcdFormed bool `json:"etcdFormed,omitempty"`
	// EtcdVoters are the machines that have been seen as voting members, sorted.
	EtcdVoters []string `json:"etcdVoters,omitempty"`
	// EtcdJoining is the only machine that may change etcd's membership now.
	EtcdJoining string `json:"etcdJoining,omitempty"`
	// EtcdLeaving is the machine whose member is taken off etcd's list now, or was and
	// that must not come back. An operator's retiring sets it for a voter that has to
	// be well for that.
	EtcdLeaving string `json:"etcdLeaving,omitempty"`
	// EtcdRemover is the machine that does it.
	EtcdRemover string `json:"etcdRemover,omitempty"`
	// EtcdTending is the only machine that may defragment the database of its member now.
	EtcdTending string `json:"etcdTending,omitempty"`
	// EtcdRestarting is the only machine that may start its etcd anew now, for other CAs or other times.
	EtcdRestarting string `json:"etcdRestarting,omitempty"`
	// EtcdCA is which CAs of etcd are trusted; NextEtcdCA advances it.
	EtcdCA CARotation `json:"etcdCA,omitzero"`
	// EtcdAlone is the voter that goes on as etcd's only member, because all others are lost,
	// until it has done so. EtcdAloneID names that once, and stays.
	EtcdAlone   string `json:"etcdAlone,omitempty"`
	EtcdAloneID string `json:"etcdAloneID,omitempty"`
	// EtcdSnapshot: it begins anew out of this file, and not with the data that it has.
	EtcdSnapshot Snapshot `json:"etcdSnapshot,omitzero"`
	// EtcdActing: members may have been told to stop or to begin, so it is not called off any more.
	EtcdActing bool `json:"etcdActing,omitempty"`
	// EtcdSaving is the machine of whose member a snapshot is being taken.
	EtcdSaving string `json:"etcdSaving,omitempty"`
	// EtcdRestores is how often that was asked for.
	EtcdRestores uint64 `json:"etcdRestores,omitempty"`
	// EtcdAsked are the machines whose databases an operator wants defragmented, sorted.
	EtcdAsked []string `json:"etcdAsked,omitempty"`
	// KubernetesFirst is the machine that runs kubeadm init.
	KubernetesFirst string `json:"kubernetesFirst,omitempty"`
	// ServerSigns: the keys of Kubernetes' CAs stay on the server. It is set with
	// KubernetesFirst, by whoever asks, and never changes.
	ServerSigns bool `json:"serverSigns,omitempty"`
	// KubernetesFormed: init is complete and its API server was ready once.
	KubernetesFormed bool `json:"kubernetesFormed,omitempty"`
	// APIServers are the machines whose API server was ready once, sorted.
	APIServers []string `json:"apiServers,omitempty"`
	// Renewing is the only control plane that may renew what kubeadm made now, or start its
	// API server with another policy.
	Renewing string `json:"renewing,omitempty"`
	// Policy: API servers keep an audit log, hold pods to Pod Security and encrypt Secrets. It
	// is set with KubernetesFirst, by whoever asks, or later by an operator.
	Policy bool `json:"policy,omitempty"`
	// Encryption is how Secrets are encrypted; NextEncryption advances it.
	Encryption Encryption `json:"encryption,omitzero"`
}

// Equal says whether nothing differs.
func (c Choices) Equal(o Choices) bool {
	return c.Policy == o.Policy && c.Encryption.Equal(o.Encryption) && slices.Equal(c.EtcdVoters, o.EtcdVoters) && slices.Equal(c.APIServers, o.APIServers) && c.EtcdJoining == o.EtcdJoining &&
		c.Renewing == o.Renewing && c.EtcdLeaving == o.EtcdLeaving && c.EtcdRemover == o.EtcdRemover &&
		c.EtcdTending == o.EtcdTending && c.EtcdRestarting == o.EtcdRestarting && c.EtcdCA.Equal(o.EtcdCA) && c.EtcdAlone == o.EtcdAlone && c.EtcdAloneID == o.EtcdAloneID && c.EtcdSnapshot == o.EtcdSnapshot && c.EtcdRestores == o.EtcdRestores && c.EtcdActing == o.EtcdActing && c.EtcdSaving == o.EtcdSaving && slices.Equal(c.EtcdAsked, o.EtcdAsked) &&
		c.ServerSigns == o.ServerSigns && c.EtcdFirst == o.EtcdFirst && c.EtcdFormed == o.EtcdFormed && c.KubernetesFirst == o.KubernetesFirst && c.KubernetesFormed == o.KubernetesFormed
}

// Choose advances the choices. Nodes are in the order of cluster.yaml, which is
// the order of preference.
func Choose(nodes []Node, c Choices) Choices {
	c = chooseEtcdFirst(nodes, c)
	if n := find(nodes, c.EtcdFirst); n != nil && n.Seen != nil && n.Seen.EtcdHealthy {
		c.EtcdFormed = true
	}
	c = chooseKubernetesFirst(nodes, chooseRestarting(nodes, chooseTending(nodes, chooseMember(nodes, c))))
	if n := find(nodes, c.KubernetesFirst); n != nil && n.Seen != nil && n.Seen.Joined && n.Seen.APIServerReady {
		c.KubernetesFormed = true
	}
	if c.KubernetesFormed {
		for _, n := range nodes {
			if n.ControlPlane && n.Seen != nil && n.Seen.Joined && n.Seen.APIServerReady {
				c.APIServers = with(c.APIServers, n.Name)
			}
		}
	}
	return chooseRenewing(nodes, c)
}

// with returns a sorted list that holds name too; list is left alone.
func with(list []string, name string) []string {
	i, found := slices.BinarySearch(list, name)
	if found {
		return list
	}
	return slices.Insert(slices.Clone(list), i, name)
}

// working states are those in which an installed system may be put to work.
func working(s machine.State) bool {
	switch s {
	case machine.Installed, machine.Enrolled, machine.Member, machine.Ready, machine.Failed:
		return true
	}
	return false
}

func find(nodes []Node, name string) *Node {
	for i := range nodes {
		if name != "" && nodes[i].Name == name {
			return &nodes[i]
		}
	}
	return nil
}

// Kind is what a directive tells a machine.
type Kind string

// The kinds.
const (
	Wait    Kind = "wait"
	Install Kind = "install"
	Reboot  Kind = "reboot"
	Run     Kind = "run"
)

// EtcdAction is what a node does about etcd.
type EtcdAction string

// The actions about etcd.
const (
	EtcdNone      EtcdAction = "none"
	EtcdWait      EtcdAction = "wait"
	EtcdBootstrap EtcdAction = "bootstrap"
	EtcdJoin      EtcdAction = "join"
	EtcdRun       EtcdAction = "run"
	EtcdAlone     EtcdAction = "alone"
)

// KubernetesAction is what a node does about Kubernetes.
type KubernetesAction string

// The actions about Kubernetes.
const (
	KubernetesWait             KubernetesAction = "wait"
	KubernetesInit             KubernetesAction = "init"
	KubernetesJoinControlPlane KubernetesAction = "join-control-plane"
	KubernetesJoinWorker       KubernetesAction = "join-worker"
	KubernetesRun              KubernetesAction = "run"
)

// Directive is what one machine is to do.
type Directive struct {
	Kind Kind
	// Code and Reason explain a Wait or a Reboot.
	Code, Reason string
	// The rest is set for Run. A wait has its reason, and so has joining etcd.
	Etcd       EtcdAction
	EtcdReason string
	// EtcdStop: it stops its etcd while it waits. EtcdBegin: nothing holds it up to begin anew
	// out of Choices.EtcdSnapshot.
	EtcdStop, EtcdBegin bool
	// EtcdRemove is the machine whose member this one takes off etcd's list.
	EtcdRemove string
	// EtcdRestart: it starts its etcd anew, where that runs with other CAs or other times.
	EtcdRestart bool
	// Tend: it tends the database of its own member; Asked: an operator wants it to.
	Tend, TendAsked  bool
	Kubernetes       KubernetesAction
	KubernetesReason string
	// First says that this machine applies the add-ons: the one that ran init, or another
	// control plane when that one is gone for good.
	First bool
	// Renew: it renews the certificates that kubeadm made on it, and starts its API server
	// with the policy of now.
	Renew bool
	// Rewrite: it writes all Secrets anew.
	Rewrite bool
}

// Direct says what a machine that calls is to do. c must be stored already.
func Direct(nodes []Node, c Choices, name string) Directive {
	n := find(nodes, name)
	if n == nil || n.Seen == nil {
		return Directive{Kind: Wait, Code: "not-in-plan", Reason: "cluster.yaml does not list this machine any more"}
	}
	if n.Seen.Installer {
		return installer(*n)
	}
	d := Directive{Kind: Run, First: addonsOn(nodes, c) == name}
	d.Etcd, d.EtcdReason = etcd(nodes, *n, c)
	d.EtcdStop = d.Etcd == EtcdWait && c.EtcdActing && stops(nodes, c, name)
	d.EtcdBegin = d.Etcd == EtcdAlone && c.EtcdActing && c.beginsAnew() && SnapshotWaits(nodes, c) == ""
	if c.EtcdRemover == name {
		d.EtcdRemove = c.EtcdLeaving
	}
	d.Tend = c.EtcdTending == name && d.Etcd == EtcdRun
	d.EtcdRestart = c.EtcdRestarting == name && d.Etcd == EtcdRun
	d.TendAsked = d.Tend && slices.Contains(c.EtcdAsked, name)
	d.Kubernetes, d.KubernetesReason = kubernetes(nodes, *n, c)
	d.Renew = d.Kubernetes == KubernetesRun && c.Renewing == name
	d.Rewrite = d.Kubernetes == KubernetesRun && c.Encryption.Stage == EncryptionRewriting && c.Encryption.Rewriter == name
	return d
}

// addonsOn is the machine that applies the add-ons. That two do for a moment, when the
// first comes back, does no harm: each applies the same.
func addonsOn(nodes []Node, c Choices) string {
	if n := find(nodes, c.KubernetesFirst); n != nil && n.ControlPlane && working(n.State) {
		return n.Name
	}
	for _, name := range c.APIServers {
		if n := find(nodes, name); n != nil && n.ControlPlane && working(n.State) {
			return name
		}
	}
	return c.KubernetesFirst
}

func installer(n Node) Directive {
	switch n.State {
	case machine.Armed, machine.Installing:
		return Directive{Kind: Install}
	case machine.Installed:
		return Directive{Kind: Reboot, Code: "installed", Reason: "the image is on the disk and verified"}
	case machine.Failed:
		return Directive{Kind: Wait, Code: "failed", Reason: fmt.Sprintf("the last attempt failed; arm it again: imagectl machines arm %s", n.Name)}
	default:
		return Directive{Kind: Wait, Code: "not-armed", Reason: fmt.Sprintf("%s is %s; to install it: imagectl machines arm %s", n.Name, n.State, n.Name)}
	}
}

// kubernetes looks at choices, which only advance, and not at how healthy etcd or
// an API server is this moment: a hiccup must not call back a kubeadm that is at
// work, and kubeadm waits for both by itself.
func kubernetes(nodes []Node, n Node, c Choices) (KubernetesAction, string) {
	if n.Seen.Joined {
		return KubernetesRun, ""
	}
	if c.beginsAnew() {
		return KubernetesWait, "etcd begins anew first"
	}
	action, why := joins(n, c)
	if action != KubernetesJoinControlPlane && action != KubernetesJoinWorker {
		return action, why
	}
	// kubeadm would wait until Kubernetes takes the former node for lost.
	if by := remover(nodes, c); by != "" && by != n.Name && n.Former && !formerGone(nodes, n) {
		return KubernetesWait, fmt.Sprintf("%s removes the Node object of the former %s first", by, n.Name)
	}
	return action, ""
}

// joins says how a machine that is no node of Kubernetes becomes one.
func joins(n Node, c Choices) (KubernetesAction, string) {
	if n.ControlPlane {
		switch {
		case c.KubernetesFirst == "":
			return KubernetesWait, "etcd is not healthy yet"
		case !c.KubernetesFormed && c.KubernetesFirst == n.Name:
			return KubernetesInit, ""
		case !c.KubernetesFormed:
			return KubernetesWait, fmt.Sprintf("%s has not finished kubeadm init", c.KubernetesFirst)
		case !slices.ContainsFunc(c.APIServers, func(s string) bool { return s != n.Name }) && c.KubernetesFirst == n.Name:
			return KubernetesWait, fmt.Sprintf("%s ran kubeadm init before and has lost what it made; init never runs twice", n.Name)
		case !slices.Contains(c.EtcdVoters, n.Name) || n.Seen.EtcdEmpty || c.EtcdJoining == n.Name:
			return KubernetesWait, "its etcd member has no vote yet"
		default:
			return KubernetesJoinControlPlane, ""
		}
	}
	switch {
	case c.KubernetesFirst == "":
		return KubernetesWait, "no control plane has started yet"
	case !c.KubernetesFormed:
		return KubernetesWait, fmt.Sprintf("%s has not finished kubeadm init", c.KubernetesFirst)
	default:
		return KubernetesJoinWorker, ""
	}
}
