package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// crashDisk is a directory on a disk that can lose its power: what was written and not
// synced may be lost, torn, or there in part while its file is already longer; renames
// that no sync of the directory followed may be lost, in their order. It also fails now
// and then without a crash, and then nobody knows either.
type crashDisk struct {
	rand *rand.Rand
	// left is how many operations there are before the power goes; fails is the chance
	// of an error, from 0 to 1.
	left  int
	fails float64
	// names is what programs see, kept what is certain, and entries the renames and
	// creations in between.
	names, kept map[string]*inode
	entries     []entry
}

type inode struct {
	data, durable []byte
	pending       []pendingWrite
}

type pendingWrite struct {
	at   int64
	data []byte
}

// entry is a change of the directory: to gets what from had, or a new file.
type entry struct {
	from, to string
	file     *inode
}

var (
	errCrash = errors.New("the power is gone")
	errDisk  = errors.New("input/output error")
)

func newCrashDisk(r *rand.Rand) *crashDisk {
	return &crashDisk{rand: r, left: 1 << 30, names: map[string]*inode{}, kept: map[string]*inode{}}
}

// step is one operation. Its second result says that the operation is done although
// it fails.
func (d *crashDisk) step() (err error, done bool) {
	if d.left--; d.left < 0 {
		return errCrash, d.left == -1 && d.rand.IntN(2) == 0
	}
	if d.rand.Float64() < d.fails {
		return errDisk, d.rand.IntN(2) == 0
	}
	return nil, true
}

func (d *crashDisk) ReadFile(path string) ([]byte, error) {
	f := d.names[path]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data), nil
}

func (d *crashDisk) Create(path string) (file, error) {
	err, done := d.step()
	if done {
		d.change(entry{to: path, file: &inode{}})
	}
	if err != nil {
		return nil, err
	}
	return &crashFile{d, d.names[path]}, nil
}

func (d *crashDisk) Rename(from, to string) error {
	err, done := d.step()
	if done {
		d.change(entry{from: from, to: to, file: d.names[from]})
	}
	return err
}

func (d *crashDisk) change(e entry) {
	e.apply(d.names)
	d.entries = append(d.entries, e)
}

func (e entry) apply(names map[string]*inode) {
	delete(names, e.from)
	names[e.to] = e.file
}

func (d *crashDisk) SyncDir(string) error {
	err, done := d.step()
	if done {
		d.keep(len(d.entries))
	}
	return err
}

func (d *crashDisk) keep(n int) {
	for _, e := range d.entries[:n] {
		e.apply(d.kept)
	}
	d.entries = d.entries[n:]
}

// crash takes the power away and gives it back.
func (d *crashDisk) crash() {
	d.keep(d.rand.IntN(len(d.entries) + 1))
	d.entries, d.names = nil, map[string]*inode{}
	for name, f := range d.kept {
		f.tear(d.rand)
		d.names[name] = f
	}
	d.left = 1 << 30
}

// sector is small, so that short files have many.
const sector = 64

// tear decides what of the pending writes is there: all, nothing, a beginning, or
// some sectors of it and zeros for the others.
func (f *inode) tear(r *rand.Rand) {
	for _, w := range f.pending {
		switch r.IntN(4) {
		case 0:
			continue
		case 1:
			w.data = w.data[:r.IntN(len(w.data)+1)]
		case 2:
			w.data = bytes.Clone(w.data)
			for at := w.at; at < w.at+int64(len(w.data)); at = (at/sector + 1) * sector {
				if r.IntN(2) == 0 {
					end := min((at/sector+1)*sector, w.at+int64(len(w.data)))
					clear(w.data[at-w.at : end-w.at])
				}
			}
		}
		f.durable = write(f.durable, w)
	}
	f.pending = nil
	f.data = bytes.Clone(f.durable)
}

func write(b []byte, w pendingWrite) []byte {
	if short := w.at + int64(len(w.data)) - int64(len(b)); short > 0 {
		b = append(b, make([]byte, short)...)
	}
	copy(b[w.at:], w.data)
	return b
}

type crashFile struct {
	disk *crashDisk
	*inode
}

func (f *crashFile) WriteAt(p []byte, at int64) (int, error) {
	err, done := f.disk.step()
	n := len(p)
	if err != nil && done {
		n = f.disk.rand.IntN(n + 1)
	}
	if done {
		w := pendingWrite{at, bytes.Clone(p[:n])}
		f.data = write(f.data, w)
		f.pending = append(f.pending, w)
	}
	return n, err
}

// Sync that fails has perhaps written something, and later ones do not try again: so
// does Linux.
func (f *crashFile) Sync() error {
	err, done := f.disk.step()
	switch {
	case done && err == nil:
		for _, w := range f.pending {
			f.durable = write(f.durable, w)
		}
		f.pending = nil
	case err != nil && f.disk.left >= 0:
		for _, w := range f.pending {
			if f.disk.rand.IntN(2) == 0 {
				f.durable = write(f.durable, w)
			}
		}
		f.pending = nil
	}
	return err
}

