package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
)

func open(t *testing.T) (*store.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.SetPatience(time.Hour)
	return s, dir
}

func content(n int) ([]byte, string) {
	b := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:])
}

// flaky serves content but breaks every response after a number of bytes.
type flaky struct {
	content []byte
	etag    atomic.Value
	// breakAfter is how many bytes a response carries; 0 means all.
	breakAfter atomic.Int64
	mu         sync.Mutex
	ranges     []string
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.ranges = append(f.ranges, r.Header.Get("Range"))
	f.mu.Unlock()
	w.Header().Set("ETag", f.etag.Load().(string))
	if n := f.breakAfter.Load(); n > 0 {
		w = &breaking{ResponseWriter: w, left: n}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}

type breaking struct {
	http.ResponseWriter
	left int64
}

func (b *breaking) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		b.ResponseWriter.Write(p[:b.left])
		b.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	b.left -= int64(len(p))
	return b.ResponseWriter.Write(p)
}

func serve(t *testing.T, content []byte) (*flaky, string) {
	t.Helper()
	f := &flaky{content: content}
	f.etag.Store(`"v1"`)
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	return f, srv.URL + "/file"
}

func TestABrokenDownloadIsResumedWhereItBroke(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	want, digest := content(1 << 20)
	f, url := serve(t, want)
	f.breakAfter.Store(300 << 10)
	var last int64
	b, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1 << 20,
		Progress: func(done, total int64) {
			if done < last || total != 1<<20 {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last = done
		}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(b.Path); !bytes.Equal(got, want) {
		t.Error("the blob differs from what was served")
	}
	if got := fmt.Sprint(f.ranges); got != "[ bytes=307200- bytes=614400- bytes=921600-]" {
		t.Errorf("got ranges %s", got)
	}
	before := len(f.ranges)
	if _, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if len(f.ranges) != before {
		t.Error("a blob that is there was fetched again")
	}
}

func TestAFileThatChangedMeanwhileIsFetchedFromTheStart(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	old, _ := content(1 << 20)
	f, url := serve(t, old)
	f.breakAfter.Store(100)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.Fetch(ctx, store.Request{Source: url, Progress: func(done, _ int64) {
		if done >= 100 {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("a cancelled download succeeded")
	}
	want := []byte("something else")
	f.content = want
	f.etag.Store(`"v2"`)
	f.breakAfter.Store(0)
	b, err := s.Fetch(context.Background(), store.Request{Source: url})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(b.Path); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWrongContentIsRefusedAndNeverVisible(t *testing.T) {
	t.Parallel()
	good, digest := content(5000)
	flipped := bytes.Clone(good)
	flipped[17] ^= 1
	refusal := errors.New("not signed by a friend")
	for name, tc := range map[string]struct {
		served []byte
		check  error
		want   error
		text   string
	}{
		"a flipped bit":        {served: flipped, want: store.ErrDigest, text: "run imagectl lock --update"},
		"a missing end":        {served: good[:4999], want: store.ErrTruncated, text: "it has 4999 bytes, locked are 5000"},
		"something longer":     {served: append(bytes.Clone(good), 'x'), want: store.ErrDigest, text: "5001 bytes"},
		"a check that refuses": {served: good, check: refusal, want: refusal},
	} {
		for _, kind := range []string{"URL", "path"} {
			t.Run(name+" by "+kind, func(t *testing.T) {
				t.Parallel()
				s, dir := open(t)
				var source string
				if kind == "URL" {
					_, source = serve(t, tc.served)
				} else {
					source = filepath.Join(t.TempDir(), "file")
					if err := os.WriteFile(source, tc.served, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				req := store.Request{Source: source, SHA256: digest, Size: 5000}
				if tc.check != nil {
					req.Check = func(io.ReaderAt, int64) error { return tc.check }
				}
				_, err := s.Fetch(context.Background(), req)
				if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), source) {
					t.Errorf("got %v, want %v with %q and the source", err, tc.want, tc.text)
				}
				if blobs, _ := filepath.Glob(filepath.Join(dir, "blobs/sha256/*/*")); len(blobs) != 0 {
					t.Errorf("got blobs %v, want none", blobs)
				}
			})
		}
	}
}

func TestAMissingFileIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	var calls atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		http.NotFound(w, r)
	}))
	defer srv.Close()
	_, err := s.Fetch(context.Background(), store.Request{Source: srv.URL})
	if err == nil || !strings.Contains(err.Error(), "404 Not Found") {
		t.Errorf("got %v, want 404 Not Found", err)
	}
	if calls.Load() != 1 {
		t.Errorf("got %d requests, want 1", calls.Load())
	}
}

func TestTwoStoresOnOneDirectoryFetchOnce(t *testing.T) {
	t.Parallel()
	_, dir := open(t)
	want, digest := content(1 << 20)
	f, url := serve(t, want)
	var wg sync.WaitGroup
	for range 4 {
		// flock(2) is by open file, so stores of one process exclude each other
		// as processes do.
		s, err := store.Open(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1 << 20}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(f.ranges) != 1 {
		t.Errorf("got %d requests, want 1", len(f.ranges))
	}
}

func TestDerivedIsMadeOnceAndNeverHalf(t *testing.T) {
	t.Parallel()
	s, dir := open(t)
	ctx := context.Background()
	bad := errors.New("no luck")
	if _, err := s.Derived(ctx, "k", func(f *os.File) error {
		f.WriteString("half")
		return bad
	}); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
	made := 0
	for range 2 {
		path, err := s.Derived(ctx, "k", func(f *os.File) error {
			made++
			_, err := f.WriteString("whole")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != "whole" {
			t.Errorf("got %q, want whole", b)
		}
	}
	if made != 1 {
		t.Errorf("made %d times, want once", made)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "partial/*.derived")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestVerifyNoticesRot(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	b, err := s.Put(context.Background(), []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(context.Background(), b.SHA256); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(b.Path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(b.Path, []byte("hellp"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(context.Background(), b.SHA256); !errors.Is(err, store.ErrDigest) {
		t.Errorf("got %v, want ErrDigest", err)
	}
}

func TestManifestRoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, digest := content(1)
	m := store.Manifest{Version: 1, Cluster: "demo", Artefacts: []store.Artefact{
		{Name: "b.raw", Role: "b", Format: store.Raw, SHA256: digest},
		{Name: "a.raw", Role: "a", Format: store.Raw, SHA256: digest},
	}}
	if err := store.WriteManifest(dir, m); err != nil {
		t.Fatal(err)
	}
	got, err := store.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a, ok := got.Find("a", store.Raw); !ok || a.Name != "a.raw" || got.Artefacts[0].Name != "a.raw" {
		t.Errorf("got %+v", got)
	}
	m.Artefacts[0].Name = "../b.raw"
	if err := store.WriteManifest(dir, m); err == nil {
		t.Error("a name with a directory was accepted")
	}
}
