package serverapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

const (
	// valueSignatures and a machine's name is what it has signed of the log.
	valueSignatures = "audit-signatures/"
	// maxStatement bounds a statement; one with all losses that it can have is shorter.
	maxStatement = 16 << 10
)

// signature is what a control plane said of the audit log, with the certificate of its key.
type signature struct {
	Statement   []byte `json:"statement"`
	Signature   []byte `json:"signature"`
	Certificate string `json:"certificate"`
}

// FetchAudit implements apiconnect.AgentServiceHandler.
func (s agents) FetchAudit(ctx context.Context, req *connect.Request[api.FetchAuditRequest], stream *connect.ServerStream[api.FetchAuditResponse]) error {
	from := callerOf(ctx)
	if !s.isControlPlane(from.identity.Name) {
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is no control plane", from.identity.Name))
	}
	name, at := from.identity.Name, req.Msg.GetAfter()
	sent, _ := s.followed.Load(name)
	until, _ := sent.(uint64)
	done, err := s.mayRead(name, at+rereadFree < until, "the audit log")
	if err != nil {
		return err
	}
	defer done()
	// What was sent counts, however this ends.
	send := func(resp *api.FetchAuditResponse) error {
		if at += uint64(len(resp.GetLines())); len(resp.GetLines()) > 0 {
			until = max(at, until)
			s.followed.Store(name, until)
		}
		return stream.Send(resp)
	}
	const most = 200 // entries a message
	resp := &api.FetchAuditResponse{}
	for line, err := range s.cfg.Store.AuditLinesAfter(ctx, req.Msg.GetAfter()) {
		if err != nil {
			return s.storing(from.identity.Name, err)
		}
		resp.Lines = append(resp.Lines, line)
		if to := req.Msg.GetTo(); to > 0 && at+uint64(len(resp.GetLines())) >= to {
			break
		}
		if len(resp.GetLines()) < most {
			continue
		}
		if err := s.allowNode(from); err != nil {
			return err
		}
		if err := send(resp); err != nil {
			return err
		}
		resp = &api.FetchAuditResponse{}
	}
	return send(resp)
}

// keepSignature stores what a control plane has signed. It is no entry of the log, which
// would be news to sign. A signature that is none of the caller's stops nothing.
func (s agents) keepSignature(ctx context.Context, from caller, w *api.AuditWitness) {
	name := from.identity.Name
	if w == nil || !s.isControlPlane(name) {
		return
	}
	if last, ok := s.signatures.Load(name); ok && bytes.Equal(last.([]byte), w.GetSignature()) {
		return
	}
	said, err := s.judge(from, w)
	if err == nil && !s.signing.allow(name, s.cfg.Now()) {
		return
	}
	if err == nil {
		if len(said.Lost) > 0 {
			s.cfg.Log.Warn("a node has signed entries of the audit log that it does not hold", "machine", name, "entry", said.Lost[0].Seq)
		}
		err = s.storeSignature(ctx, from, w)
	}
	if err != nil {
		s.cfg.Log.Warn("a signature of the audit log is not kept", "machine", name, "error", err.Error())
	}
}

// judge reads what the caller has signed with the key that it has now.
func (s agents) judge(from caller, w *api.AuditWitness) (audit.Witness, error) {
	name := from.identity.Name
	if len(w.GetStatement()) > maxStatement {
		return audit.Witness{}, fmt.Errorf("it has %d bytes, more than %d", len(w.GetStatement()), maxStatement)
	}
	said, err := audit.ParseWitness(w.GetStatement())
	if err != nil {
		return audit.Witness{}, err
	}
	if said.Cluster != s.cfg.Cluster || said.Node != name {
		return audit.Witness{}, fmt.Errorf("%s says what %s of cluster %s should", name, said.Node, said.Cluster)
	}
	return said, pki.CheckAttested(from.leaf, audit.WitnessDomain, w.GetStatement(), w.GetSignature())
}

func (s agents) storeSignature(ctx context.Context, from caller, w *api.AuditWitness) error {
	name := from.identity.Name
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		return c.tx.PutValue(valueSignatures+name, signature{w.GetStatement(), w.GetSignature(), string(pki.EncodeCertificate(from.leaf.Raw))})
	})
	if err == nil {
		s.signatures.Store(name, bytes.Clone(w.GetSignature()))
	}
	return err
}

// ListAuditSignatures implements apiconnect.OperatorServiceHandler.
func (s operators) ListAuditSignatures(ctx context.Context, _ *connect.Request[api.ListAuditSignaturesRequest]) (*connect.Response[api.ListAuditSignaturesResponse], error) {
	all, err := s.cfg.Store.Values(ctx, valueSignatures)
	if err != nil {
		return nil, s.storing("", err)
	}
	resp := &api.ListAuditSignaturesResponse{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		var each signature
		if err := json.Unmarshal(all[name], &each); err != nil {
			return nil, s.storing("", fmt.Errorf("reading what %s has signed: %w", name, err))
		}
		resp.Witnesses = append(resp.Witnesses, &api.AuditWitness{Statement: each.Statement, Signature: each.Signature, CertificatePem: each.Certificate})
	}
	return connect.NewResponse(resp), nil
}
