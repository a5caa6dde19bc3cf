package serverapi

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func at(hour int) time.Time { return time.Date(2035, 3, 1, hour, 0, 0, 0, time.UTC) }

// Every step in every phase.
func TestWhatBecomesOfAStep(t *testing.T) {
	t.Parallel()
	const by = "imagectl://demo/operator/ada"
	const since = "at 2035-03-01T08:00:00Z by " + by
	type outcome struct {
		verdict
		why string
	}
	want := map[phase]map[rollStep]outcome{
		settled: {
			rollPrepare:  {rollDo, ""},
			rollActivate: {rollRefused, "no other CA is prepared: imagectl server ca prepare"},
			rollFinish:   {rollDone, "nothing to do: one CA signs and is trusted"},
			rollCancel:   {rollDone, "nothing to do: one CA signs and is trusted"},
		},
		prepared: {
			rollPrepare:  {rollDone, "nothing to do: another CA was prepared " + since + "; next: imagectl server ca activate"},
			rollActivate: {rollDo, ""},
			rollFinish:   {rollRefused, "the new CA does not sign yet: imagectl server ca activate, or imagectl server ca cancel"},
			rollCancel:   {rollDo, ""},
		},
		activated: {
			rollPrepare:  {rollRefused, "a rollover is under way: its CA was activated " + since + "; end it first: imagectl server ca finish"},
			rollActivate: {rollDone, "nothing to do: the new CA was activated " + since + "; next: imagectl server ca finish"},
			rollFinish:   {rollDo, ""},
			rollCancel:   {rollRefused, "the new CA was activated " + since + ", and the old one's key is gone: go on with imagectl server ca finish"},
		},
	}
	for in, steps := range want {
		r := rollover{Phase: in, Since: at(8), By: by}
		if in == settled {
			r = rollover{} // there never was one
		}
		for step, want := range steps {
			if v, why := decideRoll(step, r); v != want.verdict || why != want.why {
				t.Errorf("%s when %s:\ngot  %d %s\nwant %d %s", step, in, v, why, want.verdict, want.why)
			}
		}
	}
}

