package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"connectrpc.com/connect"
	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// witnessPath holds what this node said of the server's audit log last.
const witnessPath = StateDir + "/audit-witness.json"

// witnessRetry is how long after a failure the log is followed again.
const witnessRetry = time.Minute

// signedWitness is a statement with this node's signature; the zero value is none.
type signedWitness struct {
	Statement []byte `json:"statement"`
	Signature []byte `json:"signature"`
}

func (s signedWitness) wire() *api.AuditWitness {
	if len(s.Statement) == 0 {
		return nil
	}
	return &api.AuditWitness{Statement: s.Statement, Signature: s.Signature}
}

// loadWitness reads how far this node has followed the log. What cannot be read is kept beside
// it, and the node begins anew, which shows in what it signs.
func (n *node) loadWitness() error {
	b, err := n.Host.ReadFile(witnessPath)
	if notExist(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading how far the audit log was followed: %w", err)
	}
	var s signedWitness
	if err = json.Unmarshal(b, &s); err == nil {
		_, err = audit.ParseWitness(s.Statement)
	}
	if err != nil {
		n.Log.Error("how far this node has followed the audit log cannot be read; it is kept", "file", witnessPath+".bad", "err", err)
		return n.Host.WriteFile(witnessPath+".bad", b, 0o600)
	}
	n.witness = s
	return nil
}

// keepWitness follows the audit log whenever its end was shown, and signs how far it came,
// until ctx ends. Only control planes do: whoever follows the log reads it.
func (n *node) keepWitness(ctx context.Context) {
	for ctx.Err() == nil {
		wait, done := time.Duration(0), false
		if n.directive().GetControlPlane() {
			var err error
			if done, err = n.followAudit(ctx); err != nil && ctx.Err() == nil {
				n.Log.Warn("the audit log is not signed", "err", err)
				wait = witnessRetry
			}
		}
		if done {
			poke(n.changed)
			_ = pause(ctx, n.witnessPause)
		}
		if wait > 0 {
			// Another end would be shown in vain.
			_ = pause(ctx, wait)
			poke(n.shown)
		}
		select {
		case <-ctx.Done():
		case <-n.shown:
		}
	}
}

// followAudit goes on to the newest end that the server has shown, and signs it. It says
// whether there was anything to sign.
func (n *node) followAudit(ctx context.Context) (bool, error) {
	n.mu.Lock()
	heads, before := n.heads.Heads, n.witness
	n.mu.Unlock()
	if len(heads) == 0 {
		return false, nil
	}
	w := audit.Witness{Cluster: n.Config.Cluster, Node: n.directive().GetMachine()}
	if len(before.Statement) > 0 {
		said, err := audit.ParseWitness(before.Statement)
		if err != nil {
			return false, err
		}
		if said.Cluster == w.Cluster && said.Node == w.Node { // else it has another name now
			w = said
		}
	}
	to := heads[len(heads)-1].Tip
	if to == w.Tip {
		return false, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next, err := w.Follow(n.auditAfter(ctx, w.Seq, to.Seq), to, n.Now())
	if err != nil {
		return false, err
	}
	if len(next.Lost) > len(w.Lost) {
		n.Log.Warn("the server's audit log does not hold what this node has signed", "signed", w.Seq, "end", to.Seq)
	}
	var s signedWitness
	if s.Statement, err = next.Statement(); err != nil {
		return false, err
	}
	if s.Signature, err = pki.Attest(n.id.key, n.Rand, audit.WitnessDomain, s.Statement); err != nil {
		return false, err
	}
	// On the disk first: what was signed is never forgotten.
	b, err := json.Marshal(s)
	if err != nil {
		return false, err
	}
	if err := n.Host.WriteFile(witnessPath, b, 0o600); err != nil {
		return false, err
	}
	n.mu.Lock()
	n.witness = s
	n.mu.Unlock()
	return true, nil
}

// auditAfter are the entries behind one up to another, from the server.
func (n *node) auditAfter(ctx context.Context, seq, to uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		stream, err := n.servers.current().agent.FetchAudit(ctx, connect.NewRequest(&api.FetchAuditRequest{After: seq, To: to}))
		if err != nil {
			yield(nil, fmt.Errorf("following the audit log: %w", err))
			return
		}
		defer stream.Close()
		for stream.Receive() {
			for _, line := range stream.Msg().GetLines() {
				if !yield(line, nil) {
					return
				}
			}
		}
		if err := stream.Err(); err != nil {
			yield(nil, fmt.Errorf("following the audit log: %w", err))
		}
	}
}
