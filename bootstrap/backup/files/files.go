// Package files is backups of the server's state as files in a directory, on the server
// and on the nodes that keep copies: their names, how one gets its name only when it is
// whole, which are too old to stay, and what makes a copy of one genuine. What is in them is
// package backup's business. Snapshots of the cluster's etcd are files of another Kind.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// stamp is the time in a backup's name: UTC, to the millisecond, so that names sort
// as times do.
const stamp = "20060102T150405.000Z"

// fileName matches what Name makes.
var fileName = regexp.MustCompile(`^imagectl-([a-z0-9-]+)-(\d{8}T\d{6}\.\d{3}Z)(\.[a-z.]+)$`)

// Kind is what a file holds, and the end of its name.
type Kind string

// The kinds. State is what the functions of this package are about that are none of a Kind.
const (
	State Kind = ".tar.gz.age"
	Etcd  Kind = ".etcd.age"
)

// Name is how a file of a cluster made at a moment is called.
func (k Kind) Name(cluster string, at time.Time) string {
	return "imagectl-" + cluster + "-" + at.UTC().Format(stamp) + string(k)
}

// Name is how the backup of a cluster made at a moment is called.
func Name(cluster string, at time.Time) string { return State.Name(cluster, at) }

// File is one backup in a directory.
type File struct {
	Name    string
	Cluster string
	At      time.Time
	Size    int64
}

// parse is the reverse of Name; false for other files.
func parse(name string) (cluster string, at time.Time, kind Kind, ok bool) {
	m := fileName.FindStringSubmatch(name)
	if m == nil {
		return "", time.Time{}, "", false
	}
	at, err := time.Parse(stamp, m[2])
	kind = Kind(m[3])
	return m[1], at, kind, err == nil && (kind == State || kind == Etcd)
}

// Named is the file of that name; false for what is none of the kind.
func (k Kind) Named(name string, size int64) (File, bool) {
	cluster, at, kind, ok := parse(name)
	return File{Name: name, Cluster: cluster, At: at, Size: size}, ok && kind == k
}

// Named is the backup of that name; false for what is none.
func Named(name string, size int64) (File, bool) { return State.Named(name, size) }

// List returns the backups in a directory, newest first. Other files are left alone.
func List(dir string) ([]File, error) { return State.List(dir) }

// List returns the files of the kind in a directory, newest first. Others are left alone.
func (k Kind) List(dir string) ([]File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("looking for backups: %w", err)
	}
	var out []File
	for _, e := range entries {
		if _, ok := k.Named(e.Name(), 0); !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // taken away this moment
		}
		if err != nil {
			return nil, fmt.Errorf("looking for backups: %w", err)
		}
		f, _ := k.Named(e.Name(), info.Size())
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b File) int { return b.At.Compare(a.At) })
	return out, nil
}

// Of keeps the backups of one cluster.
func Of(cluster string, all []File) []File {
	return slices.DeleteFunc(all, func(f File) bool { return f.Cluster != cluster })
}

// Choose takes the newest of a place's backups, or the one of that name.
func Choose(all []File, name, from string) (File, error) {
	if i := slices.IndexFunc(all, func(f File) bool { return f.Name == name }); i >= 0 {
		return all[i], nil
	}
	switch {
	case name != "":
		return File{}, fmt.Errorf("looking for a backup: there is no %s in %s", name, from)
	case len(all) == 0:
		return File{}, fmt.Errorf("looking for a backup: there is none in %s; their names are like %s", from, Name("CLUSTER", time.Time{}))
	}
	for _, f := range all {
		if f.Cluster != all[0].Cluster {
			return File{}, fmt.Errorf("looking for a backup: %s holds backups of the clusters %s and %s; name one file", from, all[0].Cluster, f.Cluster)
		}
	}
	return all[0], nil
}

// partial begins the name of a file that is being written.
const partial = ".partial-"

// Save writes a file into a directory so that it has its name only when all of it is
// on the disk and check has accepted it. It returns its size. What an earlier attempt
// left behind goes away; so two programs must not save the same cluster's backups into
// one directory at a time.
func Save(dir, name string, write func(io.Writer) error, check func(io.Reader) error) (size int64, err error) {
	if err := clean(dir, name); err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(dir, partial+name+"-*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("saving a backup: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, fmt.Errorf("saving a backup: %w", err)
	}
	if size, err = f.Seek(0, io.SeekCurrent); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return 0, fmt.Errorf("saving a backup: %w", err)
	}
	if err := check(f); err != nil {
		return 0, fmt.Errorf("reading the backup that was just written: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return 0, fmt.Errorf("saving a backup: %w", err)
	}
	return size, Sync(dir)
}

// clean removes what a killed attempt for the same cluster left.
func clean(dir, name string) error {
	cluster, _, kind, ok := parse(name)
	if !ok {
		return fmt.Errorf("saving a backup: %q is no name of one", name)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("saving a backup: %w; make the directory, and let imagectl serve write there", err)
	}
	for _, e := range entries {
		rest, found := strings.CutPrefix(e.Name(), partial)
		if !found {
			continue
		}
		i := strings.LastIndexByte(rest, '-')
		if i < 0 {
			continue
		}
		if c, _, k, ok := parse(rest[:i]); !ok || c != cluster || k != kind {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing an unfinished backup: %w", err)
		}
	}
	return nil
}

// Prune removes all but the newest keep backups of a cluster and returns the names of
// the others. The one that was just saved counts as the newest, whatever its name says:
// a clock that was once ahead must not cost what comes after.
func Prune(dir string, saved File, keep int) ([]string, error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, f := range Surplus(all, saved, keep) {
		if err := os.Remove(filepath.Join(dir, f.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("removing an old backup: %w", err)
		}
		gone = append(gone, f.Name)
	}
	return gone, nil
}

// Surplus are those of a cluster that are not among the newest keep.
func Surplus(all []File, saved File, keep int) []File {
	all = slices.DeleteFunc(Of(saved.Cluster, all), func(f File) bool { return f.Name == saved.Name })
	return all[min(max(keep-1, 0), len(all)):]
}

// Sync waits until what was done in a directory is on the disk.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
