package serverapi

import (
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// A backup from between prepare and activate has both keys: the server that is restored from
// it is known to machines in whatever phase they are, and the rollover is done once more.
func TestAServerIsRestoredToBeforeTheActivation(t *testing.T) {
	t.Parallel()
	r, c, _ := agedRig(t)
	nodes := []*lived{r.live(c, "cp1", cp1MAC), r.live(c, "w1", w1MAC)}
	r.step(rollPrepare)
	r.may(rollActivate)
	b := r.backup()
	cfg := r.cfg
	r.keeps, cfg.Backups = nil, nil // finish waits for no backup then
	old, next := r.trust.Load().trusted[0], r.trust.Load().trusted[1]
	// have waits until each machine has called with a certificate of the CA that signs now.
	have := func(when string) {
		t.Helper()
		c.pass(2 * time.Minute) // agents ask for another certificate once a minute
		for _, l := range nodes {
			r.soon(l.name+"'s call with a certificate of the CA that signs, "+when, func() bool {
				got, called := r.board.get(l.name)
				return called && got.issuer == pki.KeyID(r.signer().Certificate())
			})
		}
	}
	back := func(when string) {
		t.Helper()
		r.restore(cfg, b, c.Now())
		if trusted := r.trust.Load().trusted; r.trust.Load().phase() != prepared || !trusted[0].Equal(old) || !trusted[1].Equal(next) {
			t.Fatalf("%s: %s, and %d CAs are trusted", when, r.trust.Load().phase(), len(trusted))
		}
		have(when)
	}
	r.step(rollActivate)
	have("activated")
	back("restored after activate")

	r.may(rollActivate)
	r.step(rollActivate)
	have("activated again")
	c.pass(13 * time.Hour) // operators' certificates of the old CA end
	r.may(rollFinish)
	r.step(rollFinish)
	for _, l := range nodes {
		r.soon(l.name+" to trust the new CA only", func() bool {
			got, called := r.board.get(l.name)
			return called && len(got.last.GetTrusts()) == 1 && got.last.GetTrusts()[0] == pki.Digest(next)
		})
	}
	back("restored after finish")
}
