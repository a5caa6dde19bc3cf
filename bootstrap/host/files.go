package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ReadFile returns the content of a file. A caller may test the error for
// fs.ErrNotExist.
func (h *Host) ReadFile(name string) ([]byte, error) {
	return os.ReadFile(h.Path(name))
}

// Open opens a file for reading; the caller closes it.
func (h *Host) Open(name string) (*os.File, error) {
	return os.Open(h.Path(name))
}

// Exists says whether something lies at name. Only "there is nothing" is false:
// an unreadable directory is an error.
func (h *Host) Exists(name string) (bool, error) {
	switch _, err := os.Stat(h.Path(name)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

// WriteFile makes name hold content, or leaves what was there: temporary file
// in the same directory with the final mode from its creation on, fsync,
// rename, fsync of the directory. Missing parent directories are made with 0755.
func (h *Host) WriteFile(name string, content []byte, mode fs.FileMode) error {
	if err := writeFile(h.Path(name), content, mode); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

func writeFile(name string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// One fixed temporary name a file: what a crash leaves is overwritten by the
	// next attempt instead of piling up.
	tmp := filepath.Join(dir, "."+filepath.Base(name)+".tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
		}
	}()
	// As asked, whatever the umask; what is secret was so from the start.
	if err = f.Chmod(mode); err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// MkdirAll makes a directory with its parents. A directory that exists gets
// mode: etcd refuses a data directory that others can read.
func (h *Host) MkdirAll(name string, mode fs.FileMode) error {
	p := h.Path(name)
	if err := os.MkdirAll(p, mode); err != nil {
		return err
	}
	return os.Chmod(p, mode)
}

// Mode returns a file's permission bits.
func (h *Host) Mode(name string) (fs.FileMode, error) {
	st, err := os.Stat(h.Path(name))
	if err != nil {
		return 0, err
	}
	return st.Mode().Perm(), nil
}

// Rename gives a file or directory another name in the same file system, for good when it returns.
func (h *Host) Rename(from, to string) error {
	if err := os.Rename(h.Path(from), h.Path(to)); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(h.Path(to))), syncDir(filepath.Dir(h.Path(from))))
}

// Remove deletes a file or a whole directory; that it is gone already is no
// error.
func (h *Host) Remove(name string) error {
	return os.RemoveAll(h.Path(name))
}

// Glob returns the paths, as the node sees them, that match a pattern of
// path/filepath, sorted.
func (h *Host) Glob(pattern string) ([]string, error) {
	found, err := filepath.Glob(h.Path(pattern))
	if err != nil {
		return nil, err
	}
	for i, p := range found {
		found[i] = filepath.Join("/", strings.TrimPrefix(p, h.Root))
	}
	return found, nil
}