func TestWhatAStepWaitsFor(t *testing.T) {
	t.Parallel()
	const older, newer = "0a", "0b"
	machine := func(change func(*rollMachine)) rollMachine {
		m := rollMachine{name: "w1", end: at(20), heard: at(12).Add(-5 * time.Second), agent: "v1", trusts: true, current: true}
		change(&m)
		return m
	}
	certificate := func(h holder, by string, until int) rollCertificate {
		return rollCertificate{h, by, at(until)}
	}
	for name, c := range map[string]struct {
		step     rollStep
		machines []rollMachine
		certs    []rollCertificate
		// backup is when one was made; 0 for never, -1 for a server that makes none.
		backup int
		want   []string
	}{
		"activate: it trusts the new CA": {step: rollActivate, machines: []rollMachine{machine(func(*rollMachine) {})}},
		"activate: an agent that knows of no rollover": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.trusts = false })},
			want: []string{"node/w1: w1 calls, and does not trust the new CA yet (agent v1); its certificate is good until 2035-03-01T20:00:00Z"}},
		"activate: an agent without a version": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.trusts, m.agent = false, "" })},
			want: []string{"node/w1: w1 calls, and does not trust the new CA yet (agent of unknown version); its certificate is good until 2035-03-01T20:00:00Z"}},
		"activate: it is off since before the step": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.trusts, m.heard = false, at(9) })},
			want: []string{"node/w1: w1 has not called since 2035-03-01T09:00:00Z, and did not trust the new CA then; its certificate is good until 2035-03-01T20:00:00Z"}},
		"activate: it went off after it had said so": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.heard = at(9) })}},
		"activate: the server was started anew": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.trusts, m.heard = false, time.Time{} })},
			want: []string{"node/w1: w1 has not called since this server started at 2035-03-01T07:00:00Z, so it has not said that it trusts the new CA; its certificate is good until 2035-03-01T20:00:00Z"}},
		"activate: its certificate has ended": {step: rollActivate, machines: []rollMachine{machine(func(m *rollMachine) { m.trusts, m.end = false, at(11) })}},
		"activate asks for no backup":         {step: rollActivate, backup: 0},

		"finish: it has the new one": {step: rollFinish, backup: 9, machines: []rollMachine{machine(func(*rollMachine) {})},
			certs: []rollCertificate{certificate("node/w1", older, 20), certificate("node/w1", newer, 22)}},
		"finish: it may have lost the answer": {step: rollFinish, backup: 9, machines: []rollMachine{machine(func(m *rollMachine) { m.current = false })},
			certs: []rollCertificate{certificate("node/w1", older, 20), certificate("node/w1", older, 18), certificate("node/w1", newer, 22)},
			want:  []string{"node/w1: w1 holds a certificate of the old CA until 2035-03-01T20:00:00Z and has not called with one of the new"}},
		"finish: from before CAs were noted": {step: rollFinish, backup: 9, machines: []rollMachine{machine(func(m *rollMachine) { m.current = false })},
			certs: []rollCertificate{certificate("node/w1", "", 20)},
			want:  []string{"node/w1: w1 holds a certificate of the old CA until 2035-03-01T20:00:00Z and has not called with one of the new"}},
		"finish: a machine that nobody lists any more": {step: rollFinish, backup: 9, certs: []rollCertificate{certificate("node/w7", older, 20)},
			want: []string{"node/w7: w7 holds a certificate of the old CA until 2035-03-01T20:00:00Z and has not called with one of the new"}},
		"finish: an operator": {step: rollFinish, backup: 9, certs: []rollCertificate{certificate("operator/ada", newer, 23), certificate("operator/ada", older, 19), certificate("operator/bob", newer, 23)},
			want: []string{"operator/ada: operator/ada holds a certificate of the old CA until 2035-03-01T19:00:00Z"}},
		"finish: the server makes itself another": {step: rollFinish, backup: 9, certs: []rollCertificate{certificate("server/imagectl", older, 20)}},
		"finish: no backup since": {step: rollFinish, backup: 8,
			want: []string{": no backup was made since 2035-03-01T08:00:00Z, when the new CA began to sign: whoever restores an older one has a CA that nobody trusts then; imagectl server backup"}},
		"finish: cluster.yaml asks for no backups": {step: rollFinish, backup: -1},
	} {
		v := rollView{now: at(12), since: at(8), started: at(7), signs: newer, machines: c.machines, certificates: c.certs, backups: c.backup >= 0}
		if c.backup > 0 {
			v.backup = at(c.backup)
		}
		var got []string
		for _, o := range v.obstacles(c.step) {
			got = append(got, fmt.Sprintf("%s: %s", o.holder, o.text))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, strings.Join(got, "\n     "), strings.Join(c.want, "\n     "))
		}
	}
}

func TestWhoIsGivenUp(t *testing.T) {
	t.Parallel()
	all := []obstacle{{"", "no backup"}, {"node/w1", "w1"}, {"node/w2", "w2"}, {"operator/w1", "a person"}}
	left, unknown := leftOut(all, []string{"w1", "node/w2", "w9", "operator/w1", ""})
	if len(left) != 1 || left[0].text != "no backup" || !slices.Equal(unknown, []string{"w9", ""}) {
		t.Errorf("left %v, unknown %q", left, unknown)
	}
	if len(all) != 4 || all[1].text != "w1" {
		t.Errorf("the caller's are changed: %v", all)
	}
	const want = `finish is refused, for:
- no backup
- w1
Ask again when it has changed, or give somebody up with --without NAME.`
	if got := inTheWay(rollFinish, all[:2]); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := inTheWay(rollFinish, all[:1]); strings.Contains(got, "--without") {
		t.Errorf("nobody can be given up: %s", got)
	}
}

func TestWhenACAsEndIsTold(t *testing.T) {
	t.Parallel()
	end := at(0)
	for _, c := range []struct {
		left time.Duration
		how  string
		want string
	}{
		{366 * 24 * time.Hour, "imagectl do", ""},
		{365 * 24 * time.Hour, "imagectl do", "warning: CA x ends at 2035-03-01T00:00:00Z, in 365 days; a certificate that would outlive it is not signed: imagectl do"},
		{36 * time.Hour, "", "warning: CA x ends at 2035-03-01T00:00:00Z, in 1 days; a certificate that would outlive it is not signed, and there is no command that makes another: build the cluster anew before that"},
		{-time.Hour, "imagectl do", "warning: CA x ends at 2035-03-01T00:00:00Z, in 0 days; a certificate that would outlive it is not signed: imagectl do"},
	} {
		if got := caEndNote("x", end, c.how, end.Add(-c.left)); got != c.want {
			t.Errorf("%v before:\ngot  %s\nwant %s", c.left, got, c.want)
		}
	}
}