func (f *crashFile) Close() error { return nil }

// Whatever the disk does, and wherever the power goes: every lease that was kept is
// there, unless one that was on its way has taken its place, and nothing else is.
func TestNoLeaseIsLostWhereverThePowerGoes(t *testing.T) {
	t.Parallel()
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 0))
		d := newCrashDisk(r)
		kept := NewTable(nil)
		var unsure []Lease
		for life := range 4 {
			if unsure = oneLife(t, d, kept, unsure, fmt.Sprintf("seed %d, life %d", seed, life)); t.Failed() {
				return
			}
		}
	}
}

// oneLife opens the journal, checks what it says, and appends until the power goes.
// It returns what was on its way then.
func oneLife(t *testing.T, d *crashDisk, kept *Table, unsure []Lease, when string) []Lease {
	r := d.rand
	d.left, d.fails = 1<<30, 0
	if r.IntN(3) == 0 {
		d.left = r.IntN(8) // while it opens
	}
	j, err := openJournal("leases", d, 6)
	if err != nil {
		if !errors.Is(err, errCrash) {
			t.Errorf("%s: %v", when, err)
		}
		d.crash()
		return unsure
	}
	got, err := j.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got {
		if have, ok := kept.ByAddr(l.Addr); !(ok && same(have, l)) && !slices.ContainsFunc(unsure, func(u Lease) bool { return same(u, l) }) {
			t.Errorf("%s: %v is believed, which nobody was given", when, l)
		}
	}
	for _, l := range kept.byAddr {
		gone := func(u Lease) bool { return u.MAC == l.MAC || u.Addr == l.Addr }
		if have, ok := NewTable(got).ByAddr(l.Addr); !(ok && same(have, l)) && !slices.ContainsFunc(unsure, gone) {
			t.Errorf("%s: %v is lost", when, l)
		}
	}
	*kept = *NewTable(got)
	unsure = nil
	d.left = r.IntN(60)
	d.fails = []float64{0, 0.05, 0.3}[r.IntN(3)]
	for batch := 0; ; batch++ {
		leases := make([]Lease, 1+r.IntN(6))
		for i := range leases {
			leases[i] = Lease{MAC: MAC{2, 0, 0, 0, 0, byte(r.IntN(12))}, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(12))}),
				Until: noon.Add(time.Duration(r.IntN(1e6)) * time.Second), State: []State{Bound, Bound, Declined}[r.IntN(3)]}
		}
		switch err := j.Append(leases); {
		case err == nil:
			for _, l := range leases {
				kept.put(l)
			}
			unsure = nil
		case errors.Is(err, errCrash):
			d.crash()
			return append(unsure, leases...)
		case errors.Is(err, errDisk):
			unsure = append(unsure, leases...)
		default:
			t.Fatalf("%s: %v", when, err)
		}
		if d.left < 0 { // the power went in a rewriting, after the leases were durable
			d.crash()
			return unsure
		}
	}
}

func same(a, b Lease) bool {
	return a.MAC == b.MAC && a.Addr == b.Addr && a.State == b.State && a.Until.Equal(b.Until) && a.Machine == b.Machine
}

// A disk that is full keeps the journal from being shortened, not from being written.
func TestJournalThatCannotBeShortenedIsUsedOn(t *testing.T) {
	t.Parallel()
	d := newCrashDisk(rand.New(rand.NewPCG(1, 1)))
	full := &noCreation{crashDisk: d}
	j, err := openJournal("leases", full, 6)
	if err != nil {
		t.Fatal(err)
	}
	full.refuse = true
	l := Lease{MAC: MAC{2, 0, 0, 0, 0, 1}, Addr: netip.MustParseAddr("10.0.0.1"), Until: noon}
	for i := range 100 {
		l.Until = noon.Add(time.Duration(i) * time.Second)
		if err := j.Append([]Lease{l}); err != nil {
			t.Fatal(err)
		}
	}
	if full.asked > 6 {
		t.Errorf("it tried to shorten the file %d times for 100 leases", full.asked)
	}
	d.crash()
	full.refuse = false
	if j, err = openJournal("leases", full, 6); err != nil {
		t.Fatal(err)
	}
	if got, _ := j.Load(); len(got) != 1 || !same(got[0], l) {
		t.Errorf("got %v, want %v", got, l)
	}
}

type noCreation struct {
	*crashDisk
	refuse bool
	asked  int
}

func (d *noCreation) Create(path string) (file, error) {
	if d.refuse {
		d.asked++
		return nil, errors.New("no space left on device")
	}
	return d.crashDisk.Create(path)
}
