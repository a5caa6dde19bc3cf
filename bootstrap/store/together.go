package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Bounds of what is committed together; a larger change is committed alone. etcd takes
// 1.5 MiB and so many operations of each kind as it is told, among them what patientKV
// adds; of the embedded one we know that it takes a thousand.
const (
	togetherOps   = 768
	sharedOps     = maxOps - 8
	togetherBytes = 512 << 10
)

// pending is a call of Change.
type pending struct {
	ctx context.Context
	f   func(*Tx) error

	// running is held while f runs.
	running sync.Mutex
	// left: the caller has gone and f must not run any more.
	left bool

	done chan struct{} // closed when the fields below are set
	err  error
	// revision is that of the commit.
	revision int64
	machines bool // a machine record was written
}

// leave says that the caller does not wait any longer. It returns false when all is over.
func (p *pending) leave() bool {
	p.running.Lock()
	defer p.running.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.left = true
		return true
	}
}

// queue are the changes that wait for the one that is being committed.
type queue struct {
	mu   sync.Mutex
	all  []*pending
	busy bool
	work sync.WaitGroup
}

// enqueue lets a change be made with those that come at the same time.
func (s *Store) enqueue(p *pending) {
	q := &s.changes
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all = append(q.all, p)
	if q.busy {
		return
	}
	q.busy = true
	q.work.Go(func() {
		for {
			q.mu.Lock()
			all := q.all
			q.all = nil
			if len(all) == 0 {
				q.busy = false
				q.mu.Unlock()
				return
			}
			q.mu.Unlock()
			for len(all) > 0 {
				all = all[s.together(all):]
			}
		}
	})
}

// together makes as many of these changes as fit into one commit, in their order, and
// returns how many those were.
func (s *Store) together(all []*pending) int {
	for {
		a := &attempt{client: s.client, most: togetherOps, alone: s.session == nil, read: map[string]found{}, written: map[string]*string{}}
		if !a.alone {
			a.most = sharedOps
		}
		errs := make([]error, 0, len(all))
		machines := make([]bool, len(all))
		for i, p := range all {
			tx := &Tx{store: s, attempt: a, ctx: p.ctx, writes: map[string]*string{}}
			err := p.run(tx)
			if i > 0 && !a.fits(tx.writes) {
				break // it is the first of the next commit
			}
			if err == nil {
				a.take(tx.writes)
				machines[i] = tx.machines
			}
			errs = append(errs, err)
		}
		revision, again, err := a.commit(all[:len(errs)])
		if again {
			continue // somebody else was first
		}
		for i := range errs {
			if err == nil {
				all[i].end(errs[i], revision, machines[i])
			} else {
				all[i].end(err, 0, false) // also of who was refused for what another one wrote
			}
		}
		return len(errs)
	}
}

var errLeft = errors.New("the caller has gone")

// run calls f, whose panic must not take the others with it: it is the caller's error.
func (p *pending) run(tx *Tx) (err error) {
	p.running.Lock()
	defer p.running.Unlock()
	if p.left {
		return errLeft
	}
	defer func() {
		if why := recover(); why != nil {
			err = fmt.Errorf("making a change: %v\n%s", why, debug.Stack())
		}
	}()
	return p.f(tx)
}

func (p *pending) end(err error, revision int64, machines bool) {
	p.running.Lock()
	defer p.running.Unlock()
	p.err, p.revision, p.machines = err, revision, machines
	close(p.done)
}

// attempt is what changes that are committed together have read and written.
type attempt struct {
	client *clientv3.Client
	// most is how many keys it may have. alone: nobody else uses this etcd, which is one
	// member, so what it has committed is what it reads.
	most  int
	alone bool
	// at is the revision of all reads; 0 before the first.
	at      int64
	read    map[string]found
	written map[string]*string // nil removes the key
	bytes   int
}

// found is a key as it is in etcd.
type found struct {
	value    *string // nil for none
	modified int64   // 0 for none
}

func (a *attempt) get(ctx context.Context, key string) (*string, error) {
	if text, ok := a.written[key]; ok {
		return text, nil
	}
	if err := a.fetch(ctx, key); err != nil {
		return nil, err
	}
	return a.read[key].value, nil
}

// fetch reads what has not been read yet. All reads are of one revision.
func (a *attempt) fetch(ctx context.Context, keys ...string) error {
	var at []clientv3.OpOption
	if a.at > 0 {
		at = append(at, clientv3.WithRev(a.at))
	}
	if a.at > 0 && a.alone {
		at = append(at, clientv3.WithSerializable())
	}
	var ops []clientv3.Op
	var want []string
	for _, k := range keys {
		if _, ok := a.read[k]; !ok {
			ops, want = append(ops, clientv3.OpGet(k, at...)), append(want, k)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	resp, err := a.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return err
	}
	if a.at == 0 {
		a.at = resp.Header.Revision
	}
	for i, k := range want {
		f := found{}
		if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			text := string(kvs[0].Value)
			f = found{&text, kvs[0].ModRevision}
		}
		a.read[k] = f
	}
	return nil
}

// fits says whether a change can be committed with what is there already.
func (a *attempt) fits(writes map[string]*string) bool {
	bytes := a.bytes
	for k, v := range writes {
		bytes += size(k, v)
	}
	// Each key that is read or written is compared once.
	return len(a.written)+len(writes)+len(a.read) <= a.most && bytes <= togetherBytes
}

func size(key string, value *string) int {
	if value == nil {
		return len(key)
	}
	return len(key) + len(*value)
}

func (a *attempt) take(writes map[string]*string) {
	for k, v := range writes {
		a.written[k] = v
		a.bytes += size(k, v)
	}
}

// commit writes if what was read is as it was. It gives up when everybody has gone.
func (a *attempt) commit(callers []*pending) (revision int64, again bool, err error) {
	if len(a.written) == 0 {
		return a.at, false, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var here atomic.Int64
	here.Store(int64(len(callers)))
	for _, p := range callers {
		stop := context.AfterFunc(p.ctx, func() {
			if here.Add(-1) == 0 {
				cancel()
			}
		})
		defer stop()
	}
	var compares []clientv3.Cmp
	for k, f := range a.read {
		compares = append(compares, clientv3.Compare(clientv3.ModRevision(k), "=", f.modified))
	}
	var ops []clientv3.Op
	for k, v := range a.written {
		if v == nil {
			ops = append(ops, clientv3.OpDelete(k))
		} else {
			ops = append(ops, clientv3.OpPut(k, *v))
		}
		if _, ok := a.read[k]; !ok && a.at > 0 {
			// It was not read, so it must not be newer than what was.
			compares = append(compares, clientv3.Compare(clientv3.ModRevision(k), "<", a.at+1))
		}
	}
	resp, err := a.client.Txn(ctx).If(compares...).Then(ops...).Commit()
	if err != nil {
		return 0, false, err
	}
	return resp.Header.Revision, !resp.Succeeded, nil
}
