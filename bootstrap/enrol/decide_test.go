package enrol

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	base := Record{Name: "cp1", State: machine.Approved, Known: true}
	with := func(f func(*Record)) Record { r := base; f(&r); return r }
	const replace = "cp1 has another key that was approved before; an operator has to say whether this one replaces it: imagectl machines approve --replace-key cp1"
	const retry = "cp1 began to install with another key, as after a loss of power; approve this one to go on: imagectl machines approve --replace-key cp1"
	for _, c := range []struct {
		name string
		rec  Record
		want Decision
	}{
		{"a first key waits", base,
			Decision{Status: Pending, Code: "enrol-pending", Remember: true, Reason: "waiting for an operator to compare the code: imagectl machines approve cp1"}},
		{"the same key asks again", with(func(r *Record) { r.Pending = []Waiting{{"k", "C"}} }),
			Decision{Status: Pending, Code: "enrol-pending", Reason: "waiting for an operator to compare the code: imagectl machines approve cp1"}},
		{"a second key before any approval waits too", with(func(r *Record) { r.Pending = []Waiting{{"other", "C"}} }),
			Decision{Status: Pending, Code: "enrol-pending", Remember: true, Reason: "waiting for an operator to compare the code: imagectl machines approve cp1"}},
		{"the approved key", with(func(r *Record) { r.Approved = "k" }),
			Decision{Status: Approved, Code: "enrol-approved", Reason: "approved as cp1"}},
		{"the approved key of a running machine", with(func(r *Record) { r.Approved, r.State = "k", machine.Ready }),
			Decision{Status: Approved, Code: "enrol-approved", Reason: "approved as cp1"}},
		{"a second key is an alarm", with(func(r *Record) { r.Approved, r.State = "other", machine.Ready }),
			Decision{Status: Pending, Code: "enrol-key-conflict", Remember: true, Conflict: true, Reason: replace}},
		{"the alarm is raised once", with(func(r *Record) { r.Approved, r.Pending = "other", []Waiting{{"k", "C"}} }),
			Decision{Status: Pending, Code: "enrol-key-conflict", Reason: replace}},
		{"a lost installer comes back", with(func(r *Record) { r.Approved, r.State = "other", machine.Installing }),
			Decision{Status: Pending, Code: "enrol-key-conflict", Remember: true, Conflict: true, Reason: retry}},
		{"a rejected key", with(func(r *Record) { r.Rejected = []string{"k"} }),
			Decision{Status: Rejected, Code: "enrol-rejected", Reason: "an operator rejected this key for cp1"}},
		{"a retired machine, even with its approved key", with(func(r *Record) { r.Approved, r.State = "k", machine.Retired }),
			Decision{Status: Rejected, Code: "enrol-retired", Reason: "cp1 was retired"}},
		{"an unknown machine", Record{Name: "unknown-525400000001", State: machine.Discovered},
			Decision{Status: Pending, Code: "enrol-unknown-machine", Reason: "cluster.yaml lists no such machine; it is on record as unknown-525400000001, nothing will be written to its disks"}},
	} {
		if diff := cmp.Diff(c.want, Decide(c.rec, "k")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestApprove(t *testing.T) {
	t.Parallel()
	const a, b = "AAAA-AAAA-AAAA", "BBBB-BBBB-BBBB"
	rec := func(approved string, pending ...Waiting) Record {
		return Record{Name: "cp1", State: machine.Approved, Known: true, Approved: approved, Pending: pending}
	}
	for _, c := range []struct {
		name    string
		rec     Record
		code    string
		replace bool
		want    int
		refusal *Refusal
	}{
		{"the right code", rec("", Waiting{"k", a}), a, false, 0, nil},
		{"as people type it", rec("", Waiting{"k", a}), "aaaa aaaaaaaa", false, 0, nil},
		{"the second of two", rec("", Waiting{"k", a}, Waiting{"l", b}), b, false, 1, nil},
		{"no code", rec("", Waiting{"k", a}), "", false, -1,
			&Refusal{"code-required", "say which code the console of cp1 shows: --code cp1=XXXX-XXXX-XXXX"}},
		{"another code", rec("", Waiting{"k", a}), b, false, -1,
			&Refusal{"code-mismatch", "cp1 shows no such code: what asks here is AAAA-AAAA-AAAA; if the console says BBBB-BBBB-BBBB, somebody sits between the machine and this server"}},
		{"nobody asked", rec(""), a, false, -1,
			&Refusal{"nothing-pending", "cp1 has not asked yet; boot it and wait for its code"}},
		{"a replacement needs a word", rec("old", Waiting{"k", a}), a, false, -1,
			&Refusal{"needs-replace-key", "cp1 has an approved key already; if this machine was reinstalled or lost power while installing, say --replace-key"}},
		{"a replacement", rec("old", Waiting{"k", a}), a, true, 0, nil},
		{"a lost reply", rec("old"), "CCCC-CCCC-CCCC", false, -1, nil},
		{"unknown", Record{Name: "unknown-1"}, a, false, -1,
			&Refusal{"enrol-unknown-machine", "unknown-1 is not in cluster.yaml; add it there first"}},
	} {
		got, refusal := Approve(c.rec, "CCCC-CCCC-CCCC", c.code, c.replace)
		if got != c.want {
			t.Errorf("%s: got key %d, want %d", c.name, got, c.want)
		}
		if diff := cmp.Diff(c.refusal, refusal); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	ix := NewIndex([]Hardware{
		{Name: "cp1", MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}, UUID: "u1"},
		{Name: "w1", MACs: []string{"52:54:00:00:00:03"}, Serial: "s1"},
		{Name: "w2", Serial: "s2"},
	})
	for _, c := range []struct {
		name string
		seen Hardware
		want string
		code string
	}{
		{"by the first MAC", Hardware{MACs: []string{"52:54:00:00:00:01"}}, "cp1", ""},
		{"by the second MAC among others", Hardware{MACs: []string{"aa:aa:aa:aa:aa:aa", "52:54:00:00:00:02"}}, "cp1", ""},
		{"by UUID", Hardware{UUID: "u1"}, "cp1", ""},
		{"by serial number", Hardware{Serial: "s2"}, "w2", ""},
		{"unknown", Hardware{MACs: []string{"aa:aa:aa:aa:aa:aa"}, UUID: "x", Serial: "x"}, "", ""},
		{"nothing said", Hardware{}, "", ""},
		{"two at once", Hardware{MACs: []string{"52:54:00:00:00:01"}, Serial: "s2"}, "", "enrol-ambiguous"},
		{"another mainboard with this network card", Hardware{MACs: []string{"52:54:00:00:00:01"}, UUID: "other"}, "", "enrol-contradiction"},
		{"another serial number", Hardware{MACs: []string{"52:54:00:00:00:03"}, Serial: "other"}, "", "enrol-contradiction"},
	} {
		got, refusal := ix.Match(c.seen)
		code := ""
		if refusal != nil {
			code = refusal.Code
		}
		if got != c.want || code != c.code {
			t.Errorf("%s: got %q, %q; want %q, %q", c.name, got, code, c.want, c.code)
		}
	}
	if got, want := UnknownName(Hardware{MACs: []string{"b2:00", "a1:00"}, UUID: "u"}), "unknown-a100"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := UnknownName(Hardware{Serial: "To be filled by O.E.M."}); got != "" {
		t.Errorf("a serial number names a machine: %s", got)
	}
}
