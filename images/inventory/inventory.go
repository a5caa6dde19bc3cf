// Package inventory says which programs lie inside a build's input, from what
// the Go tool writes into every program (debug/buildinfo): a program itself, the
// members of a tar archive, the files of an extension, the layers of a container
// image archive. It tells them by their content, not by their names. Of file systems
// it reads squashfs and EROFS without compression, and says of others that it does not.
//
// It does not look for programs in other languages: nothing in an ELF file says
// where they come from.
package inventory

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
	"github.com/erofs/go-erofs"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Program is one Go program.
type Program struct {
	// Path inside the input; empty when the input is the program itself.
	Path string `json:"path,omitempty"`
	// Package is the import path of its main package.
	Package string `json:"package"`
	// Main is the module that it was built from; its Version is empty or (devel)
	// when it was built from a working tree.
	Main Module `json:"main"`
	// Go is the toolchain, such as go1.26.0.
	Go string `json:"go"`
	// Modules are linked in, sorted by path, replacements in place of the replaced.
	Modules []Module `json:"modules"`
}

// Module is a Go module. Version has its leading v.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

// maxDepth bounds archives inside archives: an image archive holds layers.
const maxDepth = 3

// maxEntry bounds one file of an archive, in bytes; a larger one is an error, as
// an inventory that left it out would be wrong.
const maxEntry = 1 << 30

// List is what an input holds.
type List struct {
	// Programs are sorted by path.
	Programs []Program `json:"programs"`
	// Unread says why it could not be looked into, so that Programs is empty; else it
	// is empty.
	Unread string `json:"unread,omitempty"`
}

// Read lists the programs in a file. scratch is a directory for a temporary file.
func Read(ctx context.Context, name, scratch string) (List, error) {
	f, err := os.Open(name)
	if err != nil {
		return List{}, err
	}
	defer f.Close()
	s := scanner{ctx: ctx, scratch: scratch}
	if err := s.file(f); err != nil {
		return List{}, fmt.Errorf("listing the programs in %s: %w", name, err)
	}
	slices.SortFunc(s.found, func(a, b Program) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Package, b.Package)) })
	return List{Programs: s.found, Unread: s.unread}, nil
}

type scanner struct {
	ctx     context.Context
	scratch string
	found   []Program
	unread  string
}

// file looks at a whole file.
func (s *scanner) file(f *os.File) error {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch kind(head[:n]) {
	case elf:
		return s.program("", f)
	case squash:
		return s.squashfs(f)
	case other:
		return s.fileSystem(f)
	}
	return s.stream("", bufio.NewReader(f), 0)
}

type content int

const (
	other content = iota
	elf
	squash
	gz
	bz2
	xzip
	zst
	tarball
)

// kind tells content from its first 512 bytes.
func kind(head []byte) content {
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return elf
	case bytes.HasPrefix(head, []byte("hsqs")):
		return squash
	case bytes.HasPrefix(head, []byte("\x1f\x8b\x08")):
		return gz
	case bytes.HasPrefix(head, []byte("BZh")):
		return bz2
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return xzip
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return zst
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return tarball
	}
	return other
}

// stream looks at a file that can only be read once. at is its path.
func (s *scanner) stream(at string, r *bufio.Reader, depth int) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	head, err := r.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	k := kind(head)
	if depth > maxDepth && k != elf {
		return nil
	}
	switch k {
	case elf:
		return s.spool(at, r)
	case gz:
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		defer z.Close()
		return s.inner(at, z, depth)
	case bz2:
		return s.inner(at, bzip2.NewReader(r), depth)
	case xzip:
		z, err := xz.NewReader(r)
		if err != nil {
			return s.notCompressed(err, depth)
		}
		return s.inner(at, z, depth)
	case zst:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return err
		}
		defer z.Close()
		return s.inner(at, z, depth)
	case tarball:
		return s.tar(at, r, depth)
	}
	return nil
}

// inner looks into something compressed: at a tar archive, and at nothing else.
func (s *scanner) inner(at string, z io.Reader, depth int) error {
	r := bufio.NewReader(z)
	head, err := r.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return s.notCompressed(err, depth)
	}
	if kind(head) != tarball {
		return nil
	}
	return s.tar(at, r, depth)
}

