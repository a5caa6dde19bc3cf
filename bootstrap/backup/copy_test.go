package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
)

// shelf is a place that holds data.
type shelf struct {
	mu    sync.Mutex
	files map[string][]byte
	// full refuses what is put there; torn keeps half of it.
	full, torn bool
	news       chan struct{} // gets one for each that was put there
}

func (s *shelf) String() string { return "the shelf" }

func (s *shelf) List(context.Context) ([]files.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []files.File
	for name, b := range s.files {
		if f, ok := files.Named(name, int64(len(b))); ok {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b files.File) int { return b.At.Compare(a.At) })
	return out, nil
}

func (s *shelf) Put(_ context.Context, f files.File, r io.Reader) error {
	b, err := io.ReadAll(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return errors.New("the shelf is full")
	}
	if s.torn {
		b = b[:len(b)/2]
	}
	s.files[f.Name] = b
	select {
	case s.news <- struct{}{}:
	default:
	}
	return err
}

func (s *shelf) Open(_ context.Context, f files.File) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return io.NopCloser(bytes.NewReader(s.files[f.Name])), nil
}

func (s *shelf) Remove(_ context.Context, f files.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, f.Name)
	return nil
}

func (s *shelf) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.files {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// Copies are of what is good, are read back, and as many stay as in the directory; what
// others keep in the same place stays.
func TestACopyOfEachBackupIsElsewhere(t *testing.T) {
	t.Parallel()
	st := server(t, t.TempDir())
	defer st.Close()
	k := newKeeper(t, st, t.TempDir())
	other := files.Name("demo2", noon)
	s := &shelf{files: map[string][]byte{"notes.txt": nil, other: nil}, news: make(chan struct{}, 1)}
	cfg := k.config(st)
	cfg.Copies = s
	var err error
	if k.Keeper, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	save := func(minute int) files.File {
		t.Helper()
		k.now.Store(int64(minute))
		f, err := k.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		k.copy(t.Context())
		return f
	}
	for i := range 5 {
		f := save(i)
		if c := k.State().Copy; c.Failed != nil || c.Good != f || c.Place != "the shelf" {
			t.Fatalf("after %s: %+v", f.Name, c)
		}
	}
	want := []string{other, "notes.txt"}
	for i := 2; i < 5; i++ {
		want = append(want, files.Name("demo", noon.Add(time.Duration(i)*time.Minute)))
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, s.names()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	good := k.State().Copy.Good
	s.full = true
	f := save(5)
	c, now := k.State().Copy, noon.Add(5*time.Minute)
	if c.Good != good || c.Failed == nil || c.Failed.Error() != "the shelf is full" {
		t.Errorf("a full place: %+v", c)
	}
	if wait, todo := c.due(f, now); !todo || wait != copyRetry {
		t.Errorf("the next attempt is in %s, %v", wait, todo)
	}
	s.full, s.torn = false, true
	k.copy(t.Context())
	if c := k.State().Copy; c.Good != good || c.Failed == nil || !strings.HasPrefix(c.Failed.Error(), "reading the copy of "+f.Name+": ") {
		t.Errorf("a copy that is torn: %+v", c)
	}
	s.torn = false
	k.copy(t.Context())
	if c := k.State().Copy; c.Good != f || c.Failed != nil {
		t.Errorf("in the end: %+v", c)
	}
	if _, todo := k.State().Copy.due(f, now); todo {
		t.Error("there is something left to do")
	}

	// From there it comes back, whole.
	dir := t.TempDir()
	path, err := Fetch(t.Context(), s, files.Name("demo", noon.Add(4*time.Minute)), dir)
	if err != nil || filepath.Base(path) != files.Name("demo", noon.Add(4*time.Minute)) {
		t.Fatalf("got %s, %v", path, err)
	}
	a, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(a, s.files[filepath.Base(path)]) {
		t.Errorf("what came is another: %v", err)
	}
	if _, err := Fetch(t.Context(), s, "", dir); err == nil || !strings.Contains(err.Error(), "the shelf holds backups of the clusters demo and demo2; name one file") {
		t.Errorf("of two clusters: %v", err)
	}
	if _, err := Fetch(t.Context(), s, "x", dir); err == nil || err.Error() != "looking for a backup: there is no x in the shelf" {
		t.Errorf("no such: %v", err)
	}
}

// A running keeper copies by itself, also what an operator asks for.
func TestAKeeperThatRunsCopies(t *testing.T) {
	t.Parallel()
	st := server(t, t.TempDir())
	defer st.Close()
	k := newKeeper(t, st, t.TempDir())
	s := &shelf{files: map[string][]byte{}, news: make(chan struct{}, 1)}
	cfg := k.config(st)
	cfg.Copies = s
	var err error
	if k.Keeper, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	<-s.news
	k.now.Store(1)
	if _, err := k.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-s.news
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := s.names(); len(got) != 2 {
		t.Errorf("got %v", got)
	}
}
