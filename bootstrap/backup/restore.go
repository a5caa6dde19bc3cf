package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// The names of DHCP leases in a state directory.
const (
	LeasesFile  = "leases"
	Leases6File = "leases6"
)

// MarkKey is the record that a restore adds: a Mark. Whoever opens the state next
// brings it in line with what may have happened since the backup.
const MarkKey = "values/restored"

// Mark says where a state comes from.
type Mark struct {
	// Backup is when the backup was made, At when it was restored.
	Backup time.Time `json:"backup"`
	At     time.Time `json:"at"`
	// File is the backup's name.
	File string `json:"file"`
	// Settled is set by the server that has brought the state in line.
	Settled bool `json:"settled"`
}

// RestoreConfig says what to restore. All fields are needed.
type RestoreConfig struct {
	// From is a backup, or a directory with backups of one cluster, of which the
	// newest is taken.
	From string
	// State is where the state directory shall be: nothing is there yet, or an empty
	// directory. It lies on the file system that it is to stay on.
	State      string
	Identities []age.Identity
	Now        time.Time
	// Log takes etcd's own error messages.
	Log io.Writer
	// Volatile does not wait for the disk; for tests.
	Volatile bool
}

// Restored says what was restored.
type Restored struct {
	File    string
	Header  Header
	Records int
}

// Restore makes a state directory out of a backup. It reads the backup to its end
// before it writes anything, and the directory is there only when it is complete:
// whoever kills it finds what was there before, and beside it a directory
// STATE.restoring-… that the next attempt removes.
func Restore(ctx context.Context, c RestoreConfig) (Restored, error) {
	path, err := pick(c.From)
	if err != nil {
		return Restored{}, err
	}
	r, err := restore(ctx, path, c)
	if err != nil {
		return Restored{}, fmt.Errorf("restoring %s: %w", path, err)
	}
	return r, nil
}

// pick finds the file to restore.
func pick(from string) (string, error) {
	info, err := os.Stat(from)
	if err != nil {
		return "", fmt.Errorf("looking for a backup: %w", err)
	}
	if !info.IsDir() {
		return from, nil
	}
	all, err := files.List(from)
	if err != nil {
		return "", err
	}
	f, err := files.Choose(all, "", from)
	return filepath.Join(from, f.Name), err
}

func restore(ctx context.Context, path string, c RestoreConfig) (Restored, error) {
	state, err := filepath.Abs(c.State)
	if err != nil {
		return Restored{}, err
	}
	if err := vacant(state); err != nil {
		return Restored{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return Restored{}, err
	}
	defer f.Close()
	content, n, err := Verify(f, c.Identities...)
	if err != nil {
		return Restored{}, errors.Join(err, older(path))
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Restored{}, err
	}
	b, err := Open(f, c.Identities...)
	if err != nil {
		return Restored{}, err
	}
	mark, err := store.ValueRecord(MarkKey, Mark{Backup: content.At, At: c.Now.UTC(), File: filepath.Base(path)})
	if err != nil {
		return Restored{}, err
	}
	if err := sweep(state); err != nil {
		return Restored{}, err
	}
	if err := os.MkdirAll(filepath.Dir(state), 0o700); err != nil {
		return Restored{}, err
	}
	next, err := os.MkdirTemp(filepath.Dir(state), filepath.Base(state)+restoring+"*") // mode 0700
	if err != nil {
		return Restored{}, err
	}
	defer os.RemoveAll(next)
	to := store.Config{Dir: next, Cluster: content.Cluster, Log: c.Log, Volatile: c.Volatile}
	kept := 0
	if err := store.Create(ctx, to, content.Identity, marked(b.Records(), mark, &kept)); err != nil {
		return Restored{}, err
	}
	for name, leases := range map[string][]byte{LeasesFile: content.Leases, Leases6File: content.Leases6} {
		if leases == nil {
			continue
		}
		if err := writeFile(filepath.Join(next, name), leases); err != nil {
			return Restored{}, err
		}
	}
	if err := prove(ctx, to, kept); err != nil {
		return Restored{}, fmt.Errorf("reading back what was restored: %w", err)
	}
	if err := files.Sync(next); err != nil {
		return Restored{}, err
	}
	// It takes the place of an empty directory too, which os.Rename would not, and of
	// nothing else.
	if err := syscall.Rename(next, state); err != nil {
		return Restored{}, fmt.Errorf("putting %s in its place: %w; where a file system is mounted, name a directory in it", state, err)
	}
	return Restored{File: path, Header: content.Header, Records: n}, files.Sync(filepath.Dir(state))
}

// vacant refuses a directory in which there is something.
func vacant(state string) error {
	entries, err := os.ReadDir(state)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("%s is not empty (%s, …): a state that is there is never overwritten; name another directory, or move it away", state, entries[0].Name())
	}
	return nil
}

// older names the backup to try when the one at path is no good.
func older(path string) error {
	this, ok := files.Named(filepath.Base(path), 0)
	if !ok {
		return nil
	}
	all, err := files.List(filepath.Dir(path))
	if err != nil {
		return nil // there is nothing more to say
	}
	for _, f := range files.Of(this.Cluster, all) {
		if f.At.Before(this.At) {
			return fmt.Errorf("the one before it is %s, of %s", filepath.Join(filepath.Dir(path), f.Name), f.At.Format(time.RFC3339))
		}
	}
	return nil
}

// restoring is in the name of a directory that is being made.
const restoring = ".restoring-"

// sweep removes what killed attempts left behind: there are keys in it.
func sweep(state string) error {
	left, err := filepath.Glob(state + restoring + "*")
	if err != nil {
		return err
	}
	for _, dir := range left {
		if !store.Unused(dir) {
			return fmt.Errorf("another restore is at work in %s", dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// marked puts a mark in place of one that may be there, and counts what it passes on.
func marked(all iter.Seq2[store.Record, error], mark store.Record, kept *int) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for r, err := range all {
			if err == nil && r.Key == mark.Key {
				continue
			}
			*kept++
			if !yield(r, err) {
				return
			}
		}
		*kept++
		yield(mark, nil)
	}
}

// prove opens the new state as a server would: every record is there, and its
// identity opens every secret.
func prove(ctx context.Context, c store.Config, records int) error {
	s, err := store.Open(ctx, c)
	if err != nil {
		return err
	}
	defer s.Close()
	n := 0
	for r, err := range s.Records(ctx) {
		if err != nil {
			return err
		}
		if err := s.Opens(r); err != nil {
			return err
		}
		n++
	}
	if n != records {
		return fmt.Errorf("%d records are there, %d were written", n, records)
	}
	return nil
}

func writeFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
