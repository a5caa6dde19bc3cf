package bundle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/imagectl/imagectl/images/store"
)

// Progress is told how much of a large member was copied; what is its input's ID,
// or the program's name.
type Progress func(what string, done, total int64)

// Write writes a bundle of a site, with every input of its lock from the store
// and, when program is not empty, that file as bin/imagectl. It returns the
// digest of SHA256SUMS, which identifies the content. Equal arguments give equal
// bytes. progress may be nil.
func Write(ctx context.Context, w io.Writer, s *store.Store, site Site, program string, progress Progress) (sums string, err error) {
	members, err := list(ctx, s, site, program)
	if err != nil {
		return "", fmt.Errorf("making a bundle: %w", err)
	}
	var lines []sum
	for _, m := range members {
		lines = append(lines, sum{m.digest, m.name})
	}
	content := encodeSums(lines)
	first := member{name: sumsName, digest: digestOf(content), size: int64(len(content)), content: content}
	for _, m := range append([]member{first}, members...) {
		if err := m.write(ctx, w, progress); err != nil {
			return "", fmt.Errorf("making a bundle: adding %s: %w", m.name, err)
		}
	}
	if _, err := w.Write(make([]byte, 2*blockSize)); err != nil {
		return "", fmt.Errorf("making a bundle: %w", err)
	}
	return first.digest, nil
}

// member is one file of the archive, with its content or where that is.
type member struct {
	name, digest string
	size         int64
	executable   bool
	content      []byte
	path         string
	// what it is, for Progress.
	what string
}

// list checks a site and decides on all members but the first, in their order.
func list(ctx context.Context, s *store.Store, site Site, program string) ([]member, error) {
	l, err := site.lock()
	if err != nil {
		return nil, err
	}
	site.Files = slices.SortedFunc(slices.Values(site.Files), func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	var names []string
	total := 0
	for _, f := range site.Files {
		if err := checkName(f.Name); err != nil {
			return nil, err
		}
		names = append(names, f.Name)
		if total += len(f.Content); len(f.Content) > MaxFile || total > maxSite {
			return nil, fmt.Errorf("%s has %d bytes, with those before %d; a bundle takes %d each and %d together", f.Name, len(f.Content), total, MaxFile, maxSite)
		}
	}
	if err := checkTree(names); err != nil {
		return nil, err
	}
	content, err := site.about()
	if err != nil {
		return nil, err
	}
	out := []member{{name: aboutName, digest: digestOf(content), size: int64(len(content)), content: content}}
	for _, f := range site.Files {
		out = append(out, member{name: siteDir + f.Name, digest: digestOf(f.Content), size: int64(len(f.Content)), executable: f.Executable, content: f.Content})
	}
	if program != "" {
		digest, size, err := store.HashFile(ctx, program)
		if err != nil {
			return nil, fmt.Errorf("reading the program: %w", err)
		}
		out = append(out, member{name: programName, digest: digest, size: size, executable: true, path: program, what: programName})
	}
	inputs, err := blobs(l)
	if err != nil {
		return nil, err
	}
	for _, b := range inputs {
		if !s.Has(b.digest, b.size) {
			return nil, fmt.Errorf("the cache lacks %s, sha256 %s", b.id, b.digest)
		}
		out = append(out, member{name: blobDir + b.digest, digest: b.digest, size: b.size, path: s.Path(b.digest), what: string(b.id)})
	}
	return out, nil
}

func (m member) write(ctx context.Context, w io.Writer, progress Progress) error {
	h, err := header(m.name, m.size, m.executable)
	if err != nil {
		return err
	}
	if _, err := w.Write(h); err != nil {
		return err
	}
	if m.path == "" {
		if _, err := w.Write(m.content); err != nil {
			return err
		}
	} else if err := m.copy(ctx, w, progress); err != nil {
		return err
	}
	_, err = w.Write(make([]byte, padding(m.size)))
	return err
}

// copy copies a file and makes sure that it still is what its name says.
func (m member) copy(ctx context.Context, w io.Writer, progress Progress) error {
	f, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.CopyN(io.MultiWriter(w, h), watched(ctx, f, m.what, m.size, progress), m.size)
	if err != nil && err != io.EOF {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != m.size || got != m.digest {
		return fmt.Errorf("%s has sha256 %s over %d of %d bytes; it was damaged: delete it to have it fetched again", m.path, got, n, m.size)
	}
	return nil
}

// watched is r until ctx ends, with progress.
func watched(ctx context.Context, r io.Reader, what string, total int64, progress Progress) io.Reader {
	var done int64
	return readFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := r.Read(p)
		done += int64(n)
		if progress != nil {
			progress(what, done, total)
		}
		return n, err
	})
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
