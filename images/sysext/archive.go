package sysext

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"
)

// maxMember bounds what one file of an archive may unpack to, in bytes.
const maxMember = 1 << 30

// Member is one regular file of an archive.
type Member struct {
	Name    string
	Size    int64
	ModTime time.Time
	// Executable is set when its owner may execute it.
	Executable bool
}

// Members calls take for every regular file of a tar.gz, with the base of its
// path as name; the reader is valid during the call.
func Members(archive io.Reader, take func(m Member, content io.Reader) error) error {
	z, err := gzip.NewReader(archive)
	if err != nil {
		return fmt.Errorf("unpacking: %w", err)
	}
	defer z.Close()
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpacking: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxMember {
			return fmt.Errorf("unpacking: %s has %d bytes, more than %d", h.Name, h.Size, int64(maxMember))
		}
		m := Member{Name: path.Base(h.Name), Size: h.Size, ModTime: h.ModTime, Executable: h.Mode&0o100 != 0}
		if err := take(m, t); err != nil {
			return fmt.Errorf("unpacking %s: %w", h.Name, err)
		}
	}
}

// EtcdPrograms are the members of etcd's archive that a node gets.
func EtcdPrograms() []string { return []string{"etcd", "etcdctl", "etcdutl"} }

// Missing returns which of the wanted names are not among the files.
func Missing(want []string, files []File) []string {
	var missing []string
	for _, w := range want {
		if !slices.ContainsFunc(files, func(f File) bool { return f.Name == w }) {
			missing = append(missing, w)
		}
	}
	return missing
}
