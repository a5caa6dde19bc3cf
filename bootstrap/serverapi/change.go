package serverapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Names of values in the store.
const (
	valueAuditTip = "audit-tip"
	valueChoices  = "choices"
)

// change is a transaction with the audit entries that belong to it.
type change struct {
	tx      *store.Tx
	actor   audit.Actor
	now     time.Time
	entries []audit.Entry
	// arguments is the digest of the call that wants the change; nil for none.
	arguments func() string
	// revoked is set when the change revokes something.
	revoked *revocations
}

// change runs f in a transaction and commits its audit entries with it. f may
// run several times.
func (s *Server) change(ctx context.Context, actor audit.Actor, f func(c *change) error) error {
	var revoked *revocations
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		c := &change{tx: tx, actor: actor, now: s.cfg.Now()}
		if actor != s.self() { // what the server decides on the way is no part of the call
			c.arguments = argumentsOf(ctx)
		}
		if err := f(c); err != nil {
			revoked = nil
			return err
		}
		revoked = c.revoked
		return c.seal()
	})
	switch {
	case revoked == nil:
	case err == nil:
		s.keepRevoked(*revoked)
	default:
		s.reloadRevoked(ctx)
	}
	return err
}

// log adds an entry; time, actor and what is known of the call are filled in.
func (c *change) log(e audit.Entry) {
	e.Time, e.Actor = c.now, c.actor
	if c.arguments != nil {
		e.Arguments, e.Result = c.arguments(), cmp.Or(e.Result, audit.Done)
	}
	c.entries = append(c.entries, e)
}

func (c *change) seal() error {
	if len(c.entries) == 0 {
		return nil
	}
	var tip audit.Tip
	if _, err := c.tx.Value(valueAuditTip, &tip); err != nil {
		return err
	}
	for _, e := range c.entries {
		line, next, err := audit.Seal(tip, e)
		if err != nil {
			return err
		}
		c.tx.PutAudit(next.Seq, line)
		tip = next
	}
	return c.tx.PutValue(valueAuditTip, tip)
}

// errNoRecord says that a machine has no record.
var errNoRecord = errors.New("there is no record of this machine")

// machine reads a record that must exist.
func (c *change) machine(name string) (store.Machine, error) {
	m, ok, err := c.tx.Machine(name)
	if err == nil && !ok {
		err = fmt.Errorf("reading machine %s: %w", name, errNoRecord)
	}
	return m, err
}

// move takes a record through events; m is changed only when all are possible.
// One entry tells the whole way.
func (c *change) move(m *store.Machine, action, reason string, events ...machine.Event) error {
	to := m.State
	for _, e := range events {
		var err error
		if to, err = machine.Next(to, e); err != nil {
			return err
		}
	}
	if to == m.State {
		return nil
	}
	c.log(audit.Entry{Action: action, Machine: m.Name, Before: string(m.State), After: string(to), Detail: reason})
	m.State, m.Since, m.Reason = to, c.now, reason
	return nil
}

// self is the actor of what the server does by itself.
func (s *Server) self() audit.Actor {
	return audit.Actor{Subject: pki.Identity{Cluster: s.cfg.Cluster, Kind: pki.KindServer, Name: "imagectl"}.String()}
}

// auditTip is where the audit log ends now.
func (s *Server) auditTip(ctx context.Context) (audit.Tip, error) {
	var tip audit.Tip
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		tip = audit.Tip{}
		_, err := tx.Value(valueAuditTip, &tip)
		return err
	})
	return tip, err
}

// VerifyAudit reads the whole audit log, up to where it ends at the call, and checks its
// chain. It may grow meanwhile.
func (s *Server) VerifyAudit(ctx context.Context) (audit.Tip, error) {
	tip, err := s.auditTip(ctx)
	if err != nil {
		return audit.Tip{}, err
	}
	behind := false
	lines := func(yield func([]byte, error) bool) {
		seq := uint64(0)
		for line, err := range s.cfg.Store.AuditLines(ctx) {
			if seq++; err == nil && seq > tip.Seq {
				behind = true
				return
			}
			if !yield(line, err) {
				return
			}
		}
	}
	if err := audit.Verify(lines, tip); err != nil || !behind {
		return tip, err
	}
	now, err := s.auditTip(ctx)
	if err == nil && now == tip {
		err = fmt.Errorf("verifying audit log: there are entries behind its end, %d", tip.Seq)
	}
	return tip, err
}
