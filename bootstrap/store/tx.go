package store

import (
	"context"
	"encoding/json"
	"fmt"
)

// Tx is one attempt at a change. What it read is checked again when it commits.
type Tx struct {
	store    *Store
	attempt  *attempt
	ctx      context.Context // of the caller of Change; f has no other way to it
	writes   map[string]*string
	machines bool // a machine record was written
}

// Change runs f and commits what it wrote if nothing that it read has changed
// meanwhile; otherwise it runs f again. So f may run several times and must have
// no effect but through tx; it must not call Change itself, nor wait for somebody who
// does. An error of f discards everything. Changes that come at once are committed
// together, for the disk is waited for once each time. A disk that stands still is waited
// for, up to two minutes; after the error that says so nobody knows whether the change
// was made.
func (s *Store) Change(ctx context.Context, f func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &pending{ctx: ctx, f: f, done: make(chan struct{})}
	s.enqueue(c)
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.leave() {
			return ctx.Err()
		}
		<-c.done
	}
	if c.err != nil || !c.machines {
		return c.err
	}
	return s.await(ctx, c.revision)
}

// Machine reads a record. The result is the caller's own.
func (t *Tx) Machine(name string) (Machine, bool, error) {
	var m Machine
	ok, err := t.get(t.store.machineKey(name), &m)
	return m, ok, err
}

// Prefetch reads many records in one round trip, for the Machine calls that follow.
func (t *Tx) Prefetch(names []string) {
	keys := make([]string, len(names))
	for i, n := range names {
		keys[i] = t.store.machineKey(n)
	}
	// Whoever wants one of them meets the error again.
	_ = t.attempt.fetch(t.ctx, keys...)
}

// PutMachine writes a record.
func (t *Tx) PutMachine(m Machine) error {
	t.machines = true
	return t.put(t.store.machineKey(m.Name), m)
}

// DeleteMachine removes a record.
func (t *Tx) DeleteMachine(name string) {
	t.machines = true
	t.writes[t.store.machineKey(name)] = nil
}

// Value reads a named value into v; false and an untouched v when there is none.
func (t *Tx) Value(name string, v any) (bool, error) {
	return t.get(t.store.prefix+"values/"+name, v)
}

// PutValue writes a named value as JSON.
func (t *Tx) PutValue(name string, v any) error {
	return t.put(t.store.prefix+"values/"+name, v)
}

// PutAudit appends a line to the audit log under its number. Two transactions
// cannot write the same number, because both read and write the tip as a value.
func (t *Tx) PutAudit(seq uint64, line []byte) {
	text := string(line)
	t.writes[t.store.auditKey(seq)] = &text
}

func (t *Tx) get(key string, v any) (bool, error) {
	text, own := t.writes[key]
	if !own {
		var err error
		if text, err = t.attempt.get(t.ctx, key); err != nil {
			return false, fmt.Errorf("reading %s: %w", key, err)
		}
	}
	if text == nil {
		return false, nil
	}
	if err := json.Unmarshal([]byte(*text), v); err != nil {
		return false, fmt.Errorf("reading %s: %w", key, err)
	}
	return true, nil
}

func (t *Tx) put(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	text := string(b)
	t.writes[key] = &text
	return nil
}
