package sysext

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Kind is what a Member of an archive is.
type Kind int

// The kinds of members.
const (
	Regular Kind = iota
	Directory
	Symlink
	// HardLink is another name of a regular file that came before it.
	HardLink
)

// Member is one member of an archive.
type Member struct {
	// Path is relative and clean, without ./ in front.
	Path string
	Kind Kind
	// Size in bytes of a Regular.
	Size int64
	// Mode holds permission bits, set-uid, set-gid and sticky.
	Mode    uint32
	ModTime time.Time
	// Link is the target of a Symlink as it is, and the Path of a HardLink's file.
	Link string
}

// maxMember bounds what one file of an archive may unpack to, in bytes.
const maxMember = 1 << 30

// Unpack calls take for every member of a tar archive that is plain or compressed
// with gzip, bzip2, xz or zstd; content is valid during the call. A member whose
// path leads out of the archive, and one that is a device or the like, is an error.
func Unpack(archive io.Reader, take func(m Member, content io.Reader) error) error {
	plain, err := decompress(bufio.NewReader(archive))
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer plain.Close()
	for t := tar.NewReader(plain); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
		m, ok, err := member(h)
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", h.Name, err)
		}
		if !ok {
			continue
		}
		if err := take(m, t); err != nil {
			return fmt.Errorf("unpacking %s: %w", h.Name, err)
		}
	}
}

// member is false for what is no file: pax headers, and the root itself.
func member(h *tar.Header) (Member, bool, error) {
	at, err := inside(h.Name)
	if err != nil {
		return Member{}, false, err
	}
	m := Member{Path: at, Size: h.Size, Mode: uint32(h.Mode) & 0o7777, ModTime: h.ModTime, Link: h.Linkname}
	switch h.Typeflag {
	case tar.TypeReg:
		if h.Size > maxMember {
			return Member{}, false, fmt.Errorf("it has %d bytes, more than %d", h.Size, int64(maxMember))
		}
	case tar.TypeDir:
		m.Kind = Directory
	case tar.TypeSymlink:
		m.Kind = Symlink
	case tar.TypeLink:
		m.Kind = HardLink
		if m.Link, err = inside(h.Linkname); err != nil {
			return Member{}, false, err
		}
	case tar.TypeXGlobalHeader:
		return Member{}, false, nil
	default:
		return Member{}, false, fmt.Errorf("it is a member of type %q; only files, directories and links can be taken", h.Typeflag)
	}
	return m, at != ".", nil
}

func inside(name string) (string, error) {
	at := path.Clean(name)
	if path.IsAbs(at) || at == ".." || strings.HasPrefix(at, "../") {
		return "", fmt.Errorf("%q leads out of the archive", name)
	}
	return at, nil
}

// decompress tells the compression from the first bytes.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzip.NewReader(r)
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(r)), nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		x, err := xz.NewReader(r)
		return io.NopCloser(x), err
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
