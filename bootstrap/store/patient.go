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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// patience is how long a call waits for a disk that stands still. etcd itself waits
// 5.4 s and then says "request timed out", which means that nobody knows whether the
// change was made. An etcd cluster that is called over a network can leave a call
// without any answer.
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
	// home is the key of the state that changes are made to, and homeRevision that of its
	// last change: they are made only while it is the same. Empty for no such condition.
	home         string
	homeRevision int64
	// attempt bounds one attempt; 0 leaves that to etcd.
	attempt time.Duration
	// says words the error of an etcd that did not answer in that time.
	says func(took time.Duration) string

	mu sync.Mutex
	// old are marks that nobody asks for any more; later transactions remove them.
	old []string
}

// maxOld is how many old marks one transaction removes, and maxOps how many changes it
// has with them: etcd's default.
const (
	maxOld = 32
	maxOps = 128
)

func newPatientKV(kv clientv3.KV, marks string) *patientKV {
	return &patientKV{KV: kv, marks: marks, pause: 100 * time.Millisecond, patience: patience,
		says: func(took time.Duration) string {
			return fmt.Sprintf("the store's disk stood still for %s", took.Round(time.Second))
		}}
}

// Get implements clientv3.KV.
func (k *patientKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (resp *clientv3.GetResponse, err error) {
	err = k.repeat(ctx, func(ctx context.Context) error {
		resp, err = k.KV.Get(ctx, key, opts...)
		return err
	})
	return resp, err
}

// Txn implements clientv3.KV.
func (k *patientKV) Txn(ctx context.Context) clientv3.Txn { return &patientTxn{kv: k, ctx: ctx} }

// repeat calls f until it ends otherwise than by etcd's time-out.
func (k *patientKV) repeat(ctx context.Context, f func(context.Context) error) error {
	begin := time.Now()
	for {
		err := k.once(ctx, f)
		if !unfinished(err) && !(k.attempt > 0 && ctx.Err() == nil && unanswered(err)) {
			return err
		}
		if took := time.Since(begin); took > k.patience {
			return fmt.Errorf("%s: %w", k.says(took), err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(k.pause):
		}
	}
}

func (k *patientKV) once(ctx context.Context, f func(context.Context) error) error {
	if k.attempt > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.attempt)
		defer cancel()
	}
	return f(ctx)
}

// ErrMoved says that a server has outlived its state: it has to stop.
var ErrMoved = errors.New("the state is not there any more: it was moved by imagectl server move; stop this server, and start it with a state directory of where the state is now")

// isHome is true while the state is where it was when this server started.
func (k *patientKV) isHome() clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(k.home), "=", k.homeRevision)
}

// finds says whether an answer about home is still the one that this server started with.
func (k *patientKV) finds(r *etcdserverpb.ResponseOp) bool {
	kvs := r.GetResponseRange().GetKvs()
	return len(kvs) > 0 && kvs[0].ModRevision == k.homeRevision
}

// unanswered says that an etcd over the network did not answer, so that nobody knows
// what it did.
func unanswered(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

// unfinished says that etcd gave up waiting, or would have had to wait.
func unfinished(err error) bool {
	for _, e := range []error{rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutWaitAppliedIndex,
		rpctypes.ErrNoLeader, rpctypes.ErrNotLeader, rpctypes.ErrLeaderChanged,
		// A transaction reads all at the revision of its first read, each from any member:
		// one that lags does not have it yet.
		rpctypes.ErrFutureRev} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (k *patientKV) takeOld(most int) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := max(0, min(len(k.old), maxOld, most))
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
	mark, old := t.kv.marks+rand.Text(), t.kv.takeOld(maxOps-1-len(t.thens))
	thens := append(slices.Clone(t.thens), clientv3.OpPut(mark, ""))
	for _, m := range old {
		thens = append(thens, clientv3.OpDelete(m))
	}
	cmps, alts := append(slices.Clone(t.cmps), clientv3.Compare(clientv3.CreateRevision(mark), "=", 0)), append(slices.Clone(t.alts), clientv3.OpGet(mark))
	if t.kv.home != "" {
		cmps = append(cmps, t.kv.isHome())
		alts = append(alts, clientv3.OpGet(t.kv.home))
	}
	resp, err := t.commit(cmps, thens, alts)
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
	if t.kv.home != "" {
		if !t.kv.finds(resp.Responses[last]) {
			return nil, ErrMoved
		}
		last--
	}
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
	err = t.kv.repeat(t.ctx, func(ctx context.Context) error {
		resp, err = t.kv.KV.Txn(ctx).If(cmps...).Then(thens...).Else(alts...).Commit()
		return err
	})
	return resp, err
}
