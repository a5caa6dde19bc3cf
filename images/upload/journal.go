package upload

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Key names a journal: one upload of one image to one target.
type Key struct {
	// Target has no dot in it.
	Target string
	// Place says in words what Target stands for, for whoever finds the journal when the
	// target is described in another way. It may be empty.
	Place string
	Image Image
}

const journalSuffix = ".journal"

func (k Key) file() string {
	return strings.Join([]string{k.Target, k.Image.Name, k.Image.Digest[:min(16, len(k.Image.Digest))], strings.ReplaceAll(string(k.Image.Format), ".", "-")}, ".") + journalSuffix
}

// ErrRunning: another process on this machine is at the same upload.
var ErrRunning = errors.New("the same upload runs already")

// FileJournal is a Journal in a file: a line of JSON for each change, on the disk
// before anything is made that it speaks of. One process has it open at a time.
type FileJournal struct {
	f file
	// size is the length of the lines that are known to be whole; torn says that there
	// may be more in the file.
	size  int64
	torn  bool
	left  []Leftover
	place string
}

// file is an open journal; only a test has another one than the system's.
type file interface {
	io.ReadWriteCloser
	Fd() uintptr
	Name() string
	Sync() error
	Truncate(size int64) error
}

// line is one change.
type line struct {
	// Place is in the first line alone.
	Place  string    `json:"place,omitempty"`
	Write  *Leftover `json:"write,omitempty"`
	Forget *Leftover `json:"forget,omitempty"`
}

// OpenJournal opens or makes the journal of an upload in a directory, which it
// makes too. ErrRunning when another process has it.
func OpenJournal(dir string, key Key) (*FileJournal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of upload journals: %w", err)
	}
	j, err := openJournal(filepath.Join(dir, key.file()), os.O_CREATE)
	if err == nil && j.size == 0 {
		j.place = key.Place
	}
	return j, err
}

func openJournal(path string, flag int) (*FileJournal, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|flag, 0o600)
		if err != nil {
			return nil, fmt.Errorf("opening upload journal: %w", err)
		}
		gone, err := lockFile(f)
		if err != nil {
			f.Close()
			return nil, err
		}
		if gone {
			// Its last holder removed it between our opening and our locking.
			f.Close()
			continue
		}
		j := &FileJournal{f: f}
		if err := j.read(); err != nil {
			f.Close()
			return nil, fmt.Errorf("reading upload journal %s: %w", path, err)
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			f.Close()
			return nil, fmt.Errorf("opening upload journal: %w", err)
		}
		return j, nil
	}
}

func lockFile(f *os.File) (gone bool, err error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, fmt.Errorf("locking upload journal %s: %w; wait for it to end", f.Name(), ErrRunning)
		}
		return false, fmt.Errorf("locking upload journal %s: %w", f.Name(), err)
	}
	held, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("locking upload journal: %w", err)
	}
	there, err := os.Stat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking upload journal: %w", err)
	}
	return !os.SameFile(held, there), nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// read takes the lines. A last one without an end was being written when the
// machine stopped: what it speaks of was not made, so it is cut off.
func (j *FileJournal) read() error {
	b, err := io.ReadAll(j.f)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(b, '\n') + 1
	j.size, j.torn = int64(whole), whole < len(b)
	if err := j.cut(); err != nil {
		return err
	}
	s := bufio.NewScanner(bytes.NewReader(b[:whole]))
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		j.apply(l)
	}
	return s.Err()
}

// cut removes what a write that broke off has left: a line behind it would be none.
func (j *FileJournal) cut() error {
	if !j.torn {
		return nil
	}
	err := j.f.Truncate(j.size)
	j.torn = err != nil
	return err
}

func (j *FileJournal) apply(l line) {
	same := func(a *Leftover) func(Leftover) bool {
		return func(b Leftover) bool { return a.Kind == b.Kind && a.Name == b.Name }
	}
	if l.Place != "" {
		j.place = l.Place
	}
	switch {
	case l.Forget != nil:
		j.left = slices.DeleteFunc(j.left, same(l.Forget))
	case l.Write != nil:
		if i := slices.IndexFunc(j.left, same(l.Write)); i >= 0 {
			j.left[i] = *l.Write
		} else {
			j.left = append(j.left, *l.Write)
		}
	}
}

func (j *FileJournal) add(l line) error {
	if j.size == 0 {
		l.Place = j.place
	}
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("writing upload journal: %w", err)
	}
	if err := j.cut(); err != nil {
		return fmt.Errorf("writing upload journal: %w", err)
	}
	n, err := j.f.Write(append(b, '\n'))
	if err == nil {
		err = j.f.Sync()
	}
	if err != nil {
		j.torn = true
		return fmt.Errorf("writing upload journal: %w", err)
	}
	j.size += int64(n)
	j.apply(l)
	return nil
}

// Left implements Journal.
func (j *FileJournal) Left() []Leftover { return slices.Clone(j.left) }

// Write implements Journal.
func (j *FileJournal) Write(l Leftover) error { return j.add(line{Write: &l}) }

// Forget implements Journal.
func (j *FileJournal) Forget(l Leftover) error { return j.add(line{Forget: &l}) }

// Close lets others open the journal, and removes it when nothing is left.
func (j *FileJournal) Close() error {
	var err error
	if len(j.left) == 0 {
		err = os.Remove(j.f.Name())
	}
	// A process that is being started has the file too, until it runs its program: that
	// would hold the lock.
	if uerr := unix.Flock(int(j.f.Fd()), unix.LOCK_UN); uerr != nil {
		err = errors.Join(err, fmt.Errorf("unlocking upload journal %s: %w", j.f.Name(), uerr))
	}
	return errors.Join(err, j.f.Close())
}

// Other is a journal of a target of the same name that was described in another way.
type Other struct {
	// Path of the file, and what was there when it was written; empty if it does not say.
	Path, Place string
	Left        []Leftover
}

// keyForm is the end of a target's key, behind its name.
var keyForm = regexp.MustCompile(`^-[0-9a-f]{8}$`)

// Others finds what uploads have left whose target has the same name, as cluster.yaml
// calls it, and another key: cluster.yaml was edited, or there are two. Those of uploads
// that run are not told.
func Others(dir, name, target string) ([]Other, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for upload journals: %w", err)
	}
	var out []Other
	for _, e := range all {
		key, _, _ := strings.Cut(e.Name(), ".")
		end, is := strings.CutPrefix(key, name)
		if !is || !keyForm.MatchString(end) || key == target || !strings.HasSuffix(e.Name(), journalSuffix) {
			continue
		}
		o := Other{Path: filepath.Join(dir, e.Name())}
		j, err := openJournal(o.Path, 0)
		if errors.Is(err, ErrRunning) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if o.Place, o.Left = j.place, j.Left(); len(o.Left) > 0 {
			out = append(out, o)
		}
		if err := j.Close(); err != nil {
			return nil, fmt.Errorf("closing upload journal %s: %w", o.Path, err)
		}
	}
	return out, nil
}

// Journals returns the paths of a target's journals, sorted.
func Journals(dir, target string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for upload journals: %w", err)
	}
	var out []string
	for _, e := range all {
		if strings.HasPrefix(e.Name(), target+".") && strings.HasSuffix(e.Name(), journalSuffix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}
