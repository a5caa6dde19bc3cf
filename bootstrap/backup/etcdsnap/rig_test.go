package etcdsnap

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"go.etcd.io/bbolt"

	"github.com/imagectl/imagectl/bootstrap/backup/files"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// database is a snapshot as etcd's members send them, with that many revisions.
func database(t *testing.T, revisions int64) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"key", "meta"} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return err
			}
		}
		for i := int64(1); i <= revisions; i++ {
			k := binary.BigEndian.AppendUint64(nil, uint64(i))
			k = binary.BigEndian.AppendUint64(append(k, '_'), 0)
			if err := tx.Bucket([]byte("key")).Put(k, bytes.Repeat([]byte("v"), 100)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sealed(b)
}

// sealed ends a database with its digest.
func sealed(db []byte) []byte {
	sum := sha256.Sum256(db)
	return append(slices.Clone(db), sum[:]...)
}

// source is a cluster that does what the test says.
type source struct {
	t  *testing.T
	ca *pki.CA

	mu sync.Mutex
	// content is what members send, revision what they say of it.
	content  []byte
	revision int64
	// machines are whose turn it may be, the best first.
	machines []string
	notNow   string
	other    bool // another server leads
	changed  chan struct{}
	saving   string
	log      []string
	// during is called when a quarter was read; it may fail.
	during func() error
	// holds lets a reader wait when half was read, until the call ends; mute lets who opens one.
	holds, mute bool
}

func (s *source) Leads() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.other }
func (s *source) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// hand has another server lead, or this one again.
func (s *source) hand(other bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.other = other
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

func (s *source) Forget(context.Context) error {
	if s.saving != "" {
		s.note("forgotten %s", s.saving)
	}
	s.saving = ""
	return nil
}

func (s *source) Begin(_ context.Context, avoid string) (string, error) {
	if s.notNow != "" {
		return "", fmt.Errorf("%w: %s", ErrNotNow, s.notNow)
	}
	if s.saving != "" {
		s.t.Errorf("one begins while %s is saved", s.saving)
	}
	s.saving = s.machines[0]
	if s.saving == avoid && len(s.machines) > 1 {
		s.saving = s.machines[1]
	}
	return s.saving, nil
}

func (s *source) End(_ context.Context, machine string, m Manifest, failed error) error {
	if s.saving != machine {
		s.t.Errorf("%s ends what %q has begun", machine, s.saving)
	}
	s.saving = ""
	if failed != nil {
		s.note("failed %s: %v", machine, failed)
	} else {
		s.note("saved %s at %d", machine, m.Revision)
	}
	return nil
}

func (s *source) Checked(_ context.Context, m Manifest, broken error) error {
	s.note("checked %s: %v", m.Machine, broken)
	return nil
}

func (s *source) Sign(b []byte) ([]byte, error) { return s.ca.Attest(Domain, b) }

func (s *source) Open(ctx context.Context, machine string) (Stream, error) {
	if s.mute {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &coming{source: s, ctx: ctx, in: bytes.NewReader(s.content)}, nil
}

type coming struct {
	*source
	ctx  context.Context
	in   *bytes.Reader
	once bool
}

func (c *coming) Revision() int64 { return c.revision }
func (c *coming) Member() string  { return "abc" }
func (c *coming) Close() error    { return nil }
func (c *coming) Read(b []byte) (int, error) {
	b = b[:min(len(b), 4096)]
	if read := int(c.in.Size()) - c.in.Len(); c.holds && read >= len(c.content)/2 {
		<-c.ctx.Done()
		return 0, c.ctx.Err()
	} else if c.during != nil && !c.once && read >= len(c.content)/4 {
		c.once = true
		if err := c.during(); err != nil {
			return 0, err
		}
	}
	return c.in.Read(b)
}

// rig is a keeper with its cluster.
type rig struct {
	t *testing.T
	*Keeper
	source   *source
	dir      string
	recovery *age.X25519Identity
	now      time.Time
}

func newRig(t *testing.T, set func(*Config)) *rig {
	t.Helper()
	ca, err := pki.NewCA("imagectl", 24*time.Hour*3650, 0, noon, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: t.TempDir(), now: noon, source: &source{t: t, ca: ca, content: database(t, 300), revision: 299, machines: []string{"cp2", "cp3"}, changed: make(chan struct{})}}
	own, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if r.recovery, err = age.GenerateX25519Identity(); err != nil {
		t.Fatal(err)
	}
	c := Config{
		Cluster: "demo", Program: "v1", Plan: Plan{Every: 6 * time.Hour, Keep: 3}, Dir: r.dir, Scratch: t.TempDir(), Max: 1 << 30,
		Recipients: []age.Recipient{r.recovery.Recipient()}, Own: own, Now: func() time.Time { return r.now }, Log: slog.New(slog.DiscardHandler), Inspect: Inspect, // whose databases have a list of free pages
	}
	if set != nil {
		set(&c)
	}
	if r.Keeper, err = New(c, r.source); err != nil {
		t.Fatal(err)
	}
	return r
}

// rest lets the keeper do all that is due now.
func (r *rig) rest() {
	r.t.Helper()
	for range 20 {
		if wait := r.step(r.t.Context()); wait > 0 {
			return
		}
	}
	r.t.Fatalf("there is always something to do: %+v", r.State())
}

func (r *rig) names() []string {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func (r *rig) logged(want ...string) {
	r.t.Helper()
	if !slices.Equal(r.source.log, want) {
		r.t.Errorf("on record:\n%s\nwant\n%s", strings.Join(r.source.log, "\n"), strings.Join(want, "\n"))
	}
	r.source.log = nil
}

// shelf is a place that can be torn or full.
type shelf struct {
	files      map[string][]byte
	full, torn bool
}

func (s *shelf) String() string { return "the shelf" }
func (s *shelf) List(context.Context) ([]files.File, error) {
	var out []files.File
	for name, b := range s.files {
		if f, ok := files.Etcd.Named(name, int64(len(b))); ok {
			out = append(out, f)
		}
	}
	return out, nil
}
func (s *shelf) Put(_ context.Context, f files.File, r io.Reader) error {
	if s.full {
		return errors.New("the shelf is full")
	}
	b, err := io.ReadAll(r)
	if int64(len(b)) != f.Size {
		return fmt.Errorf("%d bytes of %d", len(b), f.Size)
	}
	s.files[f.Name] = b
	return err
}
func (s *shelf) Open(_ context.Context, f files.File) (io.ReadCloser, error) {
	b := s.files[f.Name]
	if s.torn {
		b = b[:len(b)/2]
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}
func (s *shelf) Remove(_ context.Context, f files.File) error { delete(s.files, f.Name); return nil }
