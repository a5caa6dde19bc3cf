package etcdsnap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

// Contents is what a database has.
type Contents struct {
	// Revision is the last; Keys is how many revisions of keys there are, of which etcd keeps old
	// ones until it compacts.
	Revision int64 `json:"revision"`
	Keys     int64 `json:"keys"`
	// Size is that of the database, in bytes.
	Size int64 `json:"size"`
}

// BrokenError says that a snapshot is not whole, and why.
type BrokenError struct{ Why string }

func (e *BrokenError) Error() string { return "the database in the snapshot is not whole: " + e.Why }

// reported bounds how many of bbolt's findings are named.
const reported = 3

// openTime is how long bbolt may wait for the file's lock, which nobody holds.
const openTime = 5 * time.Second

// Inspect reads a snapshot, as a file that is not encrypted, to its end: each page by bbolt's own
// check, each key of etcd's, and the digest at its end. It fails with a *BrokenError when it is not
// whole, and with any other error when it could not be read. Run it in a process of its own: bbolt
// reads the pages of etcd's databases, which have no list of free ones, in a goroutine that ends the
// process when it finds a damaged one (DB.freepages of 1.5.0), and maps the file into memory.
func Inspect(ctx context.Context, path string) (c Contents, err error) {
	f, err := os.Open(path)
	if err != nil {
		return Contents{}, err
	}
	whole, err := ReadWhole(f)
	if err := f.Close(); err != nil {
		return Contents{}, err
	}
	if errors.Is(err, ErrNotWhole) {
		return Contents{}, &BrokenError{err.Error()}
	}
	if err != nil {
		return Contents{}, err
	}
	// Reading a mapped file where there is none is a panic, and not the end, of this goroutine.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			c, err = Contents{}, &BrokenError{fmt.Sprint(r)}
		}
	}()
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true, Timeout: openTime})
	if err != nil {
		return Contents{}, &BrokenError{err.Error()}
	}
	defer db.Close()
	c.Size = whole.Size() - int64(len(whole.tail))
	return c, db.View(func(tx *bbolt.Tx) error { return c.read(ctx, tx) })
}

func (c *Contents) read(ctx context.Context, tx *bbolt.Tx) error {
	if tx.Size() > c.Size {
		return &BrokenError{fmt.Sprintf("it says that it has %d bytes, and has %d", tx.Size(), c.Size)}
	}
	n, why := 0, ""
	for err := range tx.Check() { // to its end, or bbolt's goroutine waits for ever
		if n++; n <= reported {
			why += "; " + err.Error()
		}
	}
	if n > 0 {
		return &BrokenError{fmt.Sprintf("%d findings%s", n, why)}
	}
	// etcd's names (server/storage/schema/bucket.go of 3.6).
	keys, meta := tx.Bucket([]byte("key")), tx.Bucket([]byte("meta"))
	if keys == nil || meta == nil {
		return &BrokenError{"it has no bucket key or meta, so it is none of etcd"}
	}
	// What was compacted may leave no key of the last revision.
	for _, name := range []string{"scheduledCompactRev", "finishedCompactRev"} {
		if v := meta.Get([]byte(name)); len(v) > 0 {
			r, err := revision(v)
			if err != nil {
				return &BrokenError{fmt.Sprintf("%s: %v", name, err)}
			}
			c.Revision = max(c.Revision, r)
		}
	}
	return keys.ForEach(func(k, v []byte) error {
		if c.Keys%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		r, err := revision(k)
		if err != nil {
			return &BrokenError{err.Error()}
		}
		c.Keys++
		c.Revision = max(c.Revision, r)
		return nil
	})
}

// revision reads the main part of a revision as etcd has it: eight bytes, an underscore, eight
// bytes, and for what was deleted a t (server/storage/mvcc/revision.go).
func revision(b []byte) (int64, error) {
	if len(b) < 17 || len(b) > 18 || b[8] != '_' {
		return 0, fmt.Errorf("%x is no revision", b)
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// InScratch has a reader's content in a file without a name in a directory, which is gone when the
// process is, and calls use with a path to it that is good while use runs, for this user's processes.
func InScratch(dir string, r io.Reader, use func(path string) error) error {
	f, err := os.CreateTemp(dir, ".etcd-check-*") // mode 0600
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return use(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()))
}
