package serverapi

import (
	"context"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// loadTip reads where the audit log ends.
func (s *Server) loadTip(ctx context.Context) error {
	var tip audit.Tip
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		tip = audit.Tip{}
		_, err := tx.Value(valueAuditTip, &tip)
		return err
	})
	if err == nil {
		s.keepTip(tip)
	}
	return err
}

// keepTip remembers where the audit log ends. Two changes may come in any order.
func (s *Server) keepTip(tip audit.Tip) {
	for {
		old := s.tip.Load()
		if tip.Seq == 0 || old != nil && old.Seq >= tip.Seq || s.tip.CompareAndSwap(old, &tip) {
			return
		}
	}
}

// auditHead is the end of the audit log, signed once; nil for an empty one. What cannot be
// signed is not shown: nobody waits for it.
func (s *Server) auditHead() *api.AuditHead {
	tip := s.tip.Load()
	if tip == nil {
		return nil
	}
	if h := s.head.Load(); h != nil && h.Tip == *tip {
		return wireHead(*h)
	}
	signature, err := s.authority.imagectl.Attest(audit.HeadDomain, tip.Statement(s.cfg.Cluster))
	if err != nil {
		s.cfg.Log.Error("signing the end of the audit log", "error", err.Error())
		return nil
	}
	h := audit.Head{Tip: *tip, Signature: signature}
	s.head.Store(&h)
	return wireHead(h)
}

func wireHead(h audit.Head) *api.AuditHead {
	return &api.AuditHead{Seq: h.Seq, Hash: h.Hash, Signature: h.Signature}
}
