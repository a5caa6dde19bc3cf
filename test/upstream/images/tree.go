package main

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tree is the content of one layer by path (slash-separated, relative). Parent
// directories are implied.
type tree map[string]node

// node is a file copied from source, or a symbolic link to target.
type node struct {
	source string
	target string
	mode   fs.FileMode // permission bits of a file
}

func program(source string) node { return node{source: source, mode: 0o755} }

func symlink(target string) node { return node{target: target} }

// treeOf describes the files and links below root.
func treeOf(root string) (tree, error) {
	t := make(tree)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			t[filepath.ToSlash(name)] = symlink(target)
		case info.Mode().IsRegular():
			t[filepath.ToSlash(name)] = node{source: p, mode: info.Mode().Perm()}
		default:
			return fmt.Errorf("%s is neither a file nor a link", p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the tree %s: %w", root, err)
	}
	return t, nil
}

// write writes the tree as a tar: sorted, owned by root, dated 1970.
func (t tree) write(w io.Writer) error {
	archive := tar.NewWriter(w)
	directories := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		for i, c := range name {
			if c == '/' && !directories[name[:i]] {
				directories[name[:i]] = true
				if err := archive.WriteHeader(header(tar.TypeDir, name[:i]+"/", 0o755)); err != nil {
					return err
				}
			}
		}
		if err := t[name].write(archive, name); err != nil {
			return fmt.Errorf("adding %s: %w", name, err)
		}
	}
	return archive.Close()
}

func (n node) write(archive *tar.Writer, name string) error {
	if n.target != "" {
		h := header(tar.TypeSymlink, name, 0o777)
		h.Linkname = n.target
		return archive.WriteHeader(h)
	}
	return writeFile(archive, name, n.source, n.mode)
}

// writeFile adds the file at source under name.
func writeFile(archive *tar.Writer, name, source string, mode fs.FileMode) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := header(tar.TypeReg, name, mode)
	h.Size = info.Size()
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(archive, f)
	return err
}

func header(kind byte, name string, mode fs.FileMode) *tar.Header {
	return &tar.Header{Typeflag: kind, Name: name, Mode: int64(mode), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

// writeArchive writes every file below root into a tar at output, the way
// layers are written. The index comes first, so that a reader can stop early.
func writeArchive(output, root string) (err error) {
	t, err := treeOf(root)
	if err != nil {
		return err
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	defer func() {
		if closing := f.Close(); err == nil {
			err = closing
		}
	}()
	archive := tar.NewWriter(f)
	first := []string{"oci-layout", "index.json"}
	rest := slices.DeleteFunc(slices.Sorted(maps.Keys(t)), func(name string) bool { return slices.Contains(first, name) })
	for _, name := range append(first, rest...) {
		if err := writeFile(archive, path.Clean(name), t[name].source, 0o644); err != nil {
			return fmt.Errorf("adding %s: %w", strings.TrimPrefix(name, root), err)
		}
	}
	return archive.Close()
}