// notCompressed forgives a member what a whole input is not forgiven: any file may
// begin as if it were compressed.
func (s *scanner) notCompressed(err error, depth int) error {
	if depth > 0 {
		return nil
	}
	return err
}

func (s *scanner) tar(at string, r io.Reader, depth int) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading archive %s: %w", at, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Join(at, path.Clean("/" + h.Name)[1:])
		if err := s.stream(name, bufio.NewReader(t), depth+1); err != nil {
			return err
		}
	}
}

// spool makes a program readable at any offset.
func (s *scanner) spool(at string, r io.Reader) error {
	f, err := os.CreateTemp(s.scratch, "program-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(f, io.LimitReader(r, maxEntry+1))
	if err != nil {
		return fmt.Errorf("reading %s: %w", at, err)
	}
	if n > maxEntry {
		return fmt.Errorf("reading %s: it has more than %d bytes", at, int64(maxEntry))
	}
	return s.program(at, f)
}

func (s *scanner) squashfs(f *os.File) (err error) {
	defer damaged("squashfs", &err)
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sq, err := squashfs.Read(file.New(f, true), st.Size(), 0, 0)
	if err != nil {
		return fmt.Errorf("reading squashfs: %w", err)
	}
	return s.walk("squashfs", sq)
}

// fileSystem looks at those whose magic number does not come first.
func (s *scanner) fileSystem(f *os.File) error {
	for _, m := range []struct {
		kind  string
		at    int64
		magic string
	}{
		{"EROFS", 1024, "\xe2\xe1\xf5\xe0"},
		{"ext4", 1080, "\x53\xef\x01\x00"}, // and s_state: clean
		{"btrfs", 65600, "_BHRfS_M"},
		{"GPT", 512, "EFI PART"},
	} {
		b := make([]byte, len(m.magic))
		if _, err := f.ReadAt(b, m.at); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		switch {
		case string(b) != m.magic:
		case m.kind == "EROFS":
			return s.erofs(f)
		default:
			s.unread = "imagectl does not read " + m.kind + " images"
			return nil
		}
	}
	return nil
}

func (s *scanner) erofs(f *os.File) (err error) {
	defer damaged("EROFS", &err)
	content, err := erofs.Open(f)
	if errors.Is(err, erofs.ErrNotImplemented) {
		s.unread = "imagectl does not read EROFS images that are compressed"
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading EROFS: %w", err)
	}
	return s.walk("EROFS", content)
}

// damaged makes an error of a panic: what reads a file system indexes with what it
// finds there (go-diskfs 1.9.4).
func damaged(kind string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("reading %s: it is damaged: %v", kind, p)
	}
}

func (s *scanner) walk(kind string, content fs.FS) error {
	return fs.WalkDir(content, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("reading %s: %w", kind, err)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		in, err := content.Open(name)
		if err != nil {
			return fmt.Errorf("reading %s: %w", kind, err)
		}
		defer in.Close()
		return s.stream(strings.TrimPrefix(name, "/"), bufio.NewReader(in), 1)
	})
}

// program takes what an ELF file says of itself. Those that no Go tool wrote say
// nothing.
func (s *scanner) program(at string, r io.ReaderAt) error {
	info, err := buildinfo.Read(r)
	if err != nil {
		return nil
	}
	s.found = append(s.found, fromInfo(at, info))
	return nil
}

func fromInfo(at string, info *debug.BuildInfo) Program {
	p := Program{Path: at, Package: info.Path, Main: Module{Path: info.Main.Path, Version: info.Main.Version}, Go: info.GoVersion}
	for _, d := range info.Deps {
		// Replaced by a directory, a module keeps the name that it is known by.
		if d.Replace != nil && d.Replace.Version != "" && d.Replace.Version != "(devel)" {
			d = d.Replace
		}
		p.Modules = append(p.Modules, Module{Path: d.Path, Version: d.Version})
	}
	slices.SortFunc(p.Modules, func(a, b Module) int { return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version)) })
	return p
}
