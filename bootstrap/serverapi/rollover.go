package serverapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// The CA imagectl, which signs the certificates of machines, operators and servers, is rolled
// over in three steps. Each is one transaction, and what a step needs is asked of the records
// and reports of that moment, so a server that dies between them, or is asked twice, does
// nothing else.

// phase is how far a rollover is.
type phase string

const (
	// settled: one CA signs and is trusted.
	settled phase = "settled"
	// prepared: another CA is trusted too, and signs nothing yet.
	prepared phase = "prepared"
	// activated: that CA signs, and the one before is trusted still.
	activated phase = "activated"
)

// rollover is what is stored of it besides the keys. The zero value: there never was one.
type rollover struct {
	Phase phase     `json:"phase,omitempty"`
	Since time.Time `json:"since,omitzero"`
	By    string    `json:"by,omitempty"`
	// Other is the certificate (PEM) that is trusted besides the one that signs: the next
	// or the old one. Empty when settled.
	Other string `json:"other,omitempty"`
	// Cross are the certificates of both by the other, of this rollover or the last one.
	Cross string `json:"cross,omitempty"`
	// Former are those that signed once, oldest first.
	Former string `json:"former,omitempty"`
	// Trusted are the pki.KeyIDs of those that are trusted; empty: there is one CA only.
	Trusted []string `json:"trusted,omitempty"`
}

func (r rollover) phase() phase { return cmp.Or(r.Phase, settled) }

// trusts says whether a certificate is by a CA that is trusted.
func (r rollover) trusts(keyID string) bool {
	return len(r.Trusted) == 0 || slices.Contains(r.Trusted, keyID)
}

// rollStep is what an operator asks for.
type rollStep string

const (
	rollPrepare  rollStep = "prepare"
	rollActivate rollStep = "activate"
	rollFinish   rollStep = "finish"
	rollCancel   rollStep = "cancel"
)

// verdict is what becomes of a step.
type verdict int

const (
	rollDo verdict = iota
	// rollDone: there is nothing to do.
	rollDone
	rollRefused
)

// decideRoll says by the phase alone what becomes of a step, and why it is not done.
func decideRoll(step rollStep, r rollover) (verdict, string) {
	since := fmt.Sprintf("at %s by %s", r.Since.UTC().Format(time.RFC3339), r.By)
	switch at := r.phase(); {
	case step == rollPrepare && at == prepared:
		return rollDone, "nothing to do: another CA was prepared " + since + "; next: imagectl server ca activate"
	case step == rollPrepare && at == activated:
		return rollRefused, "a rollover is under way: its CA was activated " + since + "; end it first: imagectl server ca finish"
	case step == rollActivate && at == activated:
		return rollDone, "nothing to do: the new CA was activated " + since + "; next: imagectl server ca finish"
	case step == rollActivate && at == settled:
		return rollRefused, "no other CA is prepared: imagectl server ca prepare"
	case step == rollFinish && at == settled:
		return rollDone, "nothing to do: one CA signs and is trusted"
	case step == rollFinish && at == prepared:
		return rollRefused, "the new CA does not sign yet: imagectl server ca activate, or imagectl server ca cancel"
	case step == rollCancel && at == settled:
		return rollDone, "nothing to do: one CA signs and is trusted"
	case step == rollCancel && at == activated:
		return rollRefused, "the new CA was activated " + since + ", and the old one's key is gone: go on with imagectl server ca finish"
	}
	return rollDo, ""
}

// rollView is what the next step is decided by, besides the phase.
type rollView struct {
	now time.Time
	// since is when the phase began, started when this server did.
	since, started time.Time
	// signs is the KeyID of the CA that signs.
	signs        string
	machines     []rollMachine
	certificates []rollCertificate
	// backups are made, the newest good one at backup.
	backups bool
	backup  time.Time
}

// rollMachine is a machine with an accepted key.
type rollMachine struct {
	name string
	// end is its newest certificate's.
	end time.Time
	// heard is when it called this server last; the zero time for never since it started.
	heard time.Time
	// agent is its version. trusts: it has said that it trusts the other CA. current: it
	// called last with a certificate of the one that signs.
	agent           string
	trusts, current bool
}

