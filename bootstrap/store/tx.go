package store

import (
	"context"
	"encoding/json"
	"fmt"

	"go.etcd.io/etcd/client/v3/concurrency"
)

// Tx is one attempt at a change. What it read is checked again when it commits.
type Tx struct {
	store    *Store
	stm      concurrency.STM
	machines bool // a machine record was written
}

// Change runs f and commits what it wrote if nothing that it read has changed
// meanwhile; otherwise it runs f again. So f may run several times and must have
// no effect but through tx. An error of f discards everything. A disk that stands still
// is waited for, up to two minutes; after the error that says so nobody knows whether the
// change was made.
func (s *Store) Change(ctx context.Context, f func(tx *Tx) error) error {
	var wrote bool
	resp, err := concurrency.NewSTM(s.client, func(stm concurrency.STM) error {
		tx := &Tx{store: s, stm: stm}
		err := f(tx)
		wrote = tx.machines
		return err
	}, concurrency.WithAbortContext(ctx))
	if err != nil {
		return err
	}
	if !wrote {
		return nil
	}
	return s.await(ctx, resp.Header.Revision)
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
	t.stm.Get(keys...)
}

// PutMachine writes a record.
func (t *Tx) PutMachine(m Machine) error {
	t.machines = true
	return t.put(t.store.machineKey(m.Name), m)
}

// DeleteMachine removes a record.
func (t *Tx) DeleteMachine(name string) {
	t.machines = true
	t.stm.Del(t.store.machineKey(name))
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
	t.stm.Put(t.store.auditKey(seq), string(line))
}

func (t *Tx) get(key string, v any) (bool, error) {
	text := t.stm.Get(key)
	if text == "" {
		return false, nil
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return false, fmt.Errorf("reading %s: %w", key, err)
	}
	return true, nil
}

func (t *Tx) put(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing %s: %w", key, err)
	}
	t.stm.Put(key, string(b))
	return nil
}
