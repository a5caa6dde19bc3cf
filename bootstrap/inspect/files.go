package inspect

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens a regular file by its path, in which no part may be a symbolic link: with one,
// a name that may be read would lead to a file that may not. For the same reason a file with a
// second name is refused. What is no such file is an error that says so; a missing one is
// fs.ErrNotExist.
//
// os.Root keeps symbolic links inside a directory, and the one here would be "/"; the kernel's
// own rule is stricter.
func (s *System) Open(name string) (io.ReadCloser, error) {
	if !filepath.IsAbs(name) || filepath.Clean(name) != name {
		return nil, fmt.Errorf("%q is no clean absolute path", name)
	}
	root, err := unix.Open(s.path("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(name, "/"), &unix.OpenHow{
		// Not blocking: a FIFO would wait for a writer.
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_BENEATH,
	})
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link, or lies behind one", name)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("reading %s: %w", name, err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.Join(fmt.Errorf("%s is no regular file", name), f.Close())
	}
	if st.Nlink > 1 {
		return nil, errors.Join(fmt.Errorf("%s has %d names, and may be a file that must not be read", name, st.Nlink), f.Close())
	}
	return f, nil
}

// Match are the paths that fit a pattern of path/filepath, sorted.
func (s *System) Match(pattern string) []string {
	found, err := filepath.Glob(s.path(pattern))
	if err != nil {
		return nil
	}
	for i, p := range found {
		found[i] = strings.TrimPrefix(p, s.Root)
	}
	return found
}
