package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// patience is how long a call waits for a disk that stands still. etcd itself waits
// 5.4 s and then says "request timed out", which means that nobody knows whether the
// change was made.
const patience = 2 * time.Minute

// patientKV repeats what etcd did not finish in time. A change is made exactly once all
// the same: its transaction writes a mark with a name of its own and is only done where
// there is no such mark, so that the repetition finds out what became of the first.
type patientKV struct {
	clientv3.KV
	// marks is the prefix of the marks' keys.
	marks string
	// pause is the time between two attempts, for as long as patience says.
	pause, patience time.Duration

	mu sync.Mutex
	// old are marks that nobody asks for any more; later transactions remove them.
	old []string
}

// maxOld is how many old marks one transaction removes.
const maxOld = 32

func newPatientKV(kv clientv3.KV, marks string) *patientKV {
	return &patientKV{KV: kv, marks: marks, pause: 100 * time.Millisecond, patience: patience}
}

// Get implements clientv3.KV.
func (k *patientKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = k.repeat(ctx, func() error {
		resp, err = k.KV.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

// Txn implements clientv3.KV.
func (k *patientKV) Txn(ctx context.Context) clientv3.Txn { return &patientTxn{kv: k, ctx: ctx} }

// repeat calls f until it ends otherwise than by etcd's time-out.
func (k *patientKV) repeat(ctx context.Context, f func() error) error {
	begin := time.Now()
	for {
		err := f()
		if !unfinished(err) {
			return err
		}
		if took := time.Since(begin); took > k.patience {
			return fmt.Errorf("the store's disk stood still for %s: %w", took.Round(time.Second), err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(k.pause):
		}
	}
}

// unfinished says that etcd gave up waiting.
func unfinished(err error) bool {
	for _, e := range []error{rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutWaitAppliedIndex,
		rpctypes.ErrNoLeader, rpctypes.ErrNotLeader, rpctypes.ErrLeaderChanged} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (k *patientKV) takeOld() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := min(len(k.old), maxOld)
	taken := slices.Clone(k.old[:n])
	k.old = slices.Delete(k.old, 0, n)
	return taken
}

func (k *patientKV) addOld(marks ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.old = append(k.old, marks...)
}

// patientTxn is clientv3.Txn for one caller.
type patientTxn struct {
	kv          *patientKV
	ctx         context.Context // clientv3's interface has no other place for it
	cmps        []clientv3.Cmp
	thens, alts []clientv3.Op
}

// If implements clientv3.Txn.
func (t *patientTxn) If(cs ...clientv3.Cmp) clientv3.Txn { t.cmps = append(t.cmps, cs...); return t }

// Then implements clientv3.Txn.
func (t *patientTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.thens = append(t.thens, ops...)
	return t
}

// Else implements clientv3.Txn.
func (t *patientTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.alts = append(t.alts, ops...); return t }

// Commit implements clientv3.Txn.
func (t *patientTxn) Commit() (*clientv3.TxnResponse, error) {
	writes := slices.ContainsFunc(t.thens, func(op clientv3.Op) bool { return op.IsPut() || op.IsDelete() })
	if !writes {
		return t.commit(t.cmps, t.thens, t.alts)
	}
	mark, old := t.kv.marks+rand.Text(), t.kv.takeOld()
	thens := append(slices.Clone(t.thens), clientv3.OpPut(mark, ""))
	for _, m := range old {
		thens = append(thens, clientv3.OpDelete(m))
	}
	resp, err := t.commit(append(slices.Clone(t.cmps), clientv3.Compare(clientv3.CreateRevision(mark), "=", 0)), thens,
		append(slices.Clone(t.alts), clientv3.OpGet(mark)))
	if err != nil {
		t.kv.addOld(append(old, mark)...) // whoever asks again asks with another mark
		return nil, err
	}
	if resp.Succeeded {
		t.kv.addOld(mark)
		resp.Responses = resp.Responses[:len(t.thens)]
		return resp, nil
	}
	last := len(resp.Responses) - 1
	found := resp.Responses[last].GetResponseRange().GetKvs()
	if len(found) == 0 { // somebody else was first: the caller begins again
		t.kv.addOld(old...)
		resp.Responses = resp.Responses[:last]
		return resp, nil
	}
	t.kv.addOld(mark)
	header := proto.CloneOf(resp.Header)
	header.Revision = found[0].ModRevision
	done := &clientv3.TxnResponse{Header: header, Succeeded: true}
	for range t.thens {
		done.Responses = append(done.Responses, &etcdserverpb.ResponseOp{})
	}
	return done, nil
}

func (t *patientTxn) commit(cmps []clientv3.Cmp, thens, alts []clientv3.Op) (resp *clientv3.TxnResponse, err error) {
	err = t.kv.repeat(t.ctx, func() error {
		resp, err = t.kv.KV.Txn(t.ctx).If(cmps...).Then(thens...).Else(alts...).Commit()
		return err
	})
	return resp, err
}
