package enrol

import (
	"fmt"
	"strings"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// Reason codes about TPMs; those of proofs that do not hold are package tpm's.
const (
	CodeTPM           = "enrol-tpm"
	CodeTPMChallenge  = "tpm-challenge"
	CodeTPMAbsent     = "tpm-absent"
	CodeTPMBusy       = "tpm-busy"
	CodeTPMFailed     = "tpm-failed"
	CodeTPMUnused     = "tpm-not-used"
	CodeTPMUnlisted   = "tpm-foreign-ek"
	CodeTPMSwapped    = "tpm-swapped-ek"
	CodeTPMElsewhere  = "tpm-of-another-machine"
	CodeTPMReplayed   = "tpm-replayed"
	CodeTPMRolledBack = "tpm-set-back"
	CodeTPMUnproven   = "tpm-not-proven"
	CodeTPMMeasured   = "tpm-pcr-not-allowed"
)

// TPMRecord is what is known about the TPM of a machine.
type TPMRecord struct {
	// Listed is the endorsement key that cluster.yaml names; empty for none.
	Listed string
	// Bound is the proof with which its key was last accepted; nil for none.
	Bound *tpm.Attested
	// Elsewhere is another machine that the TPM which asks now belongs to; empty for
	// none.
	Elsewhere string
	// Waiting maps the fingerprints of pending keys to what they were proven with.
	Waiting map[string]Proven
	// PCRs is what registers may hold; nil for anything.
	PCRs tpm.PCRPolicy
}

// Proven is what a proof of before has shown.
type Proven struct {
	// EK is the endorsement key.
	EK string
	// PCRs are the values of tpm.PCRIndexes.
	PCRs [][]byte
	// Resets is how many starts the TPM had counted.
	Resets uint32
}

// Trouble is why a machine proves nothing.
type Trouble int

// The troubles. TPMUnused is an agent that does not know that it should.
const (
	TPMUnused Trouble = iota + 1
	TPMAbsent
	TPMBusy
	TPMFailed
)

// TPMTrouble is the refusal of a machine that proves nothing.
func TPMTrouble(name string, t Trouble) *Refusal {
	switch t {
	case TPMAbsent:
		return &Refusal{CodeTPMAbsent, fmt.Sprintf("%s shows no TPM 2.0, and cluster.yaml says identity.policy: tpm; switch the TPM on in its firmware (TPM, fTPM or PTT)", name)}
	case TPMBusy:
		return &Refusal{CodeTPMBusy, fmt.Sprintf("another program on %s holds its TPM; it tries again", name)}
	case TPMFailed:
		return &Refusal{CodeTPMFailed, fmt.Sprintf("the TPM of %s fails; its console and its journal say how", name)}
	default:
		return &Refusal{CodeTPMUnused, fmt.Sprintf("%s did not use its TPM, and cluster.yaml says identity.policy: tpm; its node.json is older than that: netboot it, or give it another", name)}
	}
}

// DecideTPM is Decide where machines prove themselves by their TPM (r.TPM is set).
// attested is what the machine has proven just now, refusal why it has proven
// nothing; both are nil when it asks for the first time, or asks again.
//
// A key without a proof is not remembered and raises no alarm: whoever forges a MAC
// address can do neither. A key with one is let in when the TPM is the one that
// cluster.yaml lists or an operator has accepted before; otherwise an operator
// compares the code, and with the key accepts the TPM.
func DecideTPM(r Record, fingerprint string, attested *tpm.Attested, refusal *Refusal) Decision {
	d := Decide(r, fingerprint)
	// An approved key needs no proof: its reply was lost, or it comes back.
	if d.Status != Pending || !r.Known {
		return d
	}
	if refusal == nil && attested != nil {
		refusal = r.refuseTPM(attested)
	}
	if refusal != nil {
		return Decision{Status: Pending, Code: refusal.Code, Reason: refusal.Reason}
	}
	proven := r.TPM.Waiting[fingerprint]
	if r.refuseMeasured(proven.PCRs) != nil {
		proven.EK = "" // it may have started something else since
	}
	switch {
	case attested != nil:
		// Also one that waited before machines had to prove themselves.
		d.Remember = d.Remember || proven.EK != attested.EK
		proven = Proven{EK: attested.EK, PCRs: attested.PCRs, Resets: attested.Resets}
	case proven.EK == "" || r.letsIn(proven):
		return Decision{Status: Pending, Code: CodeTPMChallenge, Reason: fmt.Sprintf("%s has to prove itself by its TPM", r.Name)}
	}
	switch ek := proven.EK; {
	case r.letsIn(proven):
		return Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: fmt.Sprintf("approved as %s by its TPM", r.Name)}
	case r.knows(ek):
		approve := "imagectl machines approve " + r.Name
		if r.Approved != "" {
			approve += " --replace-key"
		}
		d.Reason = fmt.Sprintf("this is the TPM of %s, but %s had another key before, and nobody has armed it; if it was installed anew: %s", r.Name, r.Name, approve)
		switch {
		case r.Diskless && r.Approved == "":
			d.Reason = fmt.Sprintf("this is the TPM of %s, whose key was withdrawn; if it may come back: %s", r.Name, approve)
		case r.Diskless && r.TPM.Bound != nil:
			d.Reason = fmt.Sprintf("this is the TPM of %s, which has brought a key since its last start (number %d of its TPM) already: another system runs there; if it was not started: imagectl machines retire %s, and otherwise: %s", r.Name, proven.Resets, r.Name, approve)
		}
	default:
		d.Reason += fmt.Sprintf("; its TPM is new here: tpm: {ek: %s} in cluster.yaml would let it in", ek)
	}
	return d
}

