package store

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Machine is the record of one machine. A record that came out of a Store is
// shared and must not be changed; Clone it first.
type Machine struct {
	// Name is its name in cluster.yaml, or unknown-… for one that is not there.
	Name  string        `json:"name"`
	State machine.State `json:"state"`
	// Since is when it came into that state.
	Since time.Time `json:"since"`
	// Reason is one sentence on why it is in that state; often empty.
	Reason string `json:"reason,omitempty"`
	// Known says that cluster.yaml lists it.
	Known bool `json:"known"`
	// FirstSeen is when the record was made.
	FirstSeen time.Time `json:"firstSeen"`

	// Key is the approved key; nil before the first approval.
	Key *Key `json:"key,omitempty"`
	// Pending are keys that wait for an operator, oldest first.
	Pending []Key `json:"pending,omitempty"`
	// Asked counts the keys that asked since an operator last decided about one.
	Asked int `json:"asked,omitempty"`
	// Rejected are fingerprints of keys that an operator turned down, oldest first.
	Rejected []string `json:"rejected,omitempty"`

	// TPM is what the approved key was proven by; nil for none.
	TPM *TPM `json:"tpm,omitempty"`

	// Token is the newest one that was made for it; nil for none.
	Token *Token `json:"token,omitempty"`

	// Arming is set while the machine is armed or installing.
	Arming *Arming `json:"arming,omitempty"`
	// Media says that our image is in its BMC's virtual CD.
	Media bool `json:"media,omitempty"`
	// InstalledAt is when an image was last written; zero for never.
	InstalledAt time.Time `json:"installedAt,omitzero"`
	// JoinedAt is when it said first that it is a node of Kubernetes, before it was installed
	// anew perhaps; zero for never.
	JoinedAt time.Time `json:"joinedAt,omitzero"`
	// NodeBoot is the boot of the newest system that said that it is a node of Kubernetes;
	// empty for none.
	NodeBoot string `json:"nodeBoot,omitempty"`
	// LostBoot is NodeBoot of a machine that was retired or replaced, while Kubernetes may
	// know that node; empty for none.
	LostBoot string `json:"lostBoot,omitempty"`

	// Order is what its running system was last told to do once; nil for nothing.
	Order *Order `json:"order,omitempty"`
	// Drain is what is done, or was last, about the pods on it; nil for nothing.
	Drain *Drain `json:"drain,omitempty"`

	// Address is where its installed system was last reached; empty for never. What
	// cluster.yaml says comes first.
	Address string `json:"address,omitempty"`
	// Facts is what the machine said about itself when it was installed last, or enrolled for
	// the first time (imagectl.v1.Facts as protobuf JSON).
	Facts json.RawMessage `json:"facts,omitempty"`
	// Hardware is how its running system differs from Facts, in sentences, found in the boot
	// HardwareBoot; empty for the same hardware.
	Hardware     []string `json:"hardware,omitempty"`
	HardwareBoot string   `json:"hardwareBoot,omitempty"`
}

// Order is something that a machine's running system does once.
type Order struct {
	ID string `json:"id"`
	// Kind is reboot or shutdown.
	Kind string `json:"kind"`
	// By and Serial are who asked and with which certificate.
	By     string    `json:"by"`
	Serial string    `json:"serial,omitempty"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
	// Force: although etcd loses its quorum.
	Force bool `json:"force,omitempty"`
	// Uncordon: it takes pods again when it is back.
	Uncordon bool `json:"uncordon,omitempty"`
	// Boot is the system that was to obey; another one has seen to it.
	Boot string `json:"boot,omitempty"`
	// Obeyed and Refused are its answer; neither is set before.
	Obeyed  bool   `json:"obeyed,omitempty"`
	Refused string `json:"refused,omitempty"`
}

// Drain is that pods are to leave a machine.
type Drain struct {
	ID string    `json:"id"`
	By string    `json:"by"`
	At time.Time `json:"at"`
	// Until is how long pods are waited for.
	Until time.Time `json:"until"`
	// Undo: it is to take pods again instead.
	Undo bool `json:"undo,omitempty"`
	// Done: nothing is left to do. Problem is what is left all the same.
	Done    bool   `json:"done,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Key is a machine's public key.
type Key struct {
	// SPKI is its DER SubjectPublicKeyInfo.
	SPKI []byte `json:"spki"`
	// Fingerprint is SHA-256 of SPKI, hexadecimal.
	Fingerprint string `json:"fingerprint"`
	// Code is what an operator compares.
	Code      string    `json:"code"`
	FirstSeen time.Time `json:"firstSeen"`
	// Source is the address it was first seen from.
	Source string `json:"source,omitempty"`
	// TPM is what it was proven by; nil for none.
	TPM *TPM `json:"tpm,omitempty"`

	// ApprovedAt and ApprovedBy are set for an approved key.
	ApprovedAt time.Time `json:"approvedAt,omitzero"`
	ApprovedBy string    `json:"approvedBy,omitempty"`
	// Certificate is the newest one issued for it (PEM), with its serial number
	// and end.
	Certificate string    `json:"certificate,omitempty"`
	Serial      string    `json:"serial,omitempty"`
	NotAfter    time.Time `json:"notAfter,omitzero"`
}

// TPM is a machine's proof by its TPM (tpm.Attested). It is never changed.
type TPM struct {
	// EK and AK are digests of its endorsement and its attestation key.
	EK string `json:"ek"`
	AK string `json:"ak"`
	// At is when the challenge was made that it answered.
	At       time.Time `json:"at"`
	Resets   uint32    `json:"resets"`
	Clock    uint64    `json:"clock"`
	Firmware uint64    `json:"firmware"`
	// PCRs are the values of tpm.PCRIndexes; Before those of the proof before, if any.
	PCRs   [][]byte `json:"pcrs"`
	Before [][]byte `json:"before,omitempty"`
}

// Token is a single-use secret with which the machine enrols itself. Only its digest
// is kept (enrol.TokenDigest).
type Token struct {
	Digest   string    `json:"digest"`
	At       time.Time `json:"at"`
	By       string    `json:"by"`
	NotAfter time.Time `json:"notAfter"`
	// Replace: it may replace an approved key; Force: although etcd loses its quorum by that.
	Replace bool `json:"replace,omitempty"`
	Force   bool `json:"force,omitempty"`
	// UsedBy is the fingerprint of the key that it let in; empty for not used.
	UsedBy string    `json:"usedBy,omitempty"`
	UsedAt time.Time `json:"usedAt,omitzero"`
}

// Arming is a one-shot permission to write the disk.
type Arming struct {
	ID string    `json:"id"`
	At time.Time `json:"at"`
	By string    `json:"by"`
	// Fingerprint is the key that took it; empty until an installation begins.
	Fingerprint string `json:"fingerprint,omitempty"`
	// NetbootAt is when an operator asked that its BMC start it from the network, and
	// NetbootDone when that was done; zero for not.
	NetbootAt   time.Time `json:"netbootAt,omitzero"`
	NetbootDone time.Time `json:"netbootDone,omitzero"`
}

// Clone returns a copy that shares nothing that changes.
func (m Machine) Clone() Machine {
	if m.Key != nil {
		k := *m.Key
		m.Key = &k
	}
	if m.Arming != nil {
		a := *m.Arming
		m.Arming = &a
	}
	if m.Token != nil {
		t := *m.Token
		m.Token = &t
	}
	m.Pending = slices.Clone(m.Pending)
	m.Rejected = slices.Clone(m.Rejected)
	return m
}
