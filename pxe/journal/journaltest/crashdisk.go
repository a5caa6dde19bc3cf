// Package journaltest has what tests of journals need: a disk that loses its power, and
// what a journal has to stand on it.
package journaltest

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"

	"github.com/imagectl/imagectl/pxe/journal"
)

// Disk is a directory on a disk that can lose its power: what was written and not
// synced may be lost, torn, or there in part while its file is already longer; renames
// that no sync of the directory followed may be lost, in their order. It also fails now
// and then without a crash, and then nobody knows either.
type Disk struct {
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

// NewDisk is an empty one whose power stays on.
func NewDisk(r *rand.Rand) *Disk {
	return &Disk{rand: r, left: 1 << 30, names: map[string]*inode{}, kept: map[string]*inode{}}
}

// step is one operation. Its second result says that the operation is done although
// it fails.
func (d *Disk) step() (err error, done bool) {
	if d.left--; d.left < 0 {
		return errCrash, d.left == -1 && d.rand.IntN(2) == 0
	}
	if d.rand.Float64() < d.fails {
		return errDisk, d.rand.IntN(2) == 0
	}
	return nil, true
}

// ReadFile implements journal.Disk.
func (d *Disk) ReadFile(path string) ([]byte, error) {
	f := d.names[path]
	if f == nil {
		return nil, fs.ErrNotExist
	}
	return bytes.Clone(f.data), nil
}

// Create implements journal.Disk.
func (d *Disk) Create(path string) (journal.File, error) {
	err, done := d.step()
	if done {
		d.change(entry{to: path, file: &inode{}})
	}
	if err != nil {
		return nil, err
	}
	return &crashFile{d, d.names[path]}, nil
}

// Rename implements journal.Disk.
func (d *Disk) Rename(from, to string) error {
	err, done := d.step()
	if done {
		d.change(entry{from: from, to: to, file: d.names[from]})
	}
	return err
}

func (d *Disk) change(e entry) {
	e.apply(d.names)
	d.entries = append(d.entries, e)
}

func (e entry) apply(names map[string]*inode) {
	delete(names, e.from)
	names[e.to] = e.file
}

// SyncDir implements journal.Disk.
func (d *Disk) SyncDir(string) error {
	err, done := d.step()
	if done {
		d.keep(len(d.entries))
	}
	return err
}

func (d *Disk) keep(n int) {
	for _, e := range d.entries[:n] {
		e.apply(d.kept)
	}
	d.entries = d.entries[n:]
}

// Crash takes the power away and gives it back.
func (d *Disk) Crash() {
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
	disk *Disk
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
