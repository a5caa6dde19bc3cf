package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
)

// used is a state directory in which a store was open, with the paths of etcd's log and
// database.
func used(t *testing.T) (dir, log, database string) {
	t.Helper()
	dir = t.TempDir()
	openStore(t, dir).Close()
	logs, err := filepath.Glob(filepath.Join(dir, dataDir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("etcd has left %v, %v", logs, err)
	}
	return dir, logs[len(logs)-1], filepath.Join(dir, dataDir, "member", "snap", "db")
}

// holdLog locks a file as etcd locks its log.
func holdLog(t *testing.T, path string) io.Closer {
	t.Helper()
	l, err := fileutil.TryLockFile(path, os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// holdFile locks a file as etcd's database and we ourselves do.
func holdFile(t *testing.T, path string) io.Closer {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	return f
}

// Whoever holds what a store needs is waited for, for as long as the caller has time,
// and then named by the file. etcd would end this test.
func TestOpenWaitsForWhatIsStillLocked(t *testing.T) {
	t.Parallel()
	for name, hold := range map[string]func(t *testing.T) (dir, path string, held io.Closer){
		"the log": func(t *testing.T) (string, string, io.Closer) {
			dir, log, _ := used(t)
			return dir, log, holdLog(t, log)
		},
		"the database": func(t *testing.T) (string, string, io.Closer) {
			dir, _, database := used(t)
			return dir, database, holdFile(t, database)
		},
		"the lock of a server that was killed": func(t *testing.T) (string, string, io.Closer) {
			dir, _, _ := used(t)
			path := filepath.Join(dir, lockFile)
			gone := fmt.Sprintln(1 << 30) // more than any process's number
			if err := os.WriteFile(path, []byte(gone), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir, path, holdFile(t, path)
		},
		"a lock that nobody has signed yet": func(t *testing.T) (string, string, io.Closer) {
			dir := t.TempDir()
			path := filepath.Join(dir, lockFile)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return dir, path, holdFile(t, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, path, held := hold(t)
			late := errors.New("the caller has no more time")
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(late)
			_, err := Open(ctx, Config{Dir: dir, Cluster: "demo", Log: io.Discard, Volatile: true})
			if !errors.Is(err, late) || !strings.Contains(err.Error(), "waiting for another process that has locked "+path+": ") {
				t.Errorf("got %v", err)
			}
			time.AfterFunc(3*lockPause, func() { held.Close() })
			openStore(t, dir).Close()
		})
	}
}

// A program that is being started has every descriptor of this process until it is
// itself; what is locked through them is free all the same.
func TestAStoreThatIsClosedCanBeOpenedAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	fd, err := syscall.Dup(int(s.lock.Fd())) // what a fork does
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	s.Close()
	if !Unused(dir) {
		t.Error("it is said to be in use")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := lockDir(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	if Unused(dir) {
		t.Error("it is said to be free")
	}
	f.Close()
}
