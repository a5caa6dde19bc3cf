package serverapi

import (
	"testing"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
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
		if err := pki.CheckAttested(r.authority.imagectl.Certificate(), audit.HeadDomain, audit.Tip{Seq: h.GetSeq(), Hash: h.GetHash()}.Statement("demo"), h.GetSignature()); err != nil {
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
