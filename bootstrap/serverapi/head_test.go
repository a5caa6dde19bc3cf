package serverapi

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Each answer to a node carries the end of the log, signed, and it is the log's; that it
// moves on is no news that wakes a node.
func TestNodesAreShownTheEndOfTheAuditLog(t *testing.T) {
	t.Parallel()
	cfg := config(cp1(), w1())
	r := start(t, cfg)
	f := r.approvedMachine("w1", "52:54:00:00:00:02")
	check := func(when string) *api.SyncResponse {
		t.Helper()
		resp := f.sync(installer())
		h := resp.GetAuditHead()
		tip, err := r.VerifyAudit(t.Context())
		if err != nil || h.GetSeq() != tip.Seq || h.GetHash() != tip.Hash {
			t.Errorf("%s: got %v, the log ends with %v, %v", when, h, tip, err)
		}
		if err := pki.CheckAttested(r.signer().Certificate(), audit.HeadDomain, audit.Tip{Seq: h.GetSeq(), Hash: h.GetHash()}.Statement("demo"), h.GetSignature()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		return resp
	}
	before := check("at first")
	r.approvedMachine("cp1", "52:54:00:00:00:01")
	after := check("after a change")
	if before.GetAuditHead().GetSeq() >= after.GetAuditHead().GetSeq() || before.GetRevision() != after.GetRevision() {
		t.Errorf("from %v to %v", before, after)
	}
	r.restart(cfg)
	check("after a restart")
}

func TestTheLogIsWholeWhileItGrows(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	ctx, stop := context.WithCancel(t.Context())
	var written atomic.Int64
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			if err := r.change(ctx, r.self(), func(c *change) error {
				c.log(audit.Entry{Action: "test"})
				return nil
			}); err == nil {
				written.Add(1)
			}
		}
	}()
	for i := 0; i < 50 || written.Load() == 0 && t.Context().Err() == nil; i++ {
		if _, err := r.VerifyAudit(t.Context()); err != nil {
			t.Error(err)
		}
	}
	stop()
	<-over
}

func TestAnEntryBehindTheEndIsFound(t *testing.T) {
	t.Parallel()
	r := start(t, config(w1()))
	tip, err := r.VerifyAudit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tip.Seq += 1000 // the server itself adds some at its start
	if err := r.store.Change(t.Context(), func(tx *store.Tx) error {
		line, next, err := audit.Seal(tip, audit.Entry{Action: "test"})
		tx.PutAudit(next.Seq, line)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// While the log grows, what is behind its end may be what has just been added.
	for err == nil && t.Context().Err() == nil {
		_, err = r.VerifyAudit(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "entries behind its end") {
		t.Errorf("got %v", err)
	}
}
