package serverapi

import (
	"errors"
	"testing"
	"testing/iotest"
	"time"
)

// A server that cannot renew its own certificate, as on a full disk, goes on with
// the one it has while that is good.
func TestTheServersCertificateOutlivesAFailedRenewal(t *testing.T) {
	t.Parallel()
	now := time.Now()
	cfg := config(cp1())
	cfg.Now = func() time.Time { return now }
	r := start(t, cfg)
	own := &ownCertificate{server: r.Server}
	first, err := own.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	good := r.Server.cfg.Rand
	r.Server.cfg.Rand = iotest.ErrReader(errors.New("broken"))
	now = now.Add(15 * 24 * time.Hour)
	if got, err := own.get(nil); err != nil || got != first {
		t.Fatalf("due, but not renewed: got %v, want the old one", err)
	}
	r.Server.cfg.Rand = good
	now = now.Add(renewPause)
	if got, err := own.get(nil); err != nil || got == first {
		t.Errorf("when it can be renewed again: got the old one, %v", err)
	}
	r.Server.cfg.Rand = iotest.ErrReader(errors.New("broken"))
	now = now.Add(40 * 24 * time.Hour)
	if got, err := own.get(nil); err == nil {
		t.Errorf("an expired one is shown: %v", got.Leaf.NotAfter)
	}
}
