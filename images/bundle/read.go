package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/imagectl/imagectl/images/store"
)

// maxSums bounds SHA256SUMS and bundle.json, and maxProgram the program.
const (
	maxSums    = 4 << 20
	maxProgram = 1 << 30
)

// Reader reads a bundle from its start to its end, in two steps, so that a caller
// may look at the site before a large file is copied.
type Reader struct {
	in io.Reader
	// Site is complete and its digests are checked.
	Site Site
	// Sums is the digest of SHA256SUMS, which identifies the content.
	Sums string
	// sums are the lines that were not read yet, blobs the sizes of those among them.
	sums  []sum
	blobs []blob
}

// Open reads the part of a bundle that people wrote. ErrDamaged says that it is
// not one, or was changed on its way. It reads not a byte further than needed.
func Open(r io.Reader) (*Reader, error) {
	b := &Reader{in: r}
	if err := b.open(); err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", explain(err))
	}
	return b, nil
}

// Receive reads the rest of a bundle and puts the inputs into the store; when s
// is nil it only compares digests. An input enters the store when its digest is
// right, and is there already when a later one is not: what is in the store need
// not be copied when the bundle is read again. progress may be nil.
func (b *Reader) Receive(ctx context.Context, s *store.Store, progress Progress) error {
	if err := b.receive(ctx, s, progress); err != nil {
		return fmt.Errorf("reading the bundle: %w", explain(err))
	}
	return nil
}

// explain says what an early end is.
func explain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, store.ErrTruncated) {
		return fmt.Errorf("%w: it ends early; copy it again (%w)", ErrDamaged, err)
	}
	if errors.Is(err, store.ErrDigest) {
		return fmt.Errorf("%w: copy it again (%w)", ErrDamaged, err)
	}
	return err
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

func (b *Reader) open() error {
	content, err := b.small(sumsName, maxSums, false)
	if err != nil {
		return err
	}
	b.Sums = digestOf(content)
	if b.sums, err = parseSums(content); err != nil {
		return err
	}
	a, written, err := b.about()
	if err != nil {
		return err
	}
	b.Site.Cluster = a.Cluster
	total := 0
	for len(b.sums) > 0 && strings.HasPrefix(b.sums[0].name, siteDir) {
		name := strings.TrimPrefix(b.sums[0].name, siteDir)
		f := File{Name: name, Executable: slices.Contains(a.Executable, name)}
		if f.Content, err = b.next(MaxFile, f.Executable); err != nil {
			return err
		}
		if total += len(f.Content); total > maxSite {
			return damaged("the site's files have more than %d bytes", maxSite)
		}
		if n := len(b.Site.Files); n > 0 && b.Site.Files[n-1].Name >= name {
			return damaged("member %s is in the wrong place", siteDir+name)
		}
		b.Site.Files = append(b.Site.Files, f)
	}
	if want, err := b.Site.about(); err != nil || !bytes.Equal(written, want) {
		return damaged("%s is written otherwise", aboutName)
	}
	return b.compare()
}

// about reads bundle.json and makes sure that another version is not misread.
func (b *Reader) about() (a about, content []byte, err error) {
	if len(b.sums) == 0 || b.sums[0].name != aboutName {
		return a, nil, damaged("%s does not begin with %s", sumsName, aboutName)
	}
	content, err = b.next(maxSums, false)
	if err != nil {
		return a, nil, err
	}
	var version struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(content, &version) == nil && version.Version != 1 {
		return a, nil, fmt.Errorf("its format has version %d, this imagectl knows 1; use a newer imagectl", version.Version)
	}
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(&a); err != nil {
		return a, nil, damaged("%s: %w", aboutName, err)
	}
	return a, content, nil
}

// compare makes sure that what is still to come is what the lock asks for.
func (b *Reader) compare() error {
	l, err := b.Site.lock()
	if err != nil {
		return damaged("%w", err)
	}
	if b.blobs, err = blobs(l); err != nil {
		return damaged("%w", err)
	}
	rest := b.sums
	if len(rest) > 0 && rest[0].name == programName {
		rest = rest[1:]
	}
	for i, s := range rest {
		digest, ok := isBlob(s.name)
		switch {
		case !ok:
			return damaged("member %s is in the wrong place", s.name)
		case digest != s.digest:
			return damaged("member %s is listed with sha256 %s", s.name, s.digest)
		case !slices.ContainsFunc(b.blobs, func(b blob) bool { return b.digest == digest }):
			return damaged("member %s is no input of the lock", s.name)
		case i > 0 && rest[i-1].name >= s.name:
			return damaged("member %s is in the wrong place", s.name)
		}
	}
	for _, want := range b.blobs {
		if !slices.Contains(rest, sum{want.digest, blobDir + want.digest}) {
			return damaged("%s is locked and missing", blobDir+want.digest)
		}
	}
	return nil
}

func (b *Reader) receive(ctx context.Context, s *store.Store, progress Progress) error {
	if len(b.sums) > 0 && b.sums[0].name == programName {
		size, err := b.header(programName, maxProgram, true)
		if err != nil {
			return err
		}
		if err := b.content(ctx, nil, b.sums[0], programName, size, progress); err != nil {
			return err
		}
		b.sums = b.sums[1:]
	}
	for i, line := range b.sums {
		size, err := b.header(line.name, b.blobs[i].size, false)
		if err != nil {
			return err
		}
		if size != b.blobs[i].size {
			return damaged("member %s has %d bytes, locked are %d", line.name, size, b.blobs[i].size)
		}
		if err := b.content(ctx, s, line, string(b.blobs[i].id), size, progress); err != nil {
			return err
		}
	}
	return b.end()
}

