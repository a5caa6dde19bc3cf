package enrol

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// A diskless machine has lost its key at each start, and its TPM counts starts: one key for
// each of them comes in by it, in whatever state the machine is.
func TestTheTPMOfADisklessMachineLetsOneKeyInForEachStart(t *testing.T) {
	t.Parallel()
	mine := strings.Repeat("a1", 32)
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	bound := &tpm.Attested{EK: mine, Challenged: at.Add(-time.Hour), Resets: 7, Clock: 4000}
	proof := func(resets uint32) *tpm.Attested {
		return &tpm.Attested{EK: mine, Challenged: at, Resets: resets, Clock: 5000}
	}
	record := func(change func(*Record)) Record {
		r := Record{Name: "w1", State: machine.Ready, Known: true, Diskless: true, Approved: "before", TPM: &TPMRecord{Bound: bound}}
		if change != nil {
			change(&r)
		}
		return r
	}
	in := Decision{Status: Approved, Code: CodeTPM, Bind: true, Reason: "approved as w1 by its TPM"}
	waiting := func(r *Record, resets uint32) {
		r.Pending, r.TPM.Waiting = []Waiting{{"k", "C"}}, map[string]Proven{"k": {EK: mine, Resets: resets}}
	}
	const twice = "this is the TPM of w1, which has brought a key since its last start (number 7 of its TPM) already: another system runs there; if it was not started: imagectl machines retire w1, and otherwise: imagectl machines approve w1 --replace-key"
	for _, c := range []struct {
		name     string
		rec      Record
		attested *tpm.Attested
		want     Decision
	}{
		{"after another start", record(nil), proof(8), in},
		{"while it starts, before it was ready", record(func(r *Record) { r.State = machine.Enrolled }), proof(8), in},
		{"after it had failed", record(func(r *Record) { r.State = machine.Failed }), proof(8), in},
		{"after somebody else had claimed it", record(func(r *Record) { r.State = machine.Quarantined }), proof(8), in},
		{"it asks", record(nil), nil, Decision{Status: Pending, Code: CodeTPMChallenge, Reason: "w1 has to prove itself by its TPM"}},
		{"a second key in one start", record(nil), proof(7), Decision{Status: Pending, Code: CodeKeyConflict, Remember: true, Conflict: true, Reason: twice}},
		{"it asks again", record(func(r *Record) { waiting(r, 7) }), nil, Decision{Status: Pending, Code: CodeKeyConflict, Reason: twice}},
		{"a copy of its TPM", record(nil), proof(6), Decision{Status: Pending, Code: CodeTPMRolledBack, Reason: "its TPM counts 6 starts now and counted 7 before: somebody has copied it, set it back or cleared it; if its mainboard was replaced: imagectl machines replace w1"}},
		{"its key was withdrawn", record(func(r *Record) { r.Approved = "" }), proof(8), Decision{Status: Pending, Code: CodePending, Remember: true,
			Reason: "this is the TPM of w1, whose key was withdrawn; if it may come back: imagectl machines approve w1"}},
		{"it was retired", record(func(r *Record) { r.State = machine.Retired }), proof(8), Decision{Status: Rejected, Code: CodeRetired, Reason: "w1 was retired"}},
		{"a machine with a disk", record(func(r *Record) { r.Diskless = false }), proof(8), Decision{Status: Pending, Code: CodeKeyConflict, Remember: true, Conflict: true,
			Reason: "this is the TPM of w1, but w1 had another key before, and nobody has armed it; if it was installed anew: imagectl machines approve w1 --replace-key"}},
		{"its key was accepted before TPMs were asked for", record(func(r *Record) { r.TPM.Bound, r.TPM.Listed = nil, mine }), proof(8), Decision{Status: Pending, Code: CodeKeyConflict, Remember: true, Conflict: true,
			Reason: "this is the TPM of w1, but w1 had another key before, and nobody has armed it; if it was installed anew: imagectl machines approve w1 --replace-key"}},
	} {
		if diff := cmp.Diff(c.want, DecideTPM(c.rec, "k", c.attested, nil)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// Without a TPM a person compares the code at each start, and is told why.
func TestADisklessMachineWithoutATPMWaitsForAPersonAtEachStart(t *testing.T) {
	t.Parallel()
	got := Decide(Record{Name: "w1", State: machine.Ready, Known: true, Diskless: true, Approved: "before"}, "k")
	want := Decision{Status: Pending, Code: CodeKeyConflict, Remember: true, Conflict: true,
		Reason: "w1 is diskless and has a new key at every start; compare the code if it was started: imagectl machines approve --replace-key w1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