// knows says whether an endorsement key is the machine's, as far as anybody has said.
func (r Record) knows(ek string) bool {
	if r.TPM.Listed != "" {
		return r.TPM.Listed == ek
	}
	return r.TPM.Bound != nil && r.TPM.Bound.EK == ek
}

// letsIn says whether a new key may come in by a TPM: a machine's first one, those of
// machines that an operator has armed, and one for each start of a diskless machine that
// has a key that holds. To any other machine somebody has started another system, or its
// key was revoked.
func (r Record) letsIn(p Proven) bool {
	first := r.State == machine.Approved && r.Approved == "" && r.TPM.Bound == nil
	started := r.Diskless && r.Approved != "" && r.TPM.Bound != nil && p.Resets > r.TPM.Bound.Resets
	return r.knows(p.EK) && (first || started || r.State == machine.Armed || r.State == machine.Installing)
}

// refuseWaiting says why an operator cannot accept a key that waits, or nil.
func (r Record) refuseWaiting(fingerprint string) *Refusal {
	if r.TPM == nil {
		return nil
	}
	proven := r.TPM.Waiting[fingerprint]
	switch ek := proven.EK; {
	case ek == "":
		return &Refusal{CodeTPMUnproven, fmt.Sprintf("this key of %s was proven by no TPM, and cluster.yaml says identity.policy: tpm; wait until it asks again", r.Name)}
	case r.TPM.Listed != "" && r.TPM.Listed != ek:
		return &Refusal{CodeTPMUnlisted, fmt.Sprintf("this key is in the TPM %s, and cluster.yaml says that %s has %s", ek, r.Name, r.TPM.Listed)}
	}
	return r.refuseMeasured(proven.PCRs)
}

// refuseTPM says why a TPM that is genuine does not let this machine in, or nil.
func (r Record) refuseTPM(a *tpm.Attested) *Refusal {
	if refusal := r.refuseForeign(a); refusal != nil {
		return refusal
	}
	return r.refuseMeasured(a.PCRs)
}

// refuseMeasured says why a machine that has started this is not let in, or nil.
func (r Record) refuseMeasured(pcrs [][]byte) *Refusal {
	index, value, outside := r.TPM.PCRs.Outside(pcrs)
	if !outside {
		return nil
	}
	return &Refusal{CodeTPMMeasured, fmt.Sprintf("its register %d (%s) is %s, and cluster.yaml allows %s; if it has started what it should, add that to identity.tpm.pcrs", index, tpm.Measures(index), value, strings.Join(r.TPM.PCRs[index], " or "))}
}

// refuseForeign says why it is not this machine's, or nil.
func (r Record) refuseForeign(a *tpm.Attested) *Refusal {
	replaced := fmt.Sprintf("if its mainboard was replaced: imagectl machines replace %s", r.Name)
	b := r.TPM.Bound
	switch {
	case r.TPM.Elsewhere != "":
		return &Refusal{CodeTPMElsewhere, fmt.Sprintf("by its hardware this machine is %s, and its TPM (%s) belongs to %s: a network card was moved, or a virtual machine was cloned with its TPM; if it has another name now: imagectl machines retire %s", r.Name, a.EK, r.TPM.Elsewhere, r.TPM.Elsewhere)}
	case r.TPM.Listed != "" && r.TPM.Listed != a.EK:
		return &Refusal{CodeTPMUnlisted, fmt.Sprintf("its TPM is %s, and cluster.yaml says that %s has %s", a.EK, r.Name, r.TPM.Listed)}
	case b == nil:
		return nil
	case b.EK != a.EK:
		return &Refusal{CodeTPMSwapped, fmt.Sprintf("its TPM is %s, and %s was enrolled with %s; %s", a.EK, r.Name, b.EK, replaced)}
	case !a.Challenged.After(b.Challenged):
		return &Refusal{CodeTPMReplayed, fmt.Sprintf("this proof answers a challenge of %s, and a newer one was answered at %s", clock(a.Challenged), clock(b.Challenged))}
	case a.Resets < b.Resets:
		return &Refusal{CodeTPMRolledBack, fmt.Sprintf("its TPM counts %d starts now and counted %d before: somebody has copied it, set it back or cleared it; %s", a.Resets, b.Resets, replaced)}
	case a.Resets == b.Resets && a.Clock < b.Clock:
		return &Refusal{CodeTPMRolledBack, fmt.Sprintf("its TPM has run %d ms now and had run %d ms before: somebody has copied it or set it back; %s", a.Clock, b.Clock, replaced)}
	}
	return nil
}
