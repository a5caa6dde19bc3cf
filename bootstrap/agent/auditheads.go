package agent

import (
	"encoding/json"
	"fmt"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// headsPath holds which ends of the server's audit log this node was shown.
const headsPath = StateDir + "/audit-heads.json"

// loadHeads reads what the node remembers. What cannot be read is kept beside it: it may
// be the only proof.
func (n *node) loadHeads() error {
	b, err := n.Host.ReadFile(headsPath)
	if notExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the ends of the audit log: %w", err)
	}
	if err := json.Unmarshal(b, &n.heads); err != nil {
		n.Log.Error("the ends of the audit log that this node was shown cannot be read; they are kept", "file", headsPath+".bad", "err", err)
		n.heads = audit.Memory{}
		return n.Host.WriteFile(headsPath+".bad", b, 0o600)
	}
	return nil
}

// see remembers a head that the server has signed, on disk first.
func (n *node) see(h *api.AuditHead) {
	if h == nil {
		return
	}
	head := audit.Head{Tip: audit.Tip{Seq: h.GetSeq(), Hash: h.GetHash()}, Signature: h.GetSignature()}
	if err := pki.CheckAttestedByAny(n.authority.roots(), audit.HeadDomain, head.Statement(n.Config.Cluster), head.Signature); err != nil {
		n.Log.Warn("the end of the audit log is not remembered", "err", err)
		return
	}
	n.mu.Lock()
	before := n.heads
	n.mu.Unlock()
	next, changed := before.See(head, n.Now())
	if !changed {
		return
	}
	if len(next.Lost) > len(before.Lost) {
		n.Log.Warn("the server's audit log went back", "from", before.Heads[len(before.Heads)-1].Seq, "to", head.Seq)
	}
	b, err := json.Marshal(next)
	if err == nil {
		err = n.Host.WriteFile(headsPath, b, 0o600)
	}
	if err != nil {
		n.Log.Error("remembering the end of the audit log", "err", err)
		return
	}
	n.mu.Lock()
	n.heads = next
	n.mu.Unlock()
	poke(n.shown)
}

// AuditHeads implements nodeapi.Node.
func (n *node) AuditHeads() *api.AuditHeadsResponse {
	n.mu.Lock()
	defer n.mu.Unlock()
	wire := func(all []audit.Seen) []*api.AuditHeadsResponse_Seen {
		var out []*api.AuditHeadsResponse_Seen
		for _, s := range all {
			out = append(out, &api.AuditHeadsResponse_Seen{Head: &api.AuditHead{Seq: s.Seq, Hash: s.Hash, Signature: s.Signature}, At: timestamppb.New(s.At)})
		}
		return out
	}
	resp := &api.AuditHeadsResponse{Heads: wire(n.heads.Heads), Lost: wire(n.heads.Lost), Witness: n.witness.wire()}
	if resp.Witness != nil {
		_, cert := n.id.files()
		resp.Witness.CertificatePem = string(cert)
	}
	return resp
}
