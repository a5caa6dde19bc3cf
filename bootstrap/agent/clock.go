package agent

import (
	"crypto/x509"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// skew is the clock error above which the server's time is looked at.
	skew = time.Minute
	// batteryNear is how far the battery-backed clock may be from the system's to speak for it:
	// what a crystal that is wrong by 100 ppm is off after a year.
	batteryNear = time.Hour
	// clockSaidEvery is how often the same is said again.
	clockSaidEvery = time.Hour
)

// twoClocks is what is known when the server says what time it is.
type twoClocks struct {
	ours, server time.Time
	// took is how long the call was: the answer may be as old as that, in a machine that was
	// stopped meanwhile.
	took time.Duration
	// byNTP: the kernel says that our clock is kept by NTP.
	byNTP bool
	// leaf is this machine's own certificate; nil before it is enrolled.
	leaf *x509.Certificate
	// confirmed: since this process began our clock was right once, by NTP or by a server.
	confirmed bool
	// battery: the battery-backed clock says what our clock says.
	battery bool
}

// decide says whether the server's time is taken, or why it is refused; neither when the two
// clocks agree.
//
// A machine whose battery is dead has no idea of the time and has to take the server's. All
// others must not: a server whose own clock is wrong would take the whole cluster along, and a
// year ahead ends every certificate of Kubernetes at once. What speaks for our clock is NTP; or
// our certificate, which is good by it and would not be by the server's, where something else
// than habit says that our clock goes right.
func (c twoClocks) decide() (take bool, refused string) {
	d := c.server.Sub(c.ours)
	if d < skew && d > -skew-c.took {
		return false, ""
	}
	if c.byNTP {
		return false, "NTP keeps our clock"
	}
	if c.leaf == nil || goodAt(c.leaf, c.server) || !goodAt(c.leaf, c.ours) {
		return true, ""
	}
	good := fmt.Sprintf("our certificate is good from %s to %s", stamp(c.leaf.NotBefore), stamp(c.leaf.NotAfter))
	switch {
	case c.confirmed:
		return false, good + ", and our clock was right since this agent was started"
	case c.battery:
		return false, good + ", and the machine's battery-backed clock says what ours says"
	}
	// It has just been started, with a time that nothing but a file may have told it: it slept
	// past the end of its certificate.
	return true, ""
}

// agree says whether the two clocks do.
func (c twoClocks) agree() bool {
	take, refused := c.decide()
	return !take && refused == ""
}

func goodAt(c *x509.Certificate, t time.Time) bool {
	return !t.Before(c.NotBefore) && !t.After(c.NotAfter)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// setClock takes the server's time when ours is plainly wrong. The server is
// authenticated by then; certificates, etcd and kubelet all need a clock. It says why the
// server's time is refused; empty when it is not. Only talk calls it.
func (a *Agent) setClock(server *timestamppb.Timestamp, took time.Duration) (refused string) {
	if server == nil || !server.IsValid() {
		return ""
	}
	_, leaf := a.id.current()
	c := twoClocks{ours: a.Now(), server: server.AsTime(), took: took, leaf: leaf, confirmed: a.clockConfirmed}
	c.byNTP = a.keptByNTP != nil && a.keptByNTP()
	if rtc, ok := a.Host.BatteryClock(); ok {
		c.battery = rtc.Sub(c.ours).Abs() < batteryNear
	}
	a.clockConfirmed = a.clockConfirmed || c.byNTP || c.agree()
	take, refused := c.decide()
	switch {
	case take:
		a.Log.Warn("our clock is wrong; taking the server's time", "ours", c.ours, "server", c.server)
		if err := a.Host.SetClock(c.server); err != nil {
			a.Log.Error("setting the clock failed", "err", err)
			return ""
		}
		a.clockConfirmed = true
	case refused != "" && c.ours.Sub(a.clockSaid).Abs() >= clockSaidEvery:
		a.clockSaid = c.ours
		a.Log.Error("the server's clock is not ours; ours stays", "ours", c.ours, "server", c.server, "because", refused)
	}
	return refused
}

// notGood says why a certificate that the server has just signed is not taken; empty for one
// that is good by our clock. Where clocks differ so much, one of them is wrong: a
// certificate from the future is of no use to whoever has the time, and taking it would make
// the server's clock the right one.
func notGood(leaf *x509.Certificate, now time.Time) error {
	if goodAt(leaf, now) {
		return nil
	}
	return fmt.Errorf("the server's certificate is good from %s to %s and our clock says %s: one of the two clocks is wrong, and has to be set", stamp(leaf.NotBefore), stamp(leaf.NotAfter), stamp(now))
}
