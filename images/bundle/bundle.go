// Package bundle carries a site across an air gap: one tar file with what people
// keep in git (cluster.yaml, its lock, what they name), every locked input, and
// the program that reads it.
//
//	SHA256SUMS               digest and name of every other member, as sha256sum -c takes it
//	bundle.json              the format's version, where the cluster file is
//	site/…                   files of the site, as they lay beside each other
//	bin/imagectl             optional
//	blobs/sha256/DIGEST      the locked inputs
//
// The members come in this order, each kind sorted. A bundle is a function of its
// content: POSIX ustar headers with one fixed time, owner 0, modes 0644 and 0755.
// Because of that a reader knows every byte beforehand that is not content, and
// refuses whatever Write would not have written: links, another order, members
// too many or too few, bytes after the end. Nothing in a bundle is signed. Who has
// to know that a bundle is the one that was sent compares Sums.
package bundle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imagectl/imagectl/images/lock"
)

// ErrDamaged says that a file is not a bundle, or no longer the one that was made.
var ErrDamaged = errors.New("the bundle is not as imagectl bundle made it")

// Names of members.
const (
	sumsName    = "SHA256SUMS"
	aboutName   = "bundle.json"
	siteDir     = "site/"
	programName = "bin/imagectl"
	blobDir     = "blobs/sha256/"
)

// MaxFile bounds one file of the site, and maxSite all of them: they are held in
// memory. An Ignition config far below this size no longer boots.
const (
	MaxFile = 16 << 20
	maxSite = 64 << 20
)

// File is a file of the site.
type File struct {
	// Name is its path in the site: relative, with slashes, without dots.
	Name string
	// Executable files have mode 0755, others 0644.
	Executable bool
	Content    []byte
}

// Site is what people keep in git.
type Site struct {
	// Cluster names the cluster file in Files. Its lock file is beside it.
	Cluster string
	Files   []File
}

// about is bundle.json.
type about struct {
	// Version of the format: 1.
	Version int `json:"version"`
	// Cluster is the cluster file, below site/.
	Cluster string `json:"cluster"`
	// Executable lists the files below site/ that are, sorted.
	Executable []string `json:"executable,omitempty"`
}

// LockName names the lock file in Files.
func (s Site) LockName() string { return path.Join(path.Dir(s.Cluster), lock.FileName) }

// find returns a file by its name.
func (s Site) find(name string) (File, bool) {
	i := slices.IndexFunc(s.Files, func(f File) bool { return f.Name == name })
	if i < 0 {
		return File{}, false
	}
	return s.Files[i], true
}

// lock reads the site's lock file.
func (s Site) lock() (lock.Lock, error) {
	if _, ok := s.find(s.Cluster); !ok {
		return lock.Lock{}, fmt.Errorf("the cluster file %s is not in it", s.Cluster)
	}
	f, ok := s.find(s.LockName())
	if !ok {
		return lock.Lock{}, fmt.Errorf("the lock file %s is not in it", s.LockName())
	}
	l, err := lock.Parse(f.Content)
	if err != nil {
		return lock.Lock{}, fmt.Errorf("reading %s: %w", f.Name, err)
	}
	return l, nil
}

// blob is a locked content.
type blob struct {
	digest string
	size   int64
	// id is the first input that is this content, for people.
	id lock.ID
}

// blobs are the inputs of a lock, each content once, sorted by digest.
func blobs(l lock.Lock) ([]blob, error) {
	var out []blob
	for _, b := range l.Inputs {
		out = append(out, blob{b.SHA256, b.Size, b.ID})
	}
	slices.SortStableFunc(out, func(a, b blob) int {
		return cmp.Or(cmp.Compare(a.digest, b.digest), cmp.Compare(a.size, b.size))
	})
	out = slices.CompactFunc(out, func(a, b blob) bool { return a.digest == b.digest && a.size == b.size })
	for i := 1; i < len(out); i++ {
		if out[i].digest == out[i-1].digest {
			return nil, fmt.Errorf("the lock gives %s both %d and %d bytes", out[i].digest, out[i-1].size, out[i].size)
		}
	}
	return out, nil
}

// sum is a line of SHA256SUMS.
type sum struct{ digest, name string }

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func encodeSums(sums []sum) []byte {
	var out bytes.Buffer
	for _, s := range sums {
		fmt.Fprintf(&out, "%s  %s\n", s.digest, s.name)
	}
	return out.Bytes()
}

// about is the bundle.json of a site whose files are sorted.
func (s Site) about() ([]byte, error) {
	a := about{Version: 1, Cluster: s.Cluster}
	for _, f := range s.Files {
		if f.Executable {
			a.Executable = append(a.Executable, f.Name)
		}
	}
	b, err := json.MarshalIndent(a, "", "  ")
	return append(b, '\n'), err
}

// checkName refuses names that do not mean the same file everywhere, or that
// sha256sum would have to escape.
func checkName(name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("name %q is not a relative path without dots", name)
	}
	for _, r := range name {
		if r < ' ' || r > '~' || r == '\\' {
			return fmt.Errorf("name %q has the character %q; a bundle takes plain ASCII names", name, r)
		}
	}
	return nil
}

// checkTree refuses a name that is given twice, or to a file and a directory.
func checkTree(names []string) error {
	files := map[string]bool{}
	for _, n := range names {
		if files[n] {
			return fmt.Errorf("%s is in it twice", n)
		}
		files[n] = true
	}
	for _, n := range names {
		for dir := path.Dir(n); dir != "."; dir = path.Dir(dir) {
			if files[dir] {
				return fmt.Errorf("%s is both a file and the directory of %s", dir, n)
			}
		}
	}
	return nil
}

// blockSize is tar's: headers and contents begin at multiples of it, and two
// blocks of zeros end an archive.
const blockSize = 512

// header is the one header block that a member of this name has. The time is the
// oldest that no unpacker finds suspicious.
func header(name string, size int64, executable bool) ([]byte, error) {
	mode := int64(0o644)
	if executable {
		mode = 0o755
	}
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: mode,
		ModTime: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), Format: tar.FormatUSTAR,
	})
	if err != nil {
		return nil, fmt.Errorf("%s of %d bytes does not fit into a ustar header, which takes names of some 200 bytes and sizes below 8 GiB: %w", name, size, err)
	}
	return b.Bytes(), nil
}

// padding is what fills up the last block of a content.
func padding(size int64) int64 { return -size & (blockSize - 1) }

// isBlob says whether name is a blob's, and that of which one.
func isBlob(name string) (digest string, ok bool) { return strings.CutPrefix(name, blobDir) }
