// Package funnel follows each machine through its boot, from the first DHCP
// request to the approved key: which stage it has come to, how long each took, and
// what refused it last. It is fed with boot.Events and knows no clock but theirs.
//
// Boot.Next is the whole logic and pure; Funnel keeps one Boot for each machine of
// cluster.yaml and for a bounded number of others. All of it is lost when the
// server ends: machines are where they are, and their next boot is seen again.
package funnel

import (
	"fmt"
	"slices"
	"time"

	"github.com/imagectl/imagectl/pxe/boot"
)

// pause is how long a machine may be silent in DHCP before its next request is
// taken for another start. UEFI tries for 60 s, a person at the setup for longer.
const pause = 5 * time.Minute

const (
	// maxOffers is how often firmware is offered something before its silence means
	// something: UEFI asks four times for a boot (EDK2: mPxeDhcpTimeout).
	maxOffers = 4
	// apart is how much later another request comes; a relay may bring one twice.
	apart = time.Second
	// CodeNoRequest is of firmware that is offered something again and again, and does not
	// ask for it (netboot quirk 5).
	CodeNoRequest = "no-request"
)

// Boot is one machine's newest boot. The zero value is a machine that was not seen
// yet.
type Boot struct {
	// Began is the first event, Seen the newest one.
	Began, Seen time.Time
	// Stage is the furthest that it came to, At when that was.
	Stage boot.Stage
	At    time.Time
	// Action is what its script told it; empty before.
	Action boot.Action
	// Refusal is the last one, of this boot or an earlier one, and when it was.
	Refusal   boot.Refusal
	RefusedAt time.Time
	// offers were made one after the other, and nothing else was heard since; offered is
	// when the last one was.
	offers  int
	offered time.Time
}

// Step is what an event changed.
type Step struct {
	// To is the stage that was reached; empty when none was.
	To boot.Stage
	// Took is the time since the stage before; Timed says that there was one.
	Took  time.Duration
	Timed bool
	// News: something that people look at is different now.
	News bool
	// Found is a refusal that no single event is: what several of them mean.
	Found boot.Refusal
}

// Over says that nothing of the boot is left to wait for: the machine was told to
// boot its own disk, or its key is approved.
func (b Boot) Over() bool {
	return b.Stage == boot.StageEnrolled || (b.Stage == boot.StageScript && !b.Action.Loads())
}

// Next is the boot after an event. It does not change b.
func (b Boot) Next(e boot.Event) (Boot, Step) {
	if b.Over() && e.At.Sub(b.Seen) < pause && asksOn(e) {
		return b, Step{}
	}
	var s Step
	if e.Refusal != (boot.Refusal{}) {
		s.News = b.Refusal != e.Refusal
		b.Refusal, b.RefusedAt = e.Refusal, e.At
	}
	switch {
	case b.startsAnew(e):
		b = Boot{Began: e.At, Stage: e.Stage, At: e.At, Refusal: b.Refusal, RefusedAt: b.RefusedAt, offers: b.offers, offered: b.offered}
		s.To, s.News = e.Stage, true
	case b.advances(e):
		s.To, s.Took, s.Timed, s.News = e.Stage, max(0, e.At.Sub(b.At)), true, true
		b.Stage, b.At = e.Stage, e.At
	}
	if e.Stage == boot.StageScript {
		s.News = s.News || b.Action != e.Action
		b.Action = e.Action
	}
	if before := b.offers; b.countOffer(e) && b.offers > before && b.offers >= maxOffers {
		s.Found = notTaken(e.Offer, b.offers)
		s.News = true
		b.Refusal, b.RefusedAt = s.Found, e.At
	}
	b.Seen = e.At
	return b, s
}

// countOffer counts those in a row; it is false when an event ends the row.
func (b *Boot) countOffer(e boot.Event) bool {
	switch {
	case e.Offer == "" || !e.Firmware:
		b.offers, b.offered = 0, time.Time{}
		return false
	case e.At.Sub(b.offered) >= pause:
		b.offers, b.offered = 1, e.At
	case e.At.Sub(b.offered) >= apart:
		b.offers, b.offered = b.offers+1, e.At
	}
	return true
}

// notTaken says what is known of firmware that was offered something so often, and what
// to do.
func notTaken(offer boot.Offer, times int) boot.Refusal {
	reason := fmt.Sprintf("it was offered an address %d times and has not asked for it, nor for another server's as far as is heard here: "+
		"our offers do not reach its firmware (look at relay, VLAN and what filters broadcasts), or it does not take such ones; capture at its port, and see imagectl why CAPTURE", times)
	if offer == boot.OfferProgram {
		reason = fmt.Sprintf("it was offered a boot program %d times and has asked nobody for an address, as far as is heard here: "+
			"the other DHCP server offers it none, or its firmware does not join two offers (quirk 5): then let that server name the boot program, or set boot.dhcp: authoritative", times)
	}
	return boot.Refusal{Code: CodeNoRequest, Reason: reason}
}

// asksOn says whether an event may come from a machine that was sent to its own
// disk already: its firmware asks for HTTP boot and whatever else is in its boot
// order first. That is no news about this machine.
func asksOn(e boot.Event) bool {
	switch e.Stage {
	case boot.StageDHCP:
		return e.Refusal != (boot.Refusal{}) || e.Action == boot.Local
	case boot.StageScript:
		return e.Firmware && e.Action == boot.Local
	}
	return false
}

// startsAnew says whether an event belongs to another boot than b.
func (b Boot) startsAnew(e boot.Event) bool {
	if e.Stage == boot.StageEnrolled {
		return false // also an installed system renews its certificate
	}
	served := e.Refusal == (boot.Refusal{})
	switch {
	case b.Stage == "":
		return true
	case e.Stage == boot.StageDHCP:
		switch b.Stage {
		case boot.StageDHCP:
			return e.At.Sub(b.Seen) >= pause
		case boot.StageNBP:
			return e.Firmware && served // else iPXE asks, which it has just loaded
		}
		return served
	case e.Stage == boot.StageNBP:
		return served && order(b.Stage) >= order(boot.StageScript)
	case e.Stage == boot.StageScript:
		return b.Over() || order(b.Stage) > order(boot.StageScript)
	}
	return false
}

// advances says whether an event takes the boot further. A refused request does
// not, except for a script: that is delivered, whatever it says.
func (b Boot) advances(e boot.Event) bool {
	switch {
	case e.Refusal != (boot.Refusal{}) && e.Stage != boot.StageScript:
		return false
	case e.Stage == boot.StageEnrolled:
		return !b.Over() && order(b.Stage) >= order(boot.StageKernel)
	}
	return !b.Over() && order(e.Stage) > order(b.Stage)
}

// order is a stage's place in a boot; -1 for none.
func order(s boot.Stage) int { return slices.Index(boot.Stages(), s) }
