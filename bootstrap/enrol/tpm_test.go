package enrol

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// Every way in which a TPM does not let a machine in, word by word: this is what a
// machine's console shows. Proofs that do not hold are in package tpm.
func TestTPMsThatAreRefused(t *testing.T) {
	t.Parallel()
	mine, other := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	proof := func(change func(*tpm.Attested)) *tpm.Attested {
		a := &tpm.Attested{EK: mine, Challenged: at, Resets: 7, Clock: 5000}
		if change != nil {
			change(a)
		}
		return a
	}
	bound := &tpm.Attested{EK: mine, Challenged: at.Add(-time.Hour), Resets: 7, Clock: 4000}
	record := func(change func(*Record)) Record {
		r := Record{Name: "w1", State: machine.Approved, Known: true, TPM: &TPMRecord{Listed: mine}}
		if change != nil {
			change(&r)
		}
		return r
	}
	installed := func(state machine.State) Record {
		return record(func(r *Record) { r.Approved, r.State, r.TPM.Bound = "l", state, bound })
	}
	const waits = "waiting for an operator to compare the code: imagectl machines approve w1"
	const running = "this is the TPM of w1, but w1 had another key before, and nobody has armed it; if it was installed anew: imagectl machines approve w1"
	const mainboard = "; if its mainboard was replaced: imagectl machines replace w1"
	const must = "w1 has to prove itself by its TPM"
	isNew := "; its TPM is new here: tpm: {ek: " + mine + "} in cluster.yaml would let it in"
	for _, c := range []struct {
		name     string
		rec      Record
		attested *tpm.Attested
		refusal  *Refusal
		want     Decision
	}{
		{"the TPM that cluster.yaml lists", record(nil), proof(nil), nil,
			Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}},
		{"it asks for the first time", record(nil), nil, nil, Decision{Status: Pending, Code: CodeTPMChallenge, Reason: must}},
		{"the approved key", record(func(r *Record) { r.Approved = "k" }), nil, nil, Decision{Status: Approved, Code: CodeApproved, Reason: "approved as w1"}},
		{"a machine that was armed to be installed again", installed(machine.Armed), proof(nil), nil,
			Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}},
		{"an installer that lost power", installed(machine.Installing), proof(nil), nil,
			Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}},
		{"another system on a machine that runs", installed(machine.Ready), proof(nil), nil,
			Decision{Status: Pending, Code: CodeKeyConflict, Remember: true, Conflict: true, Reason: running + " --replace-key"}},
		{"that system asks again", func() Record {
			r := installed(machine.Ready)
			r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine}}
			return r
		}(), nil, nil, Decision{Status: Pending, Code: CodeKeyConflict, Reason: running + " --replace-key"}},
		{"it is armed meanwhile", func() Record {
			r := installed(machine.Armed)
			r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine}}
			return r
		}(), nil, nil, Decision{Status: Pending, Code: CodeTPMChallenge, Reason: must}},
		{"a TPM that nobody has listed waits for an operator", record(func(r *Record) { r.TPM.Listed = "" }), proof(nil), nil,
			Decision{Status: Pending, Code: CodePending, Remember: true, Reason: waits + isNew}},
		{"it asks again", record(func(r *Record) {
			r.TPM.Listed, r.Pending, r.TPM.Waiting = "", []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine}}
		}), nil, nil, Decision{Status: Pending, Code: CodePending, Reason: waits + isNew}},
		{"its TPM is listed meanwhile", record(func(r *Record) { r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine}} }), nil, nil,
			Decision{Status: Pending, Code: CodeTPMChallenge, Reason: must}},
		{"a key that waited before TPMs were asked for", record(func(r *Record) { r.TPM.Listed, r.Pending = "", []Waiting{{"k", "C"}} }), proof(nil), nil,
			Decision{Status: Pending, Code: CodePending, Remember: true, Reason: waits + isNew}},
		{"a TPM that an operator has accepted before", record(func(r *Record) { r.TPM.Listed, r.TPM.Bound, r.State = "", bound, machine.Armed }), proof(nil), nil,
			Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}},
		{"another key, after the first was revoked", record(func(r *Record) { r.TPM.Bound, r.State = bound, machine.Ready }), proof(nil), nil,
			Decision{Status: Pending, Code: CodePending, Remember: true, Reason: running}},

		{"a foreign TPM", record(nil), proof(func(a *tpm.Attested) { a.EK = other }), nil,
			Decision{Status: Pending, Code: CodeTPMUnlisted, Reason: "its TPM is " + other + ", and cluster.yaml says that w1 has " + mine}},
		{"a TPM that was swapped", record(func(r *Record) { r.TPM.Listed, r.TPM.Bound = "", bound }), proof(func(a *tpm.Attested) { a.EK = other }), nil,
			Decision{Status: Pending, Code: CodeTPMSwapped, Reason: "its TPM is " + other + ", and w1 was enrolled with " + mine + mainboard}},
		{"a TPM that was swapped, and listed", record(func(r *Record) { r.TPM.Listed, r.TPM.Bound = other, bound }), proof(func(a *tpm.Attested) { a.EK = other }), nil,
			Decision{Status: Pending, Code: CodeTPMSwapped, Reason: "its TPM is " + other + ", and w1 was enrolled with " + mine + mainboard}},
		{"a clone of another machine, with its TPM", record(func(r *Record) { r.TPM.Listed, r.TPM.Elsewhere = "", "w2" }), proof(nil), nil,
			Decision{Status: Pending, Code: CodeTPMElsewhere, Reason: "by its hardware this machine is w1, and its TPM (" + mine + ") belongs to w2: a network card was moved, or a virtual machine was cloned with its TPM; if it has another name now: imagectl machines retire w2"}},
		{"a TPM that was copied before its last start", installed(machine.Armed), proof(func(a *tpm.Attested) { a.Resets = 6 }), nil,
			Decision{Status: Pending, Code: CodeTPMRolledBack, Reason: "its TPM counts 6 starts now and counted 7 before: somebody has copied it, set it back or cleared it" + mainboard}},
		{"a TPM that was set back", installed(machine.Armed), proof(func(a *tpm.Attested) { a.Clock = 3999 }), nil,
			Decision{Status: Pending, Code: CodeTPMRolledBack, Reason: "its TPM has run 3999 ms now and had run 4000 ms before: somebody has copied it or set it back" + mainboard}},
		{"a proof that was used", installed(machine.Armed), proof(func(a *tpm.Attested) { a.Challenged = bound.Challenged }), nil,
			Decision{Status: Pending, Code: CodeTPMReplayed, Reason: "this proof answers a challenge of 2026-03-01 11:00:00 UTC, and a newer one was answered at 2026-03-01 11:00:00 UTC"}},
		{"registers that cluster.yaml allows", record(func(r *Record) { r.TPM.PCRs = tpm.PCRPolicy{0: {mine, other}} }), proof(func(a *tpm.Attested) { a.PCRs = [][]byte{bytes.Repeat([]byte{0xb2}, 32)} }), nil,
			Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}},
		{"another firmware", record(func(r *Record) { r.TPM.PCRs = tpm.PCRPolicy{0: {mine, other}} }), proof(func(a *tpm.Attested) { a.PCRs = [][]byte{bytes.Repeat([]byte{0xc3}, 32)} }), nil,
			Decision{Status: Pending, Code: CodeTPMMeasured, Reason: "its register 0 (the firmware's code) is " + strings.Repeat("c3", 32) + ", and cluster.yaml allows " + mine + " or " + other + "; if it has started what it should, add that to identity.tpm.pcrs"}},
		{"another firmware, and a TPM that nobody has listed", record(func(r *Record) { r.TPM.Listed, r.TPM.PCRs = "", tpm.PCRPolicy{0: {mine}} }), proof(func(a *tpm.Attested) { a.PCRs = [][]byte{bytes.Repeat([]byte{0xc3}, 32)} }), nil,
			Decision{Status: Pending, Code: CodeTPMMeasured, Reason: "its register 0 (the firmware's code) is " + strings.Repeat("c3", 32) + ", and cluster.yaml allows " + mine + "; if it has started what it should, add that to identity.tpm.pcrs"}},
		{"it waited before its registers were asked for", record(func(r *Record) {
			r.TPM.Listed, r.TPM.PCRs = "", tpm.PCRPolicy{0: {mine}}
			r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine, PCRs: [][]byte{bytes.Repeat([]byte{0xc3}, 32)}}}
		}), nil, nil, Decision{Status: Pending, Code: CodeTPMChallenge, Reason: must}},
		{"and has started what is allowed since", record(func(r *Record) {
			r.TPM.Listed, r.TPM.PCRs = "", tpm.PCRPolicy{0: {mine}}
			r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine, PCRs: [][]byte{bytes.Repeat([]byte{0xc3}, 32)}}}
		}), proof(func(a *tpm.Attested) { a.PCRs = [][]byte{bytes.Repeat([]byte{0xa1}, 32)} }), nil,
			Decision{Status: Pending, Code: CodePending, Remember: true, Reason: waits + isNew}},
		{"no TPM", record(nil), nil, TPMTrouble("w1", TPMAbsent),
			Decision{Status: Pending, Code: CodeTPMAbsent, Reason: "w1 shows no TPM 2.0, and cluster.yaml says identity.policy: tpm; switch the TPM on in its firmware (TPM, fTPM or PTT)"}},
		{"a TPM that is busy", record(nil), nil, TPMTrouble("w1", TPMBusy),
			Decision{Status: Pending, Code: CodeTPMBusy, Reason: "another program on w1 holds its TPM; it tries again"}},
		{"a TPM that fails", record(nil), nil, TPMTrouble("w1", TPMFailed),
			Decision{Status: Pending, Code: CodeTPMFailed, Reason: "the TPM of w1 fails; its console and its journal say how"}},
		{"an agent that was told of no TPM", record(nil), nil, TPMTrouble("w1", TPMUnused),
			Decision{Status: Pending, Code: CodeTPMUnused, Reason: "w1 did not use its TPM, and cluster.yaml says identity.policy: tpm; its node.json is older than that: netboot it, or give it another"}},
		{"a proof that does not hold", record(nil), nil, &Refusal{tpm.CodeQuoteSigned, "its quote is not signed by its attestation key"},
			Decision{Status: Pending, Code: tpm.CodeQuoteSigned, Reason: "its quote is not signed by its attestation key"}},
		{"no proof from who claims a machine that runs is no alarm", installed(machine.Ready), nil, TPMTrouble("w1", TPMAbsent),
			Decision{Status: Pending, Code: CodeTPMAbsent, Reason: "w1 shows no TPM 2.0, and cluster.yaml says identity.policy: tpm; switch the TPM on in its firmware (TPM, fTPM or PTT)"}},
		{"a rejected key", record(func(r *Record) { r.Rejected = []string{"k"} }), proof(nil), nil,
			Decision{Status: Rejected, Code: CodeRejected, Reason: "an operator rejected this key for w1"}},
		{"a retired machine", record(func(r *Record) { r.State = machine.Retired }), proof(nil), nil,
			Decision{Status: Rejected, Code: CodeRetired, Reason: "w1 was retired"}},
		{"a machine that cluster.yaml does not list", record(func(r *Record) { r.Known = false }), proof(nil), nil,
			Decision{Status: Pending, Code: CodeUnknownMachine, Reason: "cluster.yaml lists no such machine; it is on record as w1, nothing will be written to its disks"}},
	} {
		got := DecideTPM(c.rec, "k", c.attested, c.refusal)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestAnOperatorAcceptsOnlyWhatATPMHasProven(t *testing.T) {
	t.Parallel()
	r := Record{Name: "w1", State: machine.Approved, Known: true, Pending: []Waiting{{"k", "AAAA-AAAA-AAAA"}}, TPM: &TPMRecord{}}
	if i, refusal := Approve(r, "", "AAAA-AAAA-AAAA", false); i != -1 || refusal == nil || refusal.Code != CodeTPMUnproven ||
		refusal.Reason != "this key of w1 was proven by no TPM, and cluster.yaml says identity.policy: tpm; wait until it asks again" {
		t.Errorf("got %d, %v", i, refusal)
	}
	r.TPM.Waiting = map[string]Proven{"k": {EK: "ek"}}
	r.TPM.Listed = "another"
	if i, refusal := Approve(r, "", "AAAA-AAAA-AAAA", false); i != -1 || refusal == nil || refusal.Code != CodeTPMUnlisted ||
		refusal.Reason != "this key is in the TPM ek, and cluster.yaml says that w1 has another" {
		t.Errorf("got %d, %v", i, refusal)
	}
	r.TPM.Listed = ""
	// What it was proven with counts by cluster.yaml of now.
	r.TPM.PCRs = tpm.PCRPolicy{0: {strings.Repeat("b2", 32)}}
	if i, refusal := Approve(r, "", "AAAA-AAAA-AAAA", false); i != -1 || refusal == nil || refusal.Code != CodeTPMMeasured {
		t.Errorf("measured nothing: got %d, %v", i, refusal)
	}
	r.TPM.Waiting["k"] = Proven{EK: "ek", PCRs: [][]byte{bytes.Repeat([]byte{0xb2}, 32)}}
	if i, refusal := Approve(r, "", "AAAA-AAAA-AAAA", false); i != 0 || refusal != nil {
		t.Errorf("got %d, %v", i, refusal)
	}
}
