package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// stallingKV says now and then that it has timed out: before the work was done, or
// after.
type stallingKV struct {
	clientv3.KV
	mu   sync.Mutex
	rand *rand.Rand
	// always makes every call time out.
	always bool
	// lost and done count the time-outs of transactions before and after the work.
	lost, done int
}

func (k *stallingKV) stalls() (before, after bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.rand.IntN(3)
	return k.always || n == 0, n == 1
}

// lags is the error of a call that did nothing.
func (k *stallingKV) lags() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.always && k.rand.IntN(2) == 0 {
		return rpctypes.ErrFutureRev
	}
	return rpctypes.ErrTimeout
}

func (k *stallingKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if before, _ := k.stalls(); before {
		return nil, k.lags()
	}
	return k.KV.Get(ctx, key, opts...)
}

func (k *stallingKV) Txn(ctx context.Context) clientv3.Txn {
	return &stallingTxn{Txn: k.KV.Txn(ctx), kv: k}
}

type stallingTxn struct {
	clientv3.Txn
	kv *stallingKV
}

func (t *stallingTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *stallingTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *stallingTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *stallingTxn) Commit() (*clientv3.TxnResponse, error) {
	before, after := t.kv.stalls()
	if before {
		t.kv.count(&t.kv.lost)
		return nil, t.kv.lags()
	}
	resp, err := t.Txn.Commit()
	if err == nil && after {
		t.kv.count(&t.kv.done)
		return nil, rpctypes.ErrTimeout
	}
	return resp, err
}

func (k *stallingKV) count(n *int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*n++
}

// stall puts a stalling etcd behind a store.
func stall(s *Store) *stallingKV {
	k := &stallingKV{KV: s.client.KV.(*patientKV).KV, rand: rand.New(rand.NewPCG(1, 2))}
	p := newPatientKV(k, s.marks())
	p.pause = time.Microsecond
	s.client.KV = p
	return k
}

func TestAChangeIsMadeOnceWhenItsAnswerIsLost(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := stall(s)
	const workers, each = 4, 25
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range each {
				err := s.Change(t.Context(), func(tx *Tx) error {
					var n uint64
					if _, err := tx.Value("n", &n); err != nil {
						return err
					}
					tx.PutAudit(n+1, fmt.Appendf(nil, "worker %d, change %d", w, i))
					if err := tx.PutMachine(Machine{Name: fmt.Sprint("m", w), Asked: i}); err != nil {
						return err
					}
					return tx.PutValue("n", n+1)
				})
				if err != nil {
					t.Error(err)
				}
				if m, _ := s.Machine(fmt.Sprint("m", w)); m.Asked != i {
					t.Errorf("the snapshot lags behind Change: %d, want %d", m.Asked, i)
				}
			}
		})
	}
	group.Wait()
	seen := map[string]int{}
	for line, err := range s.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen[string(line)]++
	}
	for line, n := range seen {
		if n != 1 {
			t.Errorf("%s was made %d times", line, n)
		}
	}
	if len(seen) != workers*each || k.lost == 0 || k.done == 0 {
		t.Errorf("%d changes, want %d; %d time-outs before and %d after the work", len(seen), workers*each, k.lost, k.done)
	}
	resp, err := s.client.Get(t.Context(), s.marks(), clientv3.WithPrefix())
	if err != nil || len(resp.Kvs) > 2*workers {
		t.Errorf("%d marks are left, %v", len(resp.Kvs), err)
	}
}

func TestBlindWritesAreNotRepeatedOverLaterOnes(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	real := s.client.KV.(*patientKV).KV
	p := newPatientKV(&overtaken{KV: real, then: func() {
		if _, err := real.Put(t.Context(), "x", "later"); err != nil {
			t.Error(err)
		}
	}}, s.marks())
	p.pause = time.Microsecond
	resp, err := p.Txn(t.Context()).Then(clientv3.OpPut("x", "first")).Commit()
	if err != nil || !resp.Succeeded || len(resp.Responses) != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	got, err := real.Get(t.Context(), "x")
	if err != nil || string(got.Kvs[0].Value) != "later" {
		t.Errorf("got %v, %v: a write was made again over a later one", got, err)
	}
	if resp.Header.Revision != got.Kvs[0].ModRevision-1 {
		t.Errorf("the write is said to be of revision %d, the later one is of %d", resp.Header.Revision, got.Kvs[0].ModRevision)
	}
}

// overtaken loses the answer of its first transaction, and lets something happen then.
type overtaken struct {
	clientv3.KV
	then func()
}

func (k *overtaken) Txn(ctx context.Context) clientv3.Txn {
	txn := k.KV.Txn(ctx)
	if k.then == nil {
		return txn
	}
	then := k.then
	k.then = nil
	return &overtakenTxn{txn, then}
}

type overtakenTxn struct {
	clientv3.Txn
	then func()
}

func (t *overtakenTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *overtakenTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *overtakenTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *overtakenTxn) Commit() (*clientv3.TxnResponse, error) {
	if _, err := t.Txn.Commit(); err != nil {
		return nil, err
	}
	t.then()
	return nil, rpctypes.ErrTimeout
}

func TestADiskThatStaysAwayIsSaid(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := stall(s)
	k.always = true
	s.client.KV.(*patientKV).patience = 0
	put := func(ctx context.Context) error {
		return s.Change(ctx, func(tx *Tx) error { return tx.PutValue("n", 1) })
	}
	if err := put(t.Context()); !errors.Is(err, rpctypes.ErrTimeout) || !strings.HasPrefix(err.Error(), "the store's disk stood still for ") {
		t.Errorf("got %v", err)
	}
	s.client.KV.(*patientKV).patience = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := put(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a caller that has gone: %v", err)
	}
}
