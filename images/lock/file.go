package lock

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// FileName is the lock file's name, next to cluster.yaml.
const FileName = "imagectl.lock"

// formatVersion is the only version that exists.
const formatVersion = 1

var (
	digestForm      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	fingerprintForm = regexp.MustCompile(`^[0-9A-F]{40}([0-9A-F]{24})?$`)
)

// New returns a checked lock with its inputs sorted. wants is the digest of what
// was asked for.
func New(wants string, inputs []Blob) (Lock, error) {
	l := Lock{Version: formatVersion, Wants: wants, Inputs: slices.Clone(inputs)}
	slices.SortFunc(l.Inputs, func(a, b Blob) int { return strings.Compare(string(a.ID), string(b.ID)) })
	if err := l.check(); err != nil {
		return Lock{}, err
	}
	return l, nil
}

// Read reads and checks a lock file. A missing file is fs.ErrNotExist.
func Read(path string) (Lock, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Lock{}, fmt.Errorf("reading lock file: %w", err)
	}
	l, err := Parse(b)
	if err != nil {
		return Lock{}, fmt.Errorf("reading lock file %s: %w; run imagectl lock to write it anew", path, err)
	}
	return l, nil
}

// Parse reads what Encode wrote. Unknown keys, unsorted or repeated inputs and
// malformed digests are errors.
func Parse(b []byte) (Lock, error) {
	var l Lock
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return Lock{}, fmt.Errorf("parsing JSON: %w", err)
	}
	if d.More() {
		return Lock{}, errors.New("parsing JSON: there is more than one value")
	}
	if err := l.check(); err != nil {
		return Lock{}, err
	}
	return l, nil
}

// Encode writes a checked lock as indented JSON with a final newline. Equal
// locks give equal bytes.
func (l Lock) Encode() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("encoding lock file: %w", err)
	}
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(l); err != nil {
		return nil, fmt.Errorf("encoding lock file: %w", err)
	}
	return buf.Bytes(), nil
}

// Write replaces the lock file in one step; a crash leaves the old one or the
// new one.
func Write(path string, l Lock) error {
	b, err := l.Encode()
	if err != nil {
		return err
	}
	if err := replace(path, b); err != nil {
		return fmt.Errorf("writing lock file: %w", err)
	}
	return nil
}

func replace(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	// The file is for git and for colleagues; CreateTemp's 0600 is not.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (l Lock) check() error {
	if l.Version != formatVersion {
		return fmt.Errorf("version is %d, this imagectl knows %d", l.Version, formatVersion)
	}
	if !digestForm.MatchString(l.Wants) {
		return fmt.Errorf("wants %q is no SHA-256 digest", l.Wants)
	}
	for i, b := range l.Inputs {
		if i > 0 && l.Inputs[i-1].ID >= b.ID {
			return fmt.Errorf("input %q does not come after %q: inputs must be sorted and unique", b.ID, l.Inputs[i-1].ID)
		}
		if err := b.check(); err != nil {
			return fmt.Errorf("input %q: %w", b.ID, err)
		}
	}
	return nil
}

func (b Blob) check() error {
	if b.ID == "" {
		return errors.New("id is empty")
	}
	if b.Source == "" || slices.Contains(b.Mirrors, "") {
		return errors.New("source or one of its mirrors is empty")
	}
	if !digestForm.MatchString(b.SHA256) {
		return fmt.Errorf("sha256 %q is not 64 lower-case hexadecimal digits", b.SHA256)
	}
	if b.Size < 0 {
		return fmt.Errorf("size is %d", b.Size)
	}
	if s := b.Signer; s != nil {
		if !fingerprintForm.MatchString(s.Primary) || !fingerprintForm.MatchString(s.Subkey) {
			return fmt.Errorf("signer's fingerprints %q and %q are not 40 or 64 upper-case hexadecimal digits", s.Primary, s.Subkey)
		}
	}
	return nil
}
