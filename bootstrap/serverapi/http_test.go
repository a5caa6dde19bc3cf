package serverapi

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// A server that cannot renew its own certificate, as on a full disk, goes on with
// the one it has while that is good.
func TestTheServersCertificateOutlivesAFailedRenewal(t *testing.T) {
	t.Parallel()
	now := time.Now()
	cfg := config(cp1())
	cfg.Now = func() time.Time { return now }
	r := start(t, cfg)
	r.machine("52:54:00:00:00:01").enrol() // what serves has its certificate by now
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

// A stream must not outlive the certificate that opened it: hours are all that an
// operator who left still has.
func TestWatchingEndsWithTheCertificate(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	cfg := config(cp1())
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := start(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	stream, err := r.operator(pki.RoleReader).WatchMachines(ctx, connect.NewRequest(&api.WatchMachinesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		t.Fatalf("nothing came: %v", stream.Err())
	}
	ahead.Store(int64(13 * time.Hour))
	for stream.Receive() {
	}
	if code := connect.CodeOf(stream.Err()); code != connect.CodeUnauthenticated {
		t.Errorf("it ended with %v, want unauthenticated", stream.Err())
	}
}

// A machine that was silent for long and says the same as before is back at once,
// not when the next one has news.
func TestAMachineIsBackWithTheSameReport(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	cfg := config(cp1(), w1())
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	r := start(t, cfg)
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	if got := f.sync(installer()).GetWait().GetReasonCode(); got != "not-armed" {
		t.Fatalf("got %s", got)
	}
	ahead.Store(int64(silence + time.Second))
	if _, _, err := r.decide(t.Context()); err != nil { // somebody else looks
		t.Fatal(err)
	}
	if got := f.sync(installer()).GetWait(); got.GetReasonCode() != "not-armed" {
		t.Errorf("back again it is told: %s", got.GetReason())
	}
}
