package store_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/store/storetest"
)

// many is more than one transaction's worth.
const many = 250

// filled is a state directory with something in it.
func filled(t *testing.T) store.Config {
	t.Helper()
	c := store.Config{Dir: t.TempDir(), Cluster: "demo", Log: io.Discard, Volatile: true, Session: session}
	s := reopen(t, c)
	defer s.Close()
	for i := range many / 50 {
		err := s.Change(t.Context(), func(tx *store.Tx) error {
			for j := range 50 {
				if err := tx.PutMachine(store.Machine{Name: fmt.Sprint("m", 50*i+j)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return []byte("the key"), nil }, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func reopen(t *testing.T, c store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// whole checks that nothing is missing, and where it is.
func whole(t *testing.T, c store.Config, shared bool) {
	t.Helper()
	s := reopen(t, c)
	defer s.Close()
	if s.Shared() != shared || len(s.Machines()) != many {
		t.Errorf("shared: %v, %d machines; want %v, %d", s.Shared(), len(s.Machines()), shared, many)
	}
	key, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return nil, errors.New("it is gone") }, nil)
	if err != nil || string(key) != "the key" {
		t.Errorf("the secret: %q, %v", key, err)
	}
}

// joined is another server's directory for the same state, without a look at etcd.
func joined(t *testing.T, c store.Config, at store.Location) store.Config {
	t.Helper()
	identity, err := os.ReadFile(filepath.Join(c.Dir, "identity.age"))
	if err != nil {
		t.Fatal(err)
	}
	c.Dir = t.TempDir()
	if err := store.Join(t.Context(), c.Dir, at, identity); err != nil {
		t.Fatal(err)
	}
	return c
}

var errKilled = errors.New("killed")

// After each step of a move there and back exactly one state counts, and the move can be
// done again or given up.
func TestAMoveThatIsKilledLeavesOneState(t *testing.T) {
	t.Parallel()
	there := []string{"claim", "copy", "location"}
	back := []string{"freeze", "copy", "location"}
	for n, again := range []bool{true, false} {
		for i := range there {
			t.Run(fmt.Sprintf("%s and %s and done again %v", there[i], back[i], again), func(t *testing.T) {
				t.Parallel()
				e, c := storetest.Start(t), filled(t)
				other := joined(t, c, e.Location)
				refused := func(when string) {
					t.Helper()
					if s, err := store.Open(t.Context(), other); err == nil {
						s.Close()
						t.Errorf("%s: another server starts with what is on etcd", when)
					}
				}
				refused("before anything")
				if _, err := store.ToEtcd(t.Context(), c.After(there[i], errKilled), e.Location); !errors.Is(err, errKilled) {
					t.Fatalf("killed after %s: %v", there[i], err)
				}
				refused("killed after " + there[i])
				counts := there[i] == "location" // it is on etcd from here on
				if !again || counts {
					whole(t, c, counts)
				}
				if !counts {
					refused("after the start of a server that gave it up")
					records, err := store.ToEtcd(t.Context(), c, e.Location)
					if err != nil || records != many+1 {
						t.Fatalf("done again: %d records, %v", records, err)
					}
				}
				whole(t, c, true)
				whole(t, other, true)
				if _, err := os.Stat(filepath.Join(c.Dir, "etcd")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("the old copy is still there: %v", err)
				}

				if _, err := store.ToEmbedded(t.Context(), c.After(back[i], errKilled)); !errors.Is(err, errKilled) {
					t.Fatalf("killed after %s: %v", back[i], err)
				}
				refused("killed after " + back[i])
				if counts = back[i] == "location"; counts {
					whole(t, c, false) // it is here from here on
				} else if !again {
					whole(t, c, true) // given up
					whole(t, other, true)
				}
				if _, err := store.ToEmbedded(t.Context(), c); err != nil {
					t.Fatalf("done again: %v", err)
				}
				whole(t, c, false)
				refused("after all of it")
				// And once more: nothing is left behind that is in the way.
				if n == 0 && i == 0 {
					if _, err := store.ToEtcd(t.Context(), c, e.Location); err != nil {
						t.Fatal(err)
					}
					whole(t, c, true)
				}
			})
		}
	}
}

func TestAMoveLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	e, c, d := storetest.Start(t), filled(t), filled(t)
	if _, err := store.ToEtcd(t.Context(), c, e.Location); err != nil {
		t.Fatal(err)
	}
	if _, err := store.ToEtcd(t.Context(), d, e.Location); err == nil || !strings.Contains(err.Error(), "a state of cluster demo is there already (live, by ") {
		t.Errorf("over another state: %v", err)
	}
	whole(t, d, false)
	d.Cluster = "other"
	if _, err := store.ToEtcd(t.Context(), d, e.Location); err != nil {
		t.Errorf("another cluster beside it: %v", err)
	}
	// A server that runs is in the way.
	c.Name = "https://a:8443"
	s := reopen(t, c)
	wait(t, s, "it is present", func() bool { return s.Healthy() == nil })
	moved := joined(t, c, e.Location)
	if _, err := store.ToEmbedded(t.Context(), moved); err == nil || !strings.Contains(err.Error(), "servers use it: https://a:8443; stop them first") {
		t.Errorf("with a server that runs: %v", err)
	}
	s.Close()
	if _, err := store.ToEmbedded(t.Context(), moved); err != nil {
		t.Errorf("after it stopped: %v", err)
	}
	whole(t, moved, false)
}

// A server that was cut off while the state was moved away must not write any more.
func TestAServerThatOutlivedItsStateStops(t *testing.T) {
	t.Parallel()
	e, c := storetest.Start(t), filled(t)
	if _, err := store.ToEtcd(t.Context(), c, e.Location); err != nil {
		t.Fatal(err)
	}
	s := reopen(t, joined(t, c, e.Location))
	defer s.Close()
	wait(t, s, "it is present", func() bool { return s.Healthy() == nil })
	if err := store.CutOff(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := store.ToEmbedded(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	put := func() error {
		return s.Change(t.Context(), func(tx *store.Tx) error { return tx.PutMachine(store.Machine{Name: "late"}) })
	}
	if err := put(); !errors.Is(err, store.ErrMoved) {
		t.Errorf("a change: %v", err)
	}
	if _, _, err := s.Rows("leases").Swap(t.Context(), []store.Row{{Key: "a", Value: []byte("1")}}); !errors.Is(err, store.ErrMoved) {
		t.Errorf("a row: %v", err)
	}
	wait(t, s, "it says so", func() bool { return errors.Is(s.Healthy(), store.ErrMoved) })
	whole(t, c, false)
}
