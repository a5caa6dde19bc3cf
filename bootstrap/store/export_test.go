package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Usurp makes another server coordinate.
func Usurp(ctx context.Context, s *Store) error {
	_, err := s.client.KV.(*patientKV).KV.Put(ctx, s.session.lock(), "https://other:8443 x 1")
	return err
}

// After has a move end after a step, as if it was killed there.
func (c Config) After(step string, err error) Config {
	c.after = func(s string) error {
		if s == step {
			return err
		}
		return nil
	}
	return c
}

// SetPatience is how long a call waits for etcd, and one attempt of it.
func SetPatience(s *Store, d, attempt time.Duration) {
	kv := s.client.KV.(*patientKV)
	kv.patience, kv.attempt = d, attempt
}

// CutOff ends the session of a server on etcd, as its time does.
func CutOff(ctx context.Context, s *Store) error {
	r, err := s.client.KV.(*patientKV).KV.Get(ctx, s.session.keys+"present/"+s.session.id)
	if err != nil {
		return err
	}
	_, err = s.client.Revoke(ctx, clientv3.LeaseID(r.Kvs[0].Lease))
	return err
}

// Compact makes etcd forget what was before now.
func Compact(ctx context.Context, s *Store) error {
	r, err := s.client.Get(ctx, s.prefix)
	if err == nil {
		_, err = s.client.Compact(ctx, r.Header.Revision)
	}
	return err
}

// Late is a store that knows what was at a revision, and follows from there until ctx
// ends. It is not to be closed.
func Late(ctx context.Context, s *Store, revision int64) *Store {
	late := &Store{prefix: s.prefix, client: s.client, session: s.session, done: make(chan struct{}), changed: make(chan struct{}),
		machines: map[string]Machine{"gone": {Name: "gone"}}, revision: revision}
	go late.watch(ctx)
	return late
}
