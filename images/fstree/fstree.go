// Package fstree describes a file tree as data, so that several file system
// writers (squashfs, btrfs, ext4, cpio) can turn the same tree into bytes.
//
// A Tree holds directories, regular files and symbolic links with the metadata
// that an image needs: permission bits, owner and modification time. It reads
// no clock, no environment and no host file unless asked through [FromFile],
// and it lists its entries in one order only (byte order of the path), so that
// equal trees give equal images. It deliberately knows no hard links, devices,
// sockets or extended attributes: nothing we build needs them.
package fstree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"
	"time"
)

// Type tells what an Entry is. The zero value is a directory.
type Type uint8

// The kinds of entry a Tree can hold.
const (
	Dir Type = iota
	File
	Symlink
)

// Content is the bytes of a regular file. Open may be called more than once and
// from several goroutines; each reader returns exactly Size bytes and the same
// bytes each time. The caller closes the reader.
type Content interface {
	// Size is the length in bytes.
	Size() int64
	Open() (io.ReadCloser, error)
}

// Entry is one object of a Tree.
type Entry struct {
	// Path is relative to the root, slash separated and clean ("usr/bin/kubelet").
	// "." is the root directory itself.
	Path string
	Type Type
	// Mode holds the permission bits, set-uid, set-gid and sticky (07777, as in
	// chmod(2)), without file type bits.
	Mode uint32
	UID  uint32
	GID  uint32
	// ModTime has a resolution of one second in every writer. The zero value
	// means the time given to the writer.
	ModTime time.Time
	// Link is the target of a Symlink, not resolved, at most 4095 bytes.
	Link string
	// Content is set for a File only.
	Content Content
}

// ErrExists is returned (wrapped) when a path is added twice.
var ErrExists = errors.New("path is in the tree already")

// Tree is a set of entries. The zero value is an empty tree whose root
// directory is 0755 root:root. It is not safe for concurrent writing.
type Tree struct {
	byPath map[string]Entry
	// implied marks directories that were made only as somebody's parent, so
	// that a later explicit Add may still set their mode and owner.
	implied map[string]bool
}

// Add puts one entry into the tree and creates missing parents as 0755
// root:root directories. It fails on an unclean or absolute path, on a parent
// that is no directory, and with ErrExists on a second entry of the same path.
func (t *Tree) Add(e Entry) error {
	if e.Path == "" || path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.HasPrefix(e.Path, "../") || e.Path == ".." {
		return fmt.Errorf("adding %q to the file tree: the path must be relative and clean, such as usr/bin/kubelet", e.Path)
	}
	if strings.ContainsRune(e.Path, 0) {
		return fmt.Errorf("adding %q to the file tree: the path contains a NUL byte", e.Path)
	}
	if name := path.Base(e.Path); len(name) > 255 {
		return fmt.Errorf("adding %q to the file tree: the name is %d bytes long, Linux allows 255", e.Path, len(name))
	}
	if e.Mode&^0o7777 != 0 {
		return fmt.Errorf("adding %q to the file tree: mode %o has bits outside 07777", e.Path, e.Mode)
	}
	switch e.Type {
	case Dir:
		if e.Content != nil || e.Link != "" {
			return fmt.Errorf("adding directory %q to the file tree: it has content or a link target", e.Path)
		}
	case File:
		if e.Content == nil || e.Link != "" {
			return fmt.Errorf("adding file %q to the file tree: it needs content and no link target", e.Path)
		}
	case Symlink:
		if e.Content != nil || e.Link == "" || len(e.Link) > 4095 {
			return fmt.Errorf("adding symbolic link %q to the file tree: it needs a target of 1 to 4095 bytes and no content", e.Path)
		}
	default:
		return fmt.Errorf("adding %q to the file tree: unknown type %d", e.Path, e.Type)
	}
	if e.Path == "." && e.Type != Dir {
		return errors.New("adding the root to the file tree: it must be a directory")
	}
	t.makeMaps()
	if _, ok := t.byPath[e.Path]; ok {
		if !(t.implied[e.Path] && e.Type == Dir) {
			return fmt.Errorf("adding %q to the file tree: %w", e.Path, ErrExists)
		}
		delete(t.implied, e.Path)
	}
	if err := t.addParents(e.Path); err != nil {
		return err
	}
	t.byPath[e.Path] = e
	return nil
}

func (t *Tree) makeMaps() {
	if t.byPath == nil {
		t.byPath = map[string]Entry{".": {Path: ".", Type: Dir, Mode: 0o755}}
		t.implied = map[string]bool{".": true}
	}
}

func (t *Tree) addParents(p string) error {
	for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
		if name := path.Base(dir); len(name) > 255 {
			return fmt.Errorf("adding %q to the file tree: the directory name %q is %d bytes long, Linux allows 255", p, name, len(name))
		}
		parent, ok := t.byPath[dir]
		if ok && parent.Type != Dir {
			return fmt.Errorf("adding %q to the file tree: its parent %q is no directory", p, dir)
		}
		if ok {
			return nil
		}
		t.byPath[dir] = Entry{Path: dir, Type: Dir, Mode: 0o755}
		t.implied[dir] = true
	}
	return nil
}

// AddFile adds a regular file owned by root.
func (t *Tree) AddFile(p string, mode uint32, c Content) error {
	return t.Add(Entry{Path: p, Type: File, Mode: mode, Content: c})
}

// AddSymlink adds a symbolic link owned by root with mode 0777.
func (t *Tree) AddSymlink(p, target string) error {
	return t.Add(Entry{Path: p, Type: Symlink, Mode: 0o777, Link: target})
}

// AddDir adds a directory owned by root.
func (t *Tree) AddDir(p string, mode uint32) error {
	return t.Add(Entry{Path: p, Type: Dir, Mode: mode})
}

// Entries lists the tree, the root (".") first, every directory before what is
// in it, siblings in byte order of their names.
func (t *Tree) Entries() []Entry {
	t.makeMaps()
	out := make([]Entry, 0, len(t.byPath))
	for _, e := range t.byPath {
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool { return sortKey(out[i].Path) < sortKey(out[j].Path) })
	return out
}

// sortKey makes a directory's whole subtree follow it directly: "/" compares
// below every other byte a name may hold once it is mapped to NUL.
func sortKey(p string) string {
	if p == "." {
		return ""
	}
	return strings.ReplaceAll(p, "/", "\x00")
}

// Lookup returns the entry at a clean relative path.
func (t *Tree) Lookup(p string) (Entry, bool) {
	t.makeMaps()
	e, ok := t.byPath[p]
	return e, ok
}

// Bytes is content held in memory.
type Bytes []byte

// Size implements Content.
func (b Bytes) Size() int64 { return int64(len(b)) }

// Open implements Content.
func (b Bytes) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }

type hostFile struct {
	name string
	size int64
}

// FromFile is content read from a file of the host when it is needed. The file
// must not change while the tree is in use.
func FromFile(name string) (Content, error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("reading content for the file tree: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("reading content for the file tree: %s is no regular file", name)
	}
	return hostFile{name: name, size: st.Size()}, nil
}

func (f hostFile) Size() int64                  { return f.size }
func (f hostFile) Open() (io.ReadCloser, error) { return os.Open(f.name) }
