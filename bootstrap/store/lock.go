package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is what an open store holds locked; its content is the number of the process
// that opened it last.
const lockFile = "lock"

const (
	// lockWait is how long a lock is waited for whose holder cannot be named.
	lockWait = time.Minute
	// lockPause is the time between two attempts.
	lockPause = 20 * time.Millisecond
)

// lockDir makes sure that one process uses the directory. A lock that nobody alive has
// taken is waited for: a program that the last holder was starting when it was killed
// has its descriptors until it is started.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = await(ctx, f.Name(), func() (bool, error) {
		ok, err := tryFlock(f)
		if !ok && err == nil {
			err = inUse(f)
		}
		return ok, err
	})
	if err == nil {
		err = sign(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// inUse is an error where the process that signed f is alive.
func inUse(f *os.File) error {
	b := make([]byte, 20)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return nil
	}
	return fmt.Errorf("another imagectl serve is using it (process %d)", pid)
}

func sign(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := fmt.Fprintln(f, os.Getpid())
	return err
}

func tryFlock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// unlock gives the lock back at once: closing alone leaves it to a program that is just
// being started.
func unlock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

// awaitEtcd waits until nobody has etcd's files locked. etcd itself ends the whole
// process where its log is locked, and waits for its database without a word. Like our
// own lock they stay locked for a moment after etcd has closed them, when a program was
// being started meanwhile.
func awaitEtcd(ctx context.Context, data string) error {
	logs := filepath.Join(data, "member", "wal")
	entries, err := os.ReadDir(logs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(logs, e.Name())
		if err := awaitFile(ctx, path, logFree); err != nil {
			return err
		}
	}
	return awaitFile(ctx, filepath.Join(data, "member", "snap", "db"), databaseFree)
}

func awaitFile(ctx context.Context, path string, free func(*os.File) (bool, error)) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return await(ctx, path, func() (bool, error) { return free(f) })
}

// logFree asks only: a lock taken here could stay behind just like the one that is
// waited for.
func logFree(f *os.File) (bool, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, &os.PathError{Op: "asking for the lock of", Path: f.Name(), Err: err}
	}
	return lock.Type == unix.F_UNLCK, nil
}

func databaseFree(f *os.File) (bool, error) {
	ok, err := tryFlock(f)
	if ok {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	}
	return ok, err
}

// await asks until path is free.
func await(ctx context.Context, path string, free func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, lockWait, fmt.Errorf("still locked after %s", lockWait))
	defer cancel()
	for {
		ok, err := free()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for another process that has locked %s: %w; to see which one: fuser -v %[1]s", path, context.Cause(ctx))
		case <-time.After(lockPause):
		}
	}
}