// content reads and checks one member and its padding.
func (b *Reader) content(ctx context.Context, s *store.Store, m sum, what string, size int64, progress Progress) error {
	report := func(done, total int64) {
		if progress != nil {
			progress(what, done, total)
		}
	}
	var err error
	if s == nil {
		err = store.Check(ctx, b.in, m.digest, size, report)
	} else {
		_, err = s.Receive(ctx, b.in, m.digest, size, report)
	}
	if err != nil {
		return fmt.Errorf("member %s: %w", m.name, err)
	}
	return b.zeros(m.name, padding(size))
}

// next reads the small member that SHA256SUMS lists next.
func (b *Reader) next(limit int64, executable bool) ([]byte, error) {
	line := b.sums[0]
	content, err := b.small(line.name, limit, executable)
	if err != nil {
		return nil, err
	}
	if got := digestOf(content); got != line.digest {
		return nil, damaged("member %s has sha256 %s, want %s; copy it again", line.name, got, line.digest)
	}
	b.sums = b.sums[1:]
	return content, nil
}

func (b *Reader) small(name string, limit int64, executable bool) ([]byte, error) {
	size, err := b.header(name, limit, executable)
	if err != nil {
		return nil, err
	}
	// The size is believed as far as there are bytes.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, b.in, size); err != nil {
		return nil, fmt.Errorf("member %s: %w", name, err)
	}
	return buf.Bytes(), b.zeros(name, padding(size))
}

// header reads a header block, which must be the one that Write makes, and
// returns the member's size.
func (b *Reader) header(name string, limit int64, executable bool) (int64, error) {
	got := make([]byte, blockSize)
	if _, err := io.ReadFull(b.in, got); err != nil {
		return 0, fmt.Errorf("before member %s: %w", name, err)
	}
	if bytes.Equal(got, make([]byte, blockSize)) {
		return 0, damaged("it ends before member %s", name)
	}
	// What the block says is only used to explain it, but for the size.
	h, err := tar.NewReader(bytes.NewReader(got)).Next()
	if err != nil {
		return 0, damaged("the header of member %s: %v; copy it again", name, err)
	}
	switch {
	case h.Typeflag != tar.TypeReg:
		return 0, damaged("member %q is %s, want the file %s", h.Name, kind(h.Typeflag), name)
	case h.Name != name:
		return 0, damaged("member %q stands where %s should be", h.Name, name)
	case h.Size > limit:
		return 0, damaged("member %s has %d bytes, at most %d are expected", name, h.Size, limit)
	}
	want, err := header(name, h.Size, executable)
	if err != nil {
		return 0, damaged("%w", err)
	}
	if !bytes.Equal(got, want) {
		return 0, damaged("the header of member %s has another mode, owner or time", name)
	}
	return h.Size, nil
}

func kind(flag byte) string {
	switch flag {
	case tar.TypeSymlink:
		return "a symbolic link"
	case tar.TypeLink:
		return "a hard link"
	case tar.TypeDir:
		return "a directory"
	}
	return fmt.Sprintf("of type %q", flag)
}

func (b *Reader) zeros(after string, n int64) error {
	pad := make([]byte, n)
	if _, err := io.ReadFull(b.in, pad); err != nil {
		return fmt.Errorf("after member %s: %w", after, err)
	}
	if !bytes.Equal(pad, make([]byte, n)) {
		return damaged("there are stray bytes after member %s", after)
	}
	return nil
}

// end wants the end of the archive and of the file.
func (b *Reader) end() error {
	got := make([]byte, blockSize)
	if _, err := io.ReadFull(b.in, got); err != nil {
		return fmt.Errorf("before its end: %w", err)
	}
	if !bytes.Equal(got, make([]byte, blockSize)) {
		name := "that cannot be read"
		if h, err := tar.NewReader(bytes.NewReader(got)).Next(); err == nil {
			name = fmt.Sprintf("%q", h.Name)
		}
		return damaged("there is a member %s too many", name)
	}
	if err := b.zeros("the last", blockSize); err != nil {
		return err
	}
	switch n, err := io.ReadFull(b.in, got[:1]); {
	case n > 0:
		return damaged("there are bytes after its end")
	case err != io.EOF:
		return err
	}
	return nil
}

var sumForm = regexp.MustCompile(`^([0-9a-f]{64})  (.+)$`)

// parseSums reads SHA256SUMS; names are checked, and that it is written as
// encodeSums does.
func parseSums(content []byte) ([]sum, error) {
	var sums []sum
	var names []string
	for line := range strings.Lines(string(content)) {
		m := sumForm.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			return nil, damaged("%s has the line %q", sumsName, strings.TrimSpace(line))
		}
		if err := checkName(m[2]); err != nil {
			return nil, damaged("%s: %w", sumsName, err)
		}
		sums, names = append(sums, sum{m[1], m[2]}), append(names, m[2])
	}
	if err := checkTree(names); err != nil {
		return nil, damaged("%s: %w", sumsName, err)
	}
	if !bytes.Equal(encodeSums(sums), content) {
		return nil, damaged("%s does not end with a line", sumsName)
	}
	return sums, nil
}
