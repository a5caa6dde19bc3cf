package store_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
)

const (
	// session is longer than a machine stands still; who closes a store waits for nothing.
	session = time.Minute
	// brief is as short as etcd takes it seriously, for those who wait for the end of one.
	brief = 2 * time.Second
)

func open(t *testing.T, e *storetest.Etcd, id *age.X25519Identity, name string) *store.Store {
	t.Helper()
	return openFor(t, e, id, name, session)
}

func openFor(t *testing.T, e *storetest.Etcd, id *age.X25519Identity, name string, session time.Duration) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: e.Member(t, id), Cluster: "demo", Log: io.Discard, Name: name, Session: session})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wait returns when it is so.
func wait(t *testing.T, s *store.Store, what string, so func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		terms, records := s.TermChanged(), s.Changed()
		if so() {
			return
		}
		select {
		case <-terms:
		case <-records:
		case <-time.After(50 * time.Millisecond): // for what other processes do
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestTwoServersShareOneState(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a, b := open(t, e, id, "https://a:8443"), open(t, e, id, "https://b:8443")
	defer a.Close()
	defer b.Close()
	if !a.Shared() || !b.Shared() {
		t.Error("a store on an etcd cluster says that it is not shared")
	}
	// Both append to one chain of numbers at once.
	const each = 25
	var all sync.WaitGroup
	for name, s := range map[string]*store.Store{"a": a, "b": b} {
		all.Go(func() {
			for i := range each {
				err := s.Change(t.Context(), func(tx *store.Tx) error {
					var n uint64
					if _, err := tx.Value("n", &n); err != nil {
						return err
					}
					tx.PutAudit(n+1, fmt.Appendf(nil, "%s %d", name, i))
					if err := tx.PutMachine(store.Machine{Name: name, Asked: i, State: machine.Approved}); err != nil {
						return err
					}
					return tx.PutValue("n", n+1)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	for line, err := range b.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen[string(line)] = true
	}
	if len(seen) != 2*each {
		t.Errorf("%d entries of the chain, want %d: it was forked", len(seen), 2*each)
	}
	wait(t, a, "a sees what b wrote", func() bool { m, _ := a.Machine("b"); return m.Asked == each-1 })

	// Secrets are made once, whoever asks first.
	made := 0
	for _, s := range []*store.Store{b, a} {
		got, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { made++; return fmt.Append(nil, made), nil }, nil)
		if err != nil || string(got) != "1" {
			t.Errorf("got secret %q, %v", got, err)
		}
	}
}

func TestOneServerCoordinates(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := open(t, e, id, "https://a:8443")
	wait(t, a, "a coordinates", func() bool { return a.Term() != "" })
	b := open(t, e, id, "https://b:8443")
	defer b.Close()
	wait(t, b, "b knows who coordinates", func() bool { return b.Leader() == "https://a:8443" && b.Healthy() == nil })
	if b.Term() != "" {
		t.Error("both coordinate")
	}
	lead := func(s *store.Store, n int) error {
		return s.Change(t.Context(), func(tx *store.Tx) error {
			if err := tx.Lead(); err != nil {
				return err
			}
			return tx.PutValue("n", n)
		})
	}
	if err := lead(a, 1); err != nil {
		t.Error(err)
	}
	if err := lead(b, 2); !errors.Is(err, store.ErrNotLeading) {
		t.Errorf("a change of one that does not coordinate: got %v", err)
	}
	old := a.Term()
	a.Close()
	wait(t, b, "b coordinates", func() bool { return b.Term() != "" })
	if b.Term() == old || b.Leader() != "https://b:8443" {
		t.Errorf("term %q after %q, leader %s", b.Term(), old, b.Leader())
	}
	if err := lead(b, 3); err != nil {
		t.Error(err)
	}
}

// A server that was frozen, or whose clock stands still, believes that it coordinates.
func TestWhoLostTheLockChangesNothingWhateverItBelieves(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := open(t, e, id, "https://a:8443")
	defer a.Close()
	wait(t, a, "a coordinates", func() bool { return a.Term() != "" })
	err := a.Change(t.Context(), func(tx *store.Tx) error {
		if err := tx.Lead(); err != nil {
			return err
		}
		// Another one takes the lock between the check and the commit.
		if err := store.Usurp(context.WithoutCancel(t.Context()), a); err != nil {
			t.Fatal(err)
		}
		return tx.PutMachine(store.Machine{Name: "late"})
	})
	if !errors.Is(err, store.ErrNotLeading) {
		t.Errorf("got %v, want the refusal", err)
	}
	if _, ok := a.Machine("late"); ok {
		t.Error("a server that had lost the lock changed a record")
	}
}

func TestAnEtcdThatIsGoneIsSaidAndComesBack(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := openFor(t, e, id, "https://a:8443", brief)
	defer a.Close()
	wait(t, a, "a coordinates", func() bool { return a.Term() != "" })
	e.Down()
	wait(t, a, "a stops coordinating", func() bool { return a.Term() == "" && a.Healthy() != nil })
	if text := a.Healthy().Error(); !strings.HasPrefix(text, "etcd does not answer: ") || !strings.HasSuffix(text, "a majority of its members must run and be reached from here") {
		t.Errorf("it says %q", text)
	}
	store.SetPatience(a, 0, 100*time.Millisecond)
	err := a.Change(t.Context(), func(tx *store.Tx) error { return tx.PutValue("n", 1) })
	if err == nil || !strings.Contains(err.Error(), "0 of 1 endpoints answer; no answer from "+e.Endpoints[0]) {
		t.Errorf("a change says %v", err)
	}
	store.SetPatience(a, time.Minute, time.Second)
	changed := make(chan error, 1)
	go func() {
		changed <- a.Change(context.WithoutCancel(t.Context()), func(tx *store.Tx) error { return tx.PutMachine(store.Machine{Name: "m"}) })
	}()
	e.Up(t)
	if err := <-changed; err != nil {
		t.Errorf("a change that waits for etcd: %v", err)
	}
	wait(t, a, "a coordinates again", func() bool { return a.Term() != "" && a.Healthy() == nil })
}

func TestRowsAreSwappedOnlyAsTheyAreKnown(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	s := open(t, e, id, "https://a:8443")
	defer s.Close()
	rows := s.Rows("leases")
	_, from, err := rows.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan store.Row, 16)
	var following sync.WaitGroup
	following.Go(func() {
		rows.Follow(ctx, from, func(r []store.Row) {
			for _, row := range r {
				told <- row
			}
		}, func() []string { return nil })
	})
	swap := func(want []string, in ...store.Row) int64 {
		t.Helper()
		at, other, err := rows.Swap(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range other {
			got = append(got, fmt.Sprintf("%s=%s", o.Key, o.Value))
		}
		if !slices.Equal(got, want) {
			t.Errorf("in the way are %q, want %q", got, want)
		}
		return at
	}
	first := swap(nil, store.Row{Key: "a", Value: []byte("1")}, store.Row{Key: "b", Value: []byte("1")})
	swap([]string{"a=1"}, store.Row{Key: "a", Value: []byte("2")}, store.Row{Key: "c", Value: []byte("2")})
	swap(nil, store.Row{Key: "a", Value: []byte("3"), Revision: first})
	swap([]string{"a=3"}, store.Row{Key: "a", Value: []byte("4"), Revision: first})
	swap(nil, store.Row{Key: "b", Revision: first})
	var got []string
	for range 4 {
		r := <-told
		got = append(got, fmt.Sprintf("%s=%s", r.Key, r.Value))
	}
	if want := []string{"a=1", "b=1", "a=3", "b="}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	cancel()
	following.Wait()
	left, _, err := rows.Load(t.Context())
	if err != nil || len(left) != 1 || string(left[0].Value) != "3" {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestJoinRefusesAnIdentityThatOpensNothing(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	a := open(t, e, id, "https://a:8443")
	if _, err := a.Secret(t.Context(), "ca", func() ([]byte, error) { return []byte("key"), nil }, nil); err != nil {
		t.Fatal(err)
	}
	a.Close()
	c := store.Config{Cluster: "demo", Log: io.Discard}
	n, err := store.Examine(t.Context(), e.Location, c, []byte(id.String()))
	if err != nil || n != 1 {
		t.Errorf("got %d records, %v", n, err)
	}
	if _, err := store.Examine(t.Context(), e.Location, c, []byte(storetest.Identity(t).String())); err == nil || !strings.Contains(err.Error(), "this identity does not open values/secrets/ca") {
		t.Errorf("another identity: %v", err)
	}
	dir := e.Member(t, id)
	if err := store.Join(t.Context(), dir, e.Location, []byte(id.String())); err == nil || !strings.Contains(err.Error(), "identity.age is there already: this directory has a state") {
		t.Errorf("a directory that has a state: %v", err)
	}
	plain := e.Location
	plain.Endpoints = []string{"http://127.0.0.1:2379"}
	if err := store.Join(t.Context(), filepath.Join(t.TempDir(), "new"), plain, []byte(id.String())); err == nil || !strings.Contains(err.Error(), "it must be mutual TLS") {
		t.Errorf("an endpoint without TLS: %v", err)
	}
}

// What happened while a server was cut off for so long that etcd has forgotten it is read
// anew, and what is gone is gone.
func TestMissedChangesAreReadAnew(t *testing.T) {
	t.Parallel()
	e, id := storetest.Start(t), storetest.Identity(t)
	s := open(t, e, id, "https://a:8443")
	defer s.Close()
	rows := s.Rows("leases")
	_, before, err := rows.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = s.Change(t.Context(), func(tx *store.Tx) error { return tx.PutMachine(store.Machine{Name: "there"}) })
	if err != nil {
		t.Fatal(err)
	}
	if _, other, err := rows.Swap(t.Context(), []store.Row{{Key: "there", Value: []byte("1")}}); err != nil || len(other) > 0 {
		t.Fatal(other, err)
	}
	if err := store.Compact(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	late := store.Late(ctx, s, before)
	wait(t, late, "it knows what is there", func() bool { _, ok := late.Machine("there"); return ok })
	if _, ok := late.Machine("gone"); ok {
		t.Error("what was deleted meanwhile is still there")
	}
	told := make(chan []store.Row, 1)
	var following sync.WaitGroup
	following.Go(func() {
		rows.Follow(ctx, before, func(r []store.Row) { told <- r }, func() []string { return []string{"gone", "there"} })
	})
	var got []string
	for _, r := range <-told {
		got = append(got, fmt.Sprintf("%s=%s", r.Key, r.Value))
	}
	if want := []string{"there=1", "gone="}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	cancel()
	following.Wait()
	<-late.Done()
}
