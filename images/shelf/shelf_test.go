package shelf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/imagectl/imagectl/images/store"
	"github.com/imagectl/imagectl/images/upload"
)

// place has what it was given, and says how often it was asked.
type place struct {
	content map[string][]byte
	// broken is how many readings end in the middle before one does not.
	broken int
	opened int
}

func (p *place) Keep(context.Context, string, []store.Artefact, string, upload.Events) error {
	return errors.New("nobody asks for this here")
}

func (p *place) Open(_ context.Context, a store.Artefact) (io.ReadCloser, error) {
	p.opened++
	b, ok := p.content[a.SHA256]
	if !ok {
		return nil, fmt.Errorf("looking for it: %w", upload.ErrNotFound)
	}
	if p.broken > 0 {
		p.broken--
		return io.NopCloser(io.MultiReader(bytes.NewReader(b[:len(b)/2]), reset{})), nil
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// reset is a connection that ends.
type reset struct{}

func (reset) Read([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

func artefact(content []byte) store.Artefact {
	sum := sha256.Sum256(content)
	return store.Artefact{Name: "lab-worker.raw.zst", Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
}

func open(t *testing.T) *store.Store {
	t.Helper()
	cache, err := store.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

func TestWhatIsBroughtIsWhatTheManifestSays(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("image"), 1000)
	a := artefact(content)
	other := bytes.Clone(content)
	other[77] ^= 1
	for _, c := range []struct {
		name   string
		has    map[string][]byte
		broken int
		want   error // nil for the content
		opened int
	}{
		{"all is well", map[string][]byte{a.SHA256: content}, 0, nil, 1},
		{"the connection breaks twice", map[string][]byte{a.SHA256: content}, 2, nil, 3},
		{"one byte is another", map[string][]byte{a.SHA256: other}, 0, store.ErrDigest, 1},
		{"the end is missing", map[string][]byte{a.SHA256: content[:4000]}, 0, store.ErrTruncated, tries},
		{"there is nothing", nil, 0, upload.ErrNotFound, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cache, from := open(t), &place{content: c.has, broken: c.broken}
			path, err := Bring(t.Context(), cache, from, a, nil)
			if !errors.Is(err, c.want) || from.opened != c.opened {
				t.Fatalf("got %v after %d readings, want %v after %d", err, from.opened, c.want, c.opened)
			}
			if c.want != nil {
				if cache.Has(a.SHA256, a.Size) {
					t.Error("it is in the cache all the same")
				}
				return
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the cache has other bytes: %v", err)
			}
		})
	}
}

func TestWhatWasBroughtBeforeIsReadAgain(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("image"), 1000)
	a := artefact(content)
	for name, spoil := range map[string]func([]byte) []byte{
		"nothing happened": func(b []byte) []byte { return b },
		"one byte rotted":  func(b []byte) []byte { b[4999] ^= 1; return b },
		"zeros at the end": func(b []byte) []byte { clear(b[2000:]); return b },
		"a part of it":     func(b []byte) []byte { return b[:100] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cache, from := open(t), &place{content: map[string][]byte{a.SHA256: content}}
			path := cache.Path(a.SHA256)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			before := spoil(bytes.Clone(content))
			if err := os.WriteFile(path, before, 0o444); err != nil {
				t.Fatal(err)
			}
			if _, err := Bring(t.Context(), cache, from, a, nil); err != nil {
				t.Fatal(err)
			}
			want := 1
			if bytes.Equal(before, content) {
				want = 0
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) || from.opened != want {
				t.Errorf("the cache has other bytes, or %d readings were not %d: %v", from.opened, want, err)
			}
		})
	}
}
