package dhcp6

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Journal is a Store in one file: a line of JSON per change, appended and synced,
// rewritten when it has grown to a multiple of what it says. A torn last line (a crash
// while writing) is dropped: its client was never answered. It is not safe for
// concurrent use.
type Journal struct {
	path string
	file *os.File
	// size is the length of what is known to be good.
	size int64
	// lines counts changes in the file, live what they add up to.
	lines int
	live  *Table
}

// line is a Lease in the file.
type line struct {
	Client string     `json:"client"`
	IAID   uint32     `json:"iaid"`
	Addr   netip.Addr `json:"addr"`
	Until  time.Time  `json:"until"`
	State  State      `json:"state,omitempty"`
}

// OpenJournal opens or makes the file at path. The caller closes it.
func OpenJournal(path string) (*Journal, error) {
	content, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening DHCPv6 leases: %w", err)
	}
	j := &Journal{path: path, live: NewTable(nil)}
	if err := j.parse(content); err != nil {
		return nil, err
	}
	if err := j.rewrite(); err != nil {
		return nil, err
	}
	return j, nil
}

func (j *Journal) parse(content []byte) error {
	for n := 1; ; n++ {
		text, rest, whole := bytes.Cut(content, []byte("\n"))
		if !whole {
			return nil // a torn line, or nothing
		}
		content = rest
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return fmt.Errorf("reading DHCPv6 leases: %s:%d: %w (to start without leases, move the file away; running machines renew theirs)", j.path, n, err)
		}
		if l.Client == "" || !l.Addr.Is6() || l.Addr.Is4In6() {
			return fmt.Errorf("reading DHCPv6 leases: %s:%d: %q with %s is not a client with its IPv6 address (move the file away to start without leases)", j.path, n, l.Client, l.Addr)
		}
		j.remember(Lease{Key: Key{l.Client, l.IAID}, Addr: l.Addr, Until: l.Until, State: l.State})
	}
}

func (j *Journal) remember(l Lease) {
	j.live.put(l)
	j.lines++
}

// Load implements Store.
func (j *Journal) Load() ([]Lease, error) {
	return slices.SortedFunc(maps.Values(j.live.byAddr), func(a, b Lease) int { return a.Addr.Compare(b.Addr) }), nil
}

// Append implements Store: when it returns nil, the changes survive a crash.
func (j *Journal) Append(leases []Lease) error {
	content, err := encode(leases)
	if err != nil {
		return err
	}
	n, err := j.file.WriteAt(content, j.size)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// What was written in part must not stay in the middle of the file. If this
		// fails too, the next write goes to the same place anyway.
		return errors.Join(fmt.Errorf("writing DHCPv6 leases: %w", err), j.file.Truncate(j.size))
	}
	j.size += int64(n)
	for _, l := range leases {
		j.remember(l)
	}
	if j.lines > 2*j.live.Len()+4096 {
		return j.rewrite()
	}
	return nil
}

// rewrite replaces the file by the shortest one that says the same.
func (j *Journal) rewrite() error {
	leases, err := j.Load()
	if err != nil {
		return err
	}
	content, err := encode(leases)
	if err != nil {
		return err
	}
	next, err := replace(j.path, content)
	if err != nil {
		return fmt.Errorf("rewriting DHCPv6 leases: %w", err)
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.lines = next, int64(len(content)), len(leases)
	return nil
}

// replace writes path durably in place of what is there, and returns it open.
func replace(path string, content []byte) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func encode(leases []Lease) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, l := range leases {
		if err := enc.Encode(line{Client: l.Client, IAID: l.IAID, Addr: l.Addr, Until: l.Until.UTC(), State: l.State}); err != nil {
			return nil, fmt.Errorf("encoding DHCPv6 leases: %w", err)
		}
	}
	return buf.Bytes(), nil
}

// Close closes the file; everything in it is durable already.
func (j *Journal) Close() error { return j.file.Close() }
