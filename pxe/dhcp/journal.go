package dhcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Journal is a Store in one file: a line of JSON per change, appended and synced,
// rewritten when it has grown to a multiple of what it says. What a crash tore while it
// was appended is dropped: its clients were never answered. It is not safe for
// concurrent use.
type Journal struct {
	path string
	disk disk
	file file
	// size is the length of what is known to be good.
	size int64
	// lines counts changes in the file, live what they add up to. The file is rewritten
	// when it has more than limit of them; spare is what a rewritten one may grow by.
	lines, limit, spare int
	live                *Table
	// broken says that nobody knows what is in the file: a write or a sync failed, or
	// it is not certain which file has its name. It is rewritten before anything else.
	broken bool
}

// defaultSpare makes a rewriting rare also where there are few leases.
const defaultSpare = 4096

// line is a Lease in the file.
type line struct {
	MAC     string     `json:"mac"`
	Addr    netip.Addr `json:"addr"`
	Machine string     `json:"machine,omitempty"`
	Until   time.Time  `json:"until"`
	State   State      `json:"state,omitempty"`
	// From is the offset in the file of the append that the line belongs to; nil for
	// lines that were written whole before the file got its name.
	From *int64 `json:"from,omitempty"`
}

// disk is what a journal does to files; only a test has another one than the system's.
type disk interface {
	ReadFile(path string) ([]byte, error)
	// Create makes a file of mode 0600, in place of any that is there.
	Create(path string) (file, error)
	Rename(from, to string) error
	SyncDir(dir string) error
}

type file interface {
	io.WriterAt
	io.Closer
	Sync() error
}

// OpenJournal opens or makes the file at path. The caller closes it.
func OpenJournal(path string) (*Journal, error) { return openJournal(path, systemDisk{}, defaultSpare) }

func openJournal(path string, on disk, spare int) (*Journal, error) {
	content, err := on.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening leases: %w", err)
	}
	j := &Journal{path: path, disk: on, spare: spare, live: NewTable(nil)}
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
func (j *Journal) parse(content []byte) error {
	var damage error
	damaged := int64(-1)
	at := int64(0)
	for n := 1; ; n++ {
		text, rest, whole := bytes.Cut(content, []byte("\n"))
		if !whole {
			return nil // a torn line, or nothing
		}
		l, from, err := decode(text)
		switch {
		case err != nil && damage == nil:
			damage = fmt.Errorf("reading leases: %s:%d: %w (to start without leases, move the file away; running machines renew theirs)", j.path, n, err)
			damaged = at
		case err != nil:
		case damage != nil && (from == nil || *from > damaged):
			return damage
		default:
			j.remember(l)
		}
		content = rest
		at += int64(len(text)) + 1
	}
}

func decode(text []byte) (Lease, *int64, error) {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return Lease{}, nil, err
	}
	mac, err := net.ParseMAC(l.MAC)
	if err != nil || len(mac) != 6 || !l.Addr.Is4() {
		return Lease{}, nil, fmt.Errorf("%q with %s is not a card with its IPv4 address", l.MAC, l.Addr)
	}
	return Lease{MAC: MAC(mac), Addr: l.Addr, Machine: l.Machine, Until: l.Until, State: l.State}, l.From, nil
}

func (j *Journal) remember(l Lease) {
	j.live.put(l)
	j.lines++
}

// Load implements Store.
func (j *Journal) Load() ([]Lease, error) {
	return slices.SortedFunc(maps.Values(j.live.byAddr), func(a, b Lease) int { return a.Addr.Compare(b.Addr) }), nil
}

// Append implements Store: when it returns nil, the changes survive a crash. After an
// error they may or may not, until the next call.
func (j *Journal) Append(leases []Lease) error {
	if j.broken {
		if err := j.rewrite(); err != nil {
			return err
		}
	}
	var buf bytes.Buffer
	if err := encode(&buf, leases, &j.size); err != nil {
		return err
	}
	n, err := j.file.WriteAt(buf.Bytes(), j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// What was written in part must not stay, and after a sync that failed nobody
		// knows what is on the disk, not even for what was synced again.
		j.broken = true
		return fmt.Errorf("writing leases: %w", err)
	}
	j.size += int64(n)
	for _, l := range leases {
		j.remember(l)
	}
	if j.lines > j.limit && j.rewrite() != nil {
		// The leases are durable. A file that is longer than it has to be serves as well;
		// the next attempt comes when it has grown further. A disk that is full or broken
		// will say so where leases cannot be kept.
		j.limit = 2 * j.lines
	}
	return nil
}

// rewrite replaces the file by the shortest one that says the same.
func (j *Journal) rewrite() error {
	leases, err := j.Load()
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := encode(&buf, leases, nil); err != nil {
		return err
	}
	next, err := j.replace(buf.Bytes())
	if err != nil {
		return fmt.Errorf("rewriting leases: %w", err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.lines, j.limit = next, int64(buf.Len()), len(leases), 2*len(leases)+j.spare
	return nil
}

// replace puts content durably in place of the file, and returns it open.
func (j *Journal) replace(content []byte) (_ file, err error) {
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

func encode(w io.Writer, leases []Lease, from *int64) error {
	enc := json.NewEncoder(w)
	for _, l := range leases {
		if err := enc.Encode(line{MAC: l.MAC.String(), Addr: l.Addr, Machine: l.Machine, Until: l.Until.UTC(), State: l.State, From: from}); err != nil {
			return fmt.Errorf("encoding leases: %w", err)
		}
	}
	return nil
}

// Close closes the file; everything in it is durable already.
func (j *Journal) Close() error { return j.file.Close() }

// systemDisk is the disk of this machine.
type systemDisk struct{}

func (systemDisk) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (systemDisk) Create(path string) (file, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (systemDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (systemDisk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
