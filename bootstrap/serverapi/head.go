package serverapi

import (
	"context"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
)

// auditHead is the end of the audit log now, signed; nil for an empty log. It is read each
// time: another server may have written, and a node must never be shown an older one than
// before.
func (s *Server) auditHead(ctx context.Context) (*api.AuditHead, error) {
	tip, err := s.auditTip(ctx)
	if err != nil || tip.Seq == 0 {
		return nil, err
	}
	h := s.head.Load()
	if h == nil || h.Tip != tip {
		signature, err := s.signer().Attest(audit.HeadDomain, tip.Statement(s.cfg.Cluster))
		if err != nil {
			return nil, err
		}
		h = &audit.Head{Tip: tip, Signature: signature}
		s.head.Store(h)
	}
	return &api.AuditHead{Seq: h.Seq, Hash: h.Hash, Signature: h.Signature}, nil
}
