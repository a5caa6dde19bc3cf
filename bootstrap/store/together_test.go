package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// gatedKV lets one transaction that writes through for each word on next, and counts
// them. begun hears of each before.
type gatedKV struct {
	clientv3.KV
	begun, next chan struct{}

	mu      sync.Mutex
	commits int
}

func (k *gatedKV) Txn(ctx context.Context) clientv3.Txn {
	return &gatedTxn{Txn: k.KV.Txn(ctx), kv: k, ctx: ctx}
}

type gatedTxn struct {
	clientv3.Txn
	kv     *gatedKV
	ctx    context.Context
	writes bool
}

func (t *gatedTxn) If(cs ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(cs...); return t }
func (t *gatedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.writes = len(ops) > 0 && !ops[0].IsGet()
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *gatedTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.writes {
		t.kv.begun <- struct{}{}
		select {
		case <-t.kv.next:
		case <-t.ctx.Done():
			return nil, t.ctx.Err()
		}
		t.kv.mu.Lock()
		t.kv.commits++
		t.kv.mu.Unlock()
	}
	return t.Txn.Commit()
}

func gate(s *Store) *gatedKV {
	k := &gatedKV{KV: s.client.KV, begun: make(chan struct{}, 100), next: make(chan struct{}, 100)}
	s.client.KV = k
	return k
}

// waiting returns when n changes wait for the one that is being committed.
func waiting(s *Store, n int) {
	for {
		s.changes.mu.Lock()
		have := len(s.changes.all)
		s.changes.mu.Unlock()
		if have == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func addOne(tx *Tx) error {
	var n int
	if _, err := tx.Value("n", &n); err != nil {
		return err
	}
	return tx.PutValue("n", n+1)
}

func value(t *testing.T, s *Store, name string) int {
	t.Helper()
	var n int
	if err := s.Change(t.Context(), func(tx *Tx) error { _, err := tx.Value(name, &n); return err }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestChangesThatComeAtOnceAreCommittedTogether(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := gate(s)
	refused := errors.New("refused")
	var group sync.WaitGroup
	group.Go(func() {
		if err := s.Change(t.Context(), addOne); err != nil {
			t.Error(err)
		}
	})
	<-k.begun
	for i := range 50 {
		group.Go(func() {
			err := s.Change(t.Context(), func(tx *Tx) error {
				if err := addOne(tx); err != nil {
					return err
				}
				if i%10 == 0 {
					return refused
				}
				return tx.PutMachine(Machine{Name: fmt.Sprint("m", i)})
			})
			if want := i%10 == 0; errors.Is(err, refused) != want || !want && err != nil {
				t.Errorf("change %d: %v", i, err)
			}
			if _, ok := s.Machine(fmt.Sprint("m", i)); ok != (i%10 != 0) {
				t.Errorf("change %d: the record is there: %v", i, ok)
			}
		})
	}
	waiting(s, 50)
	k.next <- struct{}{}
	k.next <- struct{}{}
	group.Wait()
	if n := value(t, s, "n"); n != 46 || k.commits != 2 {
		t.Errorf("%d changes in %d commits, want 46 in 2", n, k.commits)
	}
}

func TestChangesThatAreTooLargeTogetherAreCommittedOneAfterTheOther(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := gate(s)
	for range 100 {
		k.next <- struct{}{}
	}
	large := strings.Repeat("x", togetherBytes/2)
	var group sync.WaitGroup
	for i := range 7 {
		group.Go(func() {
			err := s.Change(t.Context(), func(tx *Tx) error {
				if err := tx.PutValue(fmt.Sprint("large", i), large); err != nil {
					return err
				}
				return addOne(tx)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	// A rack that is listed: more keys than fit beside others.
	group.Go(func() {
		err := s.Change(t.Context(), func(tx *Tx) error {
			for i := range togetherOps + 100 {
				tx.PutAudit(uint64(i), []byte("line"))
			}
			return addOne(tx)
		})
		if err != nil {
			t.Error(err)
		}
	})
	group.Wait()
	if n := value(t, s, "n"); n != 8 || k.commits != 8 {
		t.Errorf("%d changes in %d commits, want 8 in 8", n, k.commits)
	}
}

func TestChangesAreMadeAgainWhenAnotherClientWasFirst(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := gate(s)
	done := make(chan error, 1)
	runs := 0
	go func() {
		done <- s.Change(t.Context(), func(tx *Tx) error { runs++; return addOne(tx) })
	}()
	<-k.begun
	if _, err := k.KV.Put(t.Context(), s.prefix+"values/n", "41"); err != nil {
		t.Fatal(err)
	}
	k.next <- struct{}{}
	k.next <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := value(t, s, "n"); n != 42 || runs != 2 {
		t.Errorf("got %d after %d runs, want 42 after 2", n, runs)
	}
	// What was written without being read must not be older than what was read either.
	go func() {
		done <- s.Change(t.Context(), func(tx *Tx) error {
			var n int
			if _, err := tx.Value("n", &n); err != nil {
				return err
			}
			return tx.PutValue("blind", n)
		})
	}()
	<-k.begun
	<-k.begun
	if _, err := k.KV.Put(t.Context(), s.prefix+"values/blind", "1"); err != nil {
		t.Fatal(err)
	}
	k.next <- struct{}{}
	<-k.begun
	k.next <- struct{}{}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := value(t, s, "blind"); n != 42 {
		t.Errorf("the later change is lost: %d", n)
	}
}

func TestACallerThatGoesDoesNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	k := gate(s)
	ctx, cancel := context.WithCancel(t.Context())
	stays, goes := make(chan error, 1), make(chan error, 1)
	go func() { stays <- s.Change(t.Context(), addOne) }()
	<-k.begun
	go func() { goes <- s.Change(ctx, addOne) }()
	waiting(s, 1)
	cancel()
	if err := <-goes; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	k.next <- struct{}{}
	if err := <-stays; err != nil {
		t.Error(err)
	}
	if n := value(t, s, "n"); n != 1 {
		t.Errorf("%d changes were made, want 1: the other caller had gone before", n)
	}
	// The only caller of a commit takes it with him.
	ctx, cancel = context.WithCancel(t.Context())
	go func() { goes <- s.Change(ctx, addOne) }()
	<-k.begun
	cancel()
	if err := <-goes; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if n := value(t, s, "n"); n != 1 {
		t.Errorf("%d changes were made, want 1", n)
	}
}

func TestAPanicIsTheCallersOwn(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	if err := s.Change(t.Context(), func(*Tx) error { panic("boom") }); err == nil || !strings.HasPrefix(err.Error(), "making a change: boom\n") {
		t.Errorf("got %v", err)
	}
	if err := s.Change(t.Context(), addOne); err != nil {
		t.Error(err)
	}
}
