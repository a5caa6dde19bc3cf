package serverapi

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
)

// A node that is in somebody's hands fills neither the log nor the records: its words
// are cut, and to and fro is heard so often and no more.
func TestANodeCannotFillTheLog(t *testing.T) {
	t.Parallel()
	cfg := config(w1())
	now := time.Now()
	var mu sync.Mutex
	cfg.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	r := start(t, cfg)
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	tip := func() audit.Tip {
		tip, err := r.VerifyAudit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return tip
	}
	before := tip()
	fail := &api.SyncRequest{Mode: api.Mode_MODE_NODE, Failure: strings.Repeat("ä", 20_000), Steps: []*api.StepStatus{{Name: "x", Detail: strings.Repeat("y", 5000)}}}
	for range movesBurst {
		f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
		f.sync(fail)
	}
	if n := tip().Seq - before.Seq; n != movesBurst {
		t.Errorf("%d entries for %d reports, want %d", n, 2*movesBurst, movesBurst)
	}
	m, _ := r.store.Machine("w1")
	if n := len(m.Reason); n == 0 || n > maxWords+len("…") {
		t.Errorf("a reason of %d bytes is on record", n)
	}
	if last, _ := r.board.get("w1"); len(last.last.GetSteps()[0].GetDetail()) > maxWords+len("…") {
		t.Error("a long detail is kept")
	}
	mu.Lock()
	now = now.Add(movesEvery)
	mu.Unlock()
	f.sync(&api.SyncRequest{Mode: api.Mode_MODE_NODE})
	f.sync(fail)
	if n := tip().Seq - before.Seq; n != movesBurst+1 {
		t.Errorf("later: %d entries, want %d", n, movesBurst+1)
	}
}
