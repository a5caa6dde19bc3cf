package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/machine"
)

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: dir, Cluster: "demo", Log: os.Stderr, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Not parallel: it counts the sockets of the whole process.
func TestStoreOpensNoSocket(t *testing.T) {
	before := sockets(t)
	probe, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(sockets(t)); n != len(before)+1 {
		t.Fatalf("the test sees %d sockets after one was opened, %d before", n, len(before))
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, t.TempDir())
	defer s.Close()
	if after := sockets(t); len(after) != len(before) {
		t.Errorf("sockets of this process: %v before, %v while the store is open", before, after)
	}
}

func sockets(t *testing.T) []string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			out = append(out, to)
		}
	}
	return out
}

func TestRecordsSurviveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	want := Machine{
		Name: "cp1", State: machine.Armed, Known: true, Since: time.Unix(5, 0).UTC(), FirstSeen: time.Unix(4, 0).UTC(),
		Key:    &Key{SPKI: []byte{1}, Fingerprint: "ab", Code: "0000-0000-0000", FirstSeen: time.Unix(1, 0).UTC()},
		Arming: &Arming{ID: "x", At: time.Unix(2, 0).UTC(), By: "ada"},
	}
	if err := s.Change(t.Context(), func(tx *Tx) error { return tx.PutMachine(want) }); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Machine("cp1"); !ok || got.State != machine.Armed {
		t.Errorf("the snapshot lags behind Change: %v, %v", got, ok)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Cluster: "demo", Log: io.Discard}); err == nil ||
		err.Error() != fmt.Sprintf("opening state directory %s: another imagectl serve is using it (process %d)", dir, os.Getpid()) {
		t.Errorf("a second server opens the same directory: %v", err)
	}
	s.Close()

	s = openStore(t, dir)
	defer s.Close()
	got, _ := s.Machine("cp1")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if err := s.Change(t.Context(), func(tx *Tx) error { tx.DeleteMachine("cp1"); return nil }); err != nil {
		t.Fatal(err)
	}
	if n := len(s.Machines()); n != 0 {
		t.Errorf("%d records after the only one was deleted", n)
	}
}

func TestConcurrentChangesLoseNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	const workers, each = 8, 10
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range each {
				err := s.Change(t.Context(), func(tx *Tx) error {
					var n uint64
					if _, err := tx.Value("n", &n); err != nil {
						return err
					}
					tx.PutAudit(n+1, fmt.Appendf(nil, "line %d", n+1))
					return tx.PutValue("n", n+1)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	i := 0
	for line, err := range s.AuditLines(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		i++
		if got, want := string(line), fmt.Sprintf("line %d", i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if i != workers*each {
		t.Errorf("%d lines, want %d", i, workers*each)
	}
}

func TestAFailedChangeWritesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir())
	defer s.Close()
	boom := errors.New("boom")
	err := s.Change(t.Context(), func(tx *Tx) error {
		if err := tx.PutMachine(Machine{Name: "a"}); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) || len(s.Machines()) != 0 {
		t.Errorf("got %v and %d records, want boom and none", err, len(s.Machines()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Change(ctx, func(tx *Tx) error { return tx.PutMachine(Machine{Name: "a"}) }); err == nil {
		t.Error("a cancelled change succeeds")
	}
}

func TestSecretsAreEncryptedAtRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	secret := []byte("THE-PRIVATE-KEY-NOBODY-MAY-SEE")
	recorded := 0
	create := func() ([]byte, error) { return secret, nil }
	for range 2 {
		got, err := s.Secret(t.Context(), "ca", create, func(*Tx) error { recorded++; return nil })
		if err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if recorded != 1 {
		t.Errorf("its making was recorded %d times, want once", recorded)
	}
	s.Close()

	info, err := os.Stat(filepath.Join(dir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity: %v, %v; want mode 0600", info, err)
	}
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, secret) {
			t.Errorf("%s holds the secret in clear", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	s = openStore(t, dir)
	got, err := s.Secret(t.Context(), "ca", func() ([]byte, error) { return nil, errors.New("made anew") }, nil)
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after a restart: got %q, %v", got, err)
	}
	s.Close()

	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("# empty\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Cluster: "demo", Log: io.Discard}); err == nil || !strings.Contains(err.Error(), "there is no identity in it; restore the file") {
		t.Errorf("a lost identity: got %v", err)
	}

	// Gone altogether: another one would only hide what is missing.
	if err := os.Remove(filepath.Join(dir, identityFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Cluster: "demo", Log: io.Discard}); err == nil || !strings.Contains(err.Error(), "is missing; restore the file") {
		t.Errorf("a missing identity: got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, identityFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an identity was made in place of the missing one: %v", err)
	}
}
