package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Row is one small record that several servers change, each on condition that it is as
// it knew it.
type Row struct {
	Key string
	// Value is nil for a row that is gone.
	Value []byte
	// Revision is that of its last change; 0 for a row that was never there.
	Revision int64
}

// Rows are the rows under one name. Unlike records of machines they do not come out of
// memory, and changing one has no part in a Change.
type Rows struct {
	store  *Store
	prefix string
}

// Rows returns the rows of a name. They are part of the state and of its backups.
func (s *Store) Rows(name string) *Rows { return &Rows{s, s.prefix + name + "/"} }

// Load reads all rows, oldest change first, and the revision as of which they are.
func (r *Rows) Load(ctx context.Context) ([]Row, int64, error) {
	const page = 5000
	var rows []Row
	from, end, revision := r.prefix, clientv3.GetPrefixRangeEnd(r.prefix), int64(0)
	for {
		resp, err := r.store.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(revision))
		if err != nil {
			return nil, 0, fmt.Errorf("reading %s: %w", r.prefix, err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			rows = append(rows, Row{strings.TrimPrefix(string(kv.Key), r.prefix), kv.Value, kv.ModRevision})
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return int(a.Revision - b.Revision) })
	return rows, revision, nil
}

// MaxSwap is how many rows one Swap may have.
const MaxSwap = maxOps - 1

// Swap writes rows if all of them are as their Revision says, and returns their new
// revision. If not, it writes none and returns those that are otherwise, as they are now.
// After an error nobody knows which of the two it was: a Swap that is tried again finds
// its own rows then. Each key may be there once.
func (r *Rows) Swap(ctx context.Context, rows []Row) (revision int64, other []Row, err error) {
	var cmps []clientv3.Cmp
	var puts, gets []clientv3.Op
	for _, row := range rows {
		key := r.prefix + row.Key
		cmps = append(cmps, clientv3.Compare(clientv3.ModRevision(key), "=", row.Revision))
		put := clientv3.OpPut(key, string(row.Value))
		if row.Value == nil {
			put = clientv3.OpDelete(key)
		}
		puts, gets = append(puts, put), append(gets, clientv3.OpGet(key))
	}
	patient := r.store.client.KV.(*patientKV)
	if patient.home != "" {
		cmps, gets = append(cmps, patient.isHome()), append(gets, clientv3.OpGet(patient.home))
	}
	// Not by the patient one: it would repeat a condition that its own first attempt has
	// changed, and who waits for a row does not wait for long.
	resp, err := patient.KV.Txn(ctx).If(cmps...).Then(puts...).Else(gets...).Commit()
	if err != nil {
		return 0, nil, fmt.Errorf("writing %s: %w", r.prefix, err)
	}
	if patient.home != "" && !resp.Succeeded && !patient.finds(resp.Responses[len(rows)]) {
		return 0, nil, ErrMoved
	}
	if resp.Succeeded {
		return resp.Header.Revision, nil, nil
	}
	for i, row := range rows {
		now := Row{Key: row.Key}
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			now.Value, now.Revision = kvs[0].Value, kvs[0].ModRevision
		}
		if now.Revision != row.Revision {
			other = append(other, now)
		}
	}
	return 0, other, nil
}

// Clear removes all rows.
func (r *Rows) Clear(ctx context.Context) error {
	if _, err := r.store.client.Txn(ctx).Then(clientv3.OpDelete(r.prefix, clientv3.WithPrefix())).Commit(); err != nil {
		return fmt.Errorf("removing %s: %w", r.prefix, err)
	}
	return nil
}

// Follow tells of every change after a revision, in their order, until ctx ends. When
// changes were missed, all rows are told again, and the keys that are gone with them:
// has says which keys the caller believes to be there.
func (r *Rows) Follow(ctx context.Context, revision int64, changed func([]Row), has func() []string) error {
	for {
		err := r.followOnce(ctx, &revision, changed)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			err = r.again(ctx, &revision, changed, has)
		}
		if err != nil {
			select {
			case <-time.After(followPause):
			case <-ctx.Done():
			}
		}
	}
}

func (r *Rows) followOnce(ctx context.Context, revision *int64, changed func([]Row)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range r.store.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(*revision+1)) {
		if err := resp.Err(); err != nil {
			return err
		}
		var rows []Row
		for _, e := range resp.Events {
			row := Row{Key: strings.TrimPrefix(string(e.Kv.Key), r.prefix), Revision: e.Kv.ModRevision}
			if e.Type != clientv3.EventTypeDelete {
				row.Value = e.Kv.Value
			}
			rows = append(rows, row)
			*revision = max(*revision, row.Revision)
		}
		if len(rows) > 0 {
			changed(rows)
		}
	}
	return errors.New("the watch ended")
}

func (r *Rows) again(ctx context.Context, revision *int64, changed func([]Row), has func() []string) error {
	rows, now, err := r.Load(ctx)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(rows))
	for _, row := range rows {
		there[row.Key] = true
	}
	for _, key := range has() {
		if !there[key] {
			rows = append(rows, Row{Key: key, Revision: now})
		}
	}
	*revision = now
	changed(rows)
	return nil
}

// FollowValue calls changed after every change of a named value, and now and then
// without one, until ctx ends.
func (s *Store) FollowValue(ctx context.Context, name string, changed func()) {
	for ctx.Err() == nil {
		s.watchValue(ctx, name, changed)
		select {
		case <-time.After(followPause):
		case <-ctx.Done():
		}
	}
}

func (s *Store) watchValue(ctx context.Context, name string, changed func()) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.client.Watch(ctx, s.prefix+"values/"+name, clientv3.WithCreatedNotify()) {
		if resp.Err() != nil {
			return
		}
		changed() // when the watch has begun too: nobody tells of what happened before
	}
}
