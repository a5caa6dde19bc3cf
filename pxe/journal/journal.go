// Package journal keeps records in one file so that what was appended survives a crash:
// a line of JSON per change, appended and synced, rewritten when it has grown to a
// multiple of what it says. What a crash tore while it was appended is dropped: nobody
// was told that it is kept. Damage to what was kept is an error.
//
// It is for what fits in memory: the leases of a DHCP server. It knows nothing of what a
// record means; a Kind writes and reads one, a Live says what they add up to.
package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
)

// Journal is records in one file. It is not safe for concurrent use.
type Journal[R any] struct {
	path string
	kind Kind[R]
	disk Disk
	file File
	// size is the length of what is known to be good.
	size int64
	// lines counts changes in the file, live what they add up to. The file is rewritten
	// when it has more than twice as many lines as it needs, and spare besides, but not
	// before it has limit of them.
	lines, limit, spare int
	live                Live[R]
	// broken says that nobody knows what is in the file: a write or a sync failed, or
	// it is not certain which file has its name. It is rewritten before anything else.
	broken bool
}

// Kind is what a journal is of. All fields are needed.
type Kind[R any] struct {
	// Name is what the records are called in errors, such as "leases".
	Name string
	// Hint says what to do about a file that is damaged.
	Hint string
	// Encode makes a JSON object with at least one member, and none named "from".
	Encode func(R) ([]byte, error)
	// Decode reads what Encode has made, and passes over a member named "from".
	Decode func([]byte) (R, error)
}

// Live is what records add up to, in memory.
type Live[R any] interface {
	// Put takes a record in, in place of those that it replaces.
	Put(R)
	// Len is how many count.
	Len() int
	// All are those that count, in the order in which they are to be written.
	All() []R
}

// DefaultSpare makes a rewriting rare also where there are few records.
const DefaultSpare = 4096

// Open opens or makes the file at path and puts what it says into live, which belongs
// to the journal from then on. The caller closes it.
func Open[R any](path string, kind Kind[R], live Live[R]) (*Journal[R], error) {
	return OpenOn(systemDisk{}, path, kind, live, DefaultSpare)
}

// OpenOn is Open on another disk, and with another number of records by which the file
// may outgrow what it says. It is for tests.
func OpenOn[R any](on Disk, path string, kind Kind[R], live Live[R], spare int) (*Journal[R], error) {
	content, err := on.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening %s: %w", kind.Name, err)
	}
	j := &Journal[R]{path: path, kind: kind, disk: on, spare: spare, live: live}
	if err := j.parse(content); err != nil {
		return nil, err
	}
	if err := j.rewrite(); err != nil {
		return nil, err
	}
	return j, nil
}

// parse believes the whole lines. Damage is what a crash left of the last append, and
// is passed over, unless a line behind it was written by a later one: then what is
// damaged had been answered for.
func (j *Journal[R]) parse(content []byte) error {
	var damage error
	damaged := int64(-1)
	at := int64(0)
	for n := 1; ; n++ {
		text, rest, whole := bytes.Cut(content, []byte("\n"))
		if !whole {
			return nil // a torn line, or nothing
		}
		r, from, err := j.decode(text)
		switch {
		case err != nil && damage == nil:
			damage = fmt.Errorf("reading %s: %s:%d: %w (%s)", j.kind.Name, j.path, n, err, j.kind.Hint)
			damaged = at
		case err != nil:
		case damage != nil && (from == nil || *from > damaged):
			return damage
		default:
			j.remember(r)
		}
		content = rest
		at += int64(len(text)) + 1
	}
}

// origin is the offset in the file of the append that a line belongs to; nil for lines
// that were written whole before the file got its name.
type origin struct {
	From *int64 `json:"from"`
}

func (j *Journal[R]) decode(text []byte) (r R, from *int64, err error) {
	var o origin
	if err = json.Unmarshal(text, &o); err == nil {
		r, err = j.kind.Decode(text)
	}
	return r, o.From, err
}

func (j *Journal[R]) encode(records []R, from *int64) ([]byte, error) {
	var buf bytes.Buffer
	for _, r := range records {
		object, err := j.kind.Encode(r)
		if err != nil {
			return nil, fmt.Errorf("encoding %s: %w", j.kind.Name, err)
		}
		if from != nil {
			buf.Write(bytes.TrimSuffix(object, []byte("}")))
			buf.WriteString(`,"from":`)
			buf.Write(strconv.AppendInt(buf.AvailableBuffer(), *from, 10))
			buf.WriteByte('}')
		} else {
			buf.Write(object)
		}
		buf.WriteByte('\n')
	}
	return buf.Bytes(), nil
}

func (j *Journal[R]) remember(r R) {
	j.live.Put(r)
	j.lines++
}

// Load returns what the journal adds up to.
func (j *Journal[R]) Load() ([]R, error) { return j.live.All(), nil }

// Append keeps changes: when it returns nil, they survive a crash. After an error they
// may or may not, until the next call.
func (j *Journal[R]) Append(records []R) error {
	if j.broken {
		if err := j.rewrite(); err != nil {
			return err
		}
	}
	content, err := j.encode(records, &j.size)
	if err != nil {
		return err
	}
	n, err := j.file.WriteAt(content, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// What was written in part must not stay, and after a sync that failed nobody
		// knows what is on the disk, not even for what was synced again.
		j.broken = true
		return fmt.Errorf("writing %s: %w", j.kind.Name, err)
	}
	j.size += int64(n)
	for _, r := range records {
		j.remember(r)
	}
	if j.lines > max(j.limit, 2*j.live.Len()+j.spare) && j.rewrite() != nil {
		// The records are durable. A file that is longer than it has to be serves as well;
		// the next attempt comes when it has grown further. A disk that is full or broken
		// will say so where records cannot be kept.
		j.limit = 2 * j.lines
	}
	return nil
}

// rewrite replaces the file by the shortest one that says the same.
func (j *Journal[R]) rewrite() error {
	records := j.live.All()
	content, err := j.encode(records, nil)
	if err != nil {
		return err
	}
	next, err := j.replace(content)
	if err != nil {
		return fmt.Errorf("rewriting %s: %w", j.kind.Name, err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.lines, j.limit = next, int64(len(content)), len(records), 0
	return nil
}

// replace puts content durably in place of the file, and returns it open.
func (j *Journal[R]) replace(content []byte) (_ File, err error) {
	temporary := j.path + ".new"
	f, err := j.disk.Create(temporary)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err = f.WriteAt(content, 0); err != nil {
		return nil, err
	}
	if err = f.Sync(); err != nil {
		return nil, err
	}
	// From here on either file may be the one that is there after a crash, until the
	// directory is synced: nothing may be appended to one of them alone.
	j.broken = true
	if err = j.disk.Rename(temporary, j.path); err != nil {
		return nil, err
	}
	if err = j.disk.SyncDir(filepath.Dir(j.path)); err != nil {
		return nil, err
	}
	j.broken = false
	return f, nil
}

// Close closes the file; everything in it is durable already.
func (j *Journal[R]) Close() error { return j.file.Close() }
