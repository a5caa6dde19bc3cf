package enrol

import (
	"fmt"
	"slices"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

// Reason codes: stable words for the wire, metrics and tests.
const (
	CodeApproved       = "enrol-approved"
	CodePending        = "enrol-pending"
	CodeRejected       = "enrol-rejected"
	CodeRetired        = "enrol-retired"
	CodeKeyConflict    = "enrol-key-conflict"
	CodeUnknownMachine = "enrol-unknown-machine"
	CodeAmbiguous      = "enrol-ambiguous"
	CodeContradiction  = "enrol-contradiction"
	CodeNoFacts        = "enrol-no-facts"

	CodeMismatch     = "code-mismatch"
	CodeRequired     = "code-required"
	CodeNothing      = "nothing-pending"
	CodeNeedsReplace = "needs-replace-key"
)

// MaxPending bounds the keys that wait for one machine. More than one is normal
// (an installer that lost power comes back with a new key); many are somebody
// trying to push the true one out, which asks again within seconds.
const MaxPending = 4

// MaxRejected bounds the memory of rejected keys per machine.
const MaxRejected = 32

// Refusal is a no, with its code and one sentence.
type Refusal struct {
	Code, Reason string
}

func (r *Refusal) Error() string { return r.Reason }

// Status is the answer to an enrolment.
type Status int

// The answers.
const (
	Pending Status = iota + 1
	Approved
	Rejected
)

// Record is what is known about the machine that a request belongs to.
type Record struct {
	Name  string
	State machine.State
	// Known: cluster.yaml lists it.
	Known bool
	// Diskless: it keeps nothing, its key neither, and comes with a new one at each start.
	Diskless bool
	// Approved is the fingerprint of the approved key; empty for none.
	Approved string
	// Pending are the keys that wait, oldest first.
	Pending []Waiting
	// Rejected are fingerprints.
	Rejected []string
	// Tokens: cluster.yaml takes tokens. Token is the newest one; nil for none.
	Tokens bool
	Token  *Token
	// TPM is set where machines prove themselves by it.
	TPM *TPMRecord
}

// Waiting is a key that waits, with the code to compare.
type Waiting struct {
	Fingerprint, Code string
}

// Decision answers one enrolment request.
type Decision struct {
	Status Status
	Code   string
	// Reason is one sentence for the machine's console.
	Reason string
	// Remember says that this key is new and must be put among the pending ones.
	Remember bool
	// Burn says that the token let this key in and must be marked as used with it.
	Burn bool
	// Bind says that its TPM let this key in, which is the machine's TPM from now on.
	Bind bool
	// Conflict says that a new key claims a machine which has an approved one.
	Conflict bool
}

// Decide says what a key gets that claims to be the machine of a record. The
// same key gets the same answer until an operator acts.
func Decide(r Record, fingerprint string) Decision {
	switch {
	case r.State == machine.Retired:
		return Decision{Status: Rejected, Code: CodeRetired,
			Reason: fmt.Sprintf("%s was retired", r.Name)}
	case fingerprint == r.Approved:
		return Decision{Status: Approved, Code: CodeApproved,
			Reason: fmt.Sprintf("approved as %s", r.Name)}
	case slices.Contains(r.Rejected, fingerprint):
		return Decision{Status: Rejected, Code: CodeRejected,
			Reason: fmt.Sprintf("an operator rejected this key for %s", r.Name)}
	case !r.Known:
		return Decision{Status: Pending, Code: CodeUnknownMachine,
			Reason: fmt.Sprintf("cluster.yaml lists no such machine; it is on record as %s, nothing will be written to its disks", r.Name)}
	}
	isNew := !slices.ContainsFunc(r.Pending, func(w Waiting) bool { return w.Fingerprint == fingerprint })
	if r.Approved == "" {
		return Decision{Status: Pending, Code: CodePending, Remember: isNew,
			Reason: fmt.Sprintf("waiting for an operator to compare the code: imagectl machines approve %s", r.Name)}
	}
	reason := fmt.Sprintf("%s has another key that was approved before; an operator has to say whether this one replaces it: imagectl machines approve --replace-key %s", r.Name, r.Name)
	if r.State == machine.Armed || r.State == machine.Installing {
		reason = fmt.Sprintf("%s began to install with another key, as after a loss of power; approve this one to go on: imagectl machines approve --replace-key %s", r.Name, r.Name)
	}
	if r.Diskless {
		reason = fmt.Sprintf("%s is diskless and has a new key at every start; compare the code if it was started: imagectl machines approve --replace-key %s", r.Name, r.Name)
	}
	return Decision{Status: Pending, Code: CodeKeyConflict, Remember: isNew, Conflict: isNew, Reason: reason}
}

// Approve says which pending key an operator accepts, by its index in r.Pending.
// The code is what the operator read on the machine's console; every approval
// needs one. A lost reply may be retried: then the index is -1 and the refusal
// nil, the key is approved already.
func Approve(r Record, approvedCode, code string, replaceKey bool) (int, *Refusal) {
	if !r.Known {
		return -1, &Refusal{CodeUnknownMachine, fmt.Sprintf("%s is not in cluster.yaml; add it there first", r.Name)}
	}
	code = NormalCode(code)
	if code == "" {
		return -1, &Refusal{CodeRequired, fmt.Sprintf("say which code the console of %s shows: --code %s=XXXX-XXXX-XXXX", r.Name, r.Name)}
	}
	for i, w := range r.Pending {
		if w.Code != code {
			continue
		}
		if r.Approved != "" && !replaceKey {
			return -1, &Refusal{CodeNeedsReplace, fmt.Sprintf("%s has an approved key already; if this machine was reinstalled or lost power while installing, say --replace-key", r.Name)}
		}
		if refusal := r.refuseWaiting(w.Fingerprint); refusal != nil {
			return -1, refusal
		}
		return i, nil
	}
	switch {
	case r.Approved != "" && code == approvedCode:
		return -1, nil
	case len(r.Pending) == 0:
		return -1, &Refusal{CodeNothing, fmt.Sprintf("%s has not asked yet; boot it and wait for its code", r.Name)}
	default:
		return -1, &Refusal{CodeMismatch, fmt.Sprintf("%s shows no such code: what asks here is %s; if the console says %s, somebody sits between the machine and this server", r.Name, codes(r.Pending), code)}
	}
}

func codes(pending []Waiting) string {
	s := pending[0].Code
	for _, w := range pending[1:] {
		s += " and " + w.Code
	}
	return s
}