// rollCertificate is a certificate of CA imagectl that counts: not ended, not revoked.
type rollCertificate struct {
	holder holder
	// by is the KeyID of its CA; empty for one from before that was kept.
	by  string
	end time.Time
}

// obstacle is what a step waits for. holder is empty for what cannot be left out.
type obstacle struct {
	holder holder
	text   string
}

// obstacles are what is in the way of a step that the phase allows, sorted.
func (v rollView) obstacles(step rollStep) []obstacle {
	var out []obstacle
	switch step {
	case rollActivate:
		for _, m := range v.machines {
			if why := v.untrusting(m); why != "" {
				out = append(out, obstacle{holderOf(pki.KindNode, m.name), why})
			}
		}
	case rollFinish:
		out = v.stillOld()
		if v.backups && !v.backup.After(v.since) {
			out = append(out, obstacle{text: fmt.Sprintf("no backup was made since %s, when the new CA began to sign: whoever restores an older one has a CA that nobody trusts then; imagectl server backup", stamp(v.since))})
		}
	}
	slices.SortFunc(out, func(a, b obstacle) int { return cmp.Compare(a.holder, b.holder) })
	return out
}

// untrusting says why a machine would not know who calls it when the new CA signs; empty
// when it would. One whose certificate has ended enrols anew and learns of the CA then.
func (v rollView) untrusting(m rollMachine) string {
	left := "its certificate is good until " + stamp(m.end)
	switch {
	case m.trusts || v.now.After(m.end):
		return ""
	case m.heard.IsZero():
		return fmt.Sprintf("%s has not called since this server started at %s, so it has not said that it trusts the new CA; %s", m.name, stamp(v.started), left)
	case v.now.Sub(m.heard) >= silence:
		return fmt.Sprintf("%s has not called since %s, and did not trust the new CA then; %s", m.name, stamp(m.heard), left)
	}
	return fmt.Sprintf("%s calls, and does not trust the new CA yet (agent %s); %s", m.name, cmp.Or(m.agent, "of unknown version"), left)
}

// stillOld names those who would be refused with the old CA's certificate.
func (v rollView) stillOld() []obstacle {
	current := map[holder]bool{}
	for _, m := range v.machines {
		current[holderOf(pki.KindNode, m.name)] = m.current
	}
	last := map[holder]time.Time{}
	for _, c := range v.certificates {
		// A server makes itself another one. That a machine holds one of the new CA too does
		// not say that it got it: the answer may have been lost.
		if c.by != v.signs && !current[c.holder] && !strings.HasPrefix(string(c.holder), string(pki.KindServer)+"/") && c.end.After(last[c.holder]) {
			last[c.holder] = c.end
		}
	}
	var out []obstacle
	for h, end := range last {
		text := fmt.Sprintf("%s holds a certificate of the old CA until %s", h, stamp(end))
		if name := h.machine(); name != "" {
			text = fmt.Sprintf("%s holds a certificate of the old CA until %s and has not called with one of the new", name, stamp(end))
		}
		out = append(out, obstacle{h, text})
	}
	return out
}

// leftOut takes away those that are given up, by holder or by a machine's name. unknown are
// names of which nothing was in the way.
func leftOut(all []obstacle, without []string) (left []obstacle, unknown []string) {
	left = slices.Clone(all)
	for _, name := range without {
		n := len(left)
		left = slices.DeleteFunc(left, func(o obstacle) bool {
			return o.holder != "" && (string(o.holder) == name || o.holder.machine() == name)
		})
		if len(left) == n {
			unknown = append(unknown, name)
		}
	}
	return left, unknown
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// caNotice is how long before its end a CA is told of. Certificates live ninety days, and
// whoever plans the work has the rest of a year.
const caNotice = 365 * 24 * time.Hour

// caEndNote tells of a CA's end; empty when that is far away. how is the command that makes
// another; empty for none.
func caEndNote(name string, end time.Time, how string, now time.Time) string {
	left := end.Sub(now)
	if left > caNotice {
		return ""
	}
	text := fmt.Sprintf("warning: CA %s ends at %s, in %d days; a certificate that would outlive it is not signed", name, stamp(end), int(max(left, 0).Hours()/24))
	if how != "" {
		return text + ": " + how
	}
	return text + ", and there is no command that makes another: build the cluster anew before that"
}
