package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/store"
)

// instant has a store's pauses take no time, and returns how long they were to be.
func instant(s *store.Store) *[]time.Duration {
	var pauses []time.Duration
	s.SetClock(
		func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) },
		func(ctx context.Context, d time.Duration) error {
			pauses = append(pauses, d)
			return ctx.Err()
		})
	return &pauses
}

// answers serves one handler after the other, the last one again and again.
func answers(t *testing.T, list ...http.HandlerFunc) (url string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(requests.Add(1))
		list[min(n, len(list))-1](w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL + "/file", requests
}

// cut sends n bytes of content and breaks the connection.
func cut(content []byte, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		w.Write(content[:n])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// whole knows no ranges.
func whole(content []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.Write(content) }
}

func status(code int, retryAfter string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter != "" {
			w.Header().Set("Retry-After", retryAfter)
		}
		w.WriteHeader(code)
	}
}

// left lists blobs and partial files, without locks.
func left(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"blobs/sha256/*/*", "partial/*"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if filepath.Ext(n) != ".lock" {
				found = append(found, n)
			}
		}
	}
	return found
}

func TestAServerThatIgnoresRangesIsReadFromTheStart(t *testing.T) {
	t.Parallel()
	s, _ := open(t)
	want, digest := content(1 << 20)
	url, requests := answers(t, cut(want, 500<<10), whole(want))
	b, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(b.Path); !bytes.Equal(got, want) || requests.Load() != 2 {
		t.Errorf("got %d bytes by %d requests", len(got), requests.Load())
	}
}

func TestAServerThatLiesAboutRangesIsRefused(t *testing.T) {
	t.Parallel()
	const size, broken = 1 << 20, 512 << 10
	want, digest := content(size)
	for name, tc := range map[string]struct{ etag, contentRange string }{
		"another start":    {`"v1"`, fmt.Sprintf("bytes %d-%d/%d", broken-1, size-1, size)},
		"another end":      {`"v1"`, fmt.Sprintf("bytes %d-%d/%d", broken, size-2, size)},
		"another length":   {`"v1"`, fmt.Sprintf("bytes %d-%d/%d", broken, size, size+1)},
		"an end before":    {`"v1"`, fmt.Sprintf("bytes %d-%d/%d", broken, broken-1, size)},
		"no range":         {`"v1"`, ""},
		"words":            {`"v1"`, "bytes the rest"},
		"another version":  {`"v2"`, fmt.Sprintf("bytes %d-%d/%d", broken, size-1, size)},
		"another unit":     {`"v1"`, fmt.Sprintf("blocks %d-%d/%d", broken, size-1, size)},
		"a negative start": {`"v1"`, fmt.Sprintf("bytes -%d-%d/%d", broken, size-1, size)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := open(t)
			instant(s)
			url, requests := answers(t, cut(want, broken), func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("ETag", tc.etag)
				w.Header().Set("Content-Range", tc.contentRange)
				w.WriteHeader(http.StatusPartialContent)
				w.Write(want[broken:])
			})
			_, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: size})
			if err == nil || !strings.Contains(err.Error(), "cannot be trusted to resume") {
				t.Errorf("got %v", err)
			}
			if requests.Load() != 2 {
				t.Errorf("got %d requests, want 2", requests.Load())
			}
			if files := left(t, dir); len(files) != 0 {
				t.Errorf("left behind: %v", files)
			}
		})
	}
}

func TestABusyServerIsAskedAgainAsItWishes(t *testing.T) {
	t.Parallel()
	want, digest := content(1000)
	for name, tc := range map[string]struct {
		first  http.HandlerFunc
		pauses string
	}{
		"in seconds":        {status(http.StatusServiceUnavailable, "7"), "[7s]"},
		"at a time":         {status(http.StatusTooManyRequests, "Thu, 01 Jan 2026 00:00:30 GMT"), "[30s]"},
		"at a time gone by": {status(http.StatusTooManyRequests, "Wed, 31 Dec 2025 00:00:30 GMT"), "[500ms]"},
		"soon":              {status(http.StatusTooManyRequests, "0"), "[500ms]"},
		"without a wish":    {status(http.StatusBadGateway, ""), "[500ms]"},
		"in strange words":  {status(http.StatusBadGateway, "-5 minutes"), "[500ms]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := open(t)
			pauses := instant(s)
			url, _ := answers(t, tc.first, whole(want))
			if _, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1000}); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(*pauses); got != tc.pauses {
				t.Errorf("got pauses %s, want %s", got, tc.pauses)
			}
		})
	}
}

func TestTryingAgainHasAnEnd(t *testing.T) {
	t.Parallel()
	want, digest := content(1 << 20)
	for name, tc := range map[string]struct {
		answers  []http.HandlerFunc
		requests int64
		pauses   string
		text     string
	}{
		"a server that is always busy": {
			[]http.HandlerFunc{status(http.StatusServiceUnavailable, "")}, 5, "[500ms 1s 2s 4s]", "503 Service Unavailable (tried 5 times)"},
		"a server that wants us back tomorrow": {
			[]http.HandlerFunc{status(http.StatusServiceUnavailable, "86400")}, 1, "[]", "come back in 24h0m0s; try later or name a mirror"},
		"a server that breaks off at the same place": {
			[]http.HandlerFunc{cut(want, 1000)}, 6, "[500ms 1s 2s 4s]", "broke off after 1000 bytes"},
		"a server that breaks off and has no such range": {
			[]http.HandlerFunc{cut(want, 1000), status(416, ""), cut(want, 1000), status(416, ""), cut(want, 1000), status(416, ""), cut(want, 1000), status(416, "")},
			6, "[500ms 1s 2s 4s]", "fewer bytes than were fetched before"},
		"a server that forbids": {[]http.HandlerFunc{status(http.StatusForbidden, "")}, 1, "[]", "403 Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, _ := open(t)
			pauses := instant(s)
			url, requests := answers(t, tc.answers...)
			_, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1 << 20})
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %q", err, tc.text)
			}
			if got := fmt.Sprint(*pauses); got != tc.pauses || requests.Load() != tc.requests {
				t.Errorf("got %d requests and pauses %s, want %d and %s", requests.Load(), got, tc.requests, tc.pauses)
			}
		})
	}
}

func TestMirrorsAreTriedInOrderAndEachFailureIsTold(t *testing.T) {
	t.Parallel()
	want, digest := content(5000)
	flipped := bytes.Clone(want)
	flipped[17] ^= 1
	absent, _ := answers(t, status(http.StatusNotFound, ""))
	tampered, _ := answers(t, whole(flipped))
	good, _ := answers(t, whole(want))
	never, asked := answers(t, whole(want))

	s, dir := open(t)
	var skipped []string
	b, err := s.Fetch(context.Background(), store.Request{
		Source: absent, Mirrors: []string{tampered, good, never}, SHA256: digest, Size: 5000,
		Skipped: func(err error) { skipped = append(skipped, err.Error()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(b.Path); !bytes.Equal(got, want) || asked.Load() != 0 {
		t.Errorf("got %d bytes; the mirror behind the good one had %d requests", len(got), asked.Load())
	}
	if len(skipped) != 2 || !strings.HasPrefix(skipped[0], "fetching "+absent) || !strings.HasPrefix(skipped[1], "fetching "+tampered) {
		t.Errorf("skipped: %q", skipped)
	}
	if files := left(t, dir); len(files) != 1 {
		t.Errorf("left behind: %v", files)
	}

	s, dir = open(t)
	_, err = s.Fetch(context.Background(), store.Request{
		Source: filepath.Join(dir, "no such file"), Mirrors: []string{absent, tampered}, SHA256: digest, Size: 5000,
	})
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, store.ErrDigest) {
		t.Errorf("got %v, want fs.ErrNotExist and ErrDigest", err)
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{"no such file or directory", absent + ": the server answered 404 Not Found", tampered + ": it is 5000 bytes with sha256"} {
		if len(lines) != 3 || !strings.HasPrefix(lines[i], "fetching ") || !strings.Contains(lines[i], want) {
			t.Fatalf("got %q, want line %d with %q", lines, i, want)
		}
	}
	if files := left(t, dir); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	t.Parallel()
	want, digest := content(1000)
	s, _ := open(t)
	instant(s)
	s.SetPatience(time.Millisecond)
	// It answers and sends nothing until the client has gone.
	url, requests := answers(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(want)))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	_, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1000})
	// It may be given up before its answer has arrived.
	if err == nil || !strings.Contains(err.Error(), "the server sent nothing for 1ms") || requests.Load() > 5 {
		t.Errorf("got %v after %d requests", err, requests.Load())
	}
}

func TestTooMuchIsNotReadToItsEnd(t *testing.T) {
	t.Parallel()
	_, digest := content(1000)
	s, dir := open(t)
	// Without a length, and without an end.
	url, _ := answers(t, func(w http.ResponseWriter, _ *http.Request) {
		for b := make([]byte, 64<<10); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	_, err := s.Fetch(context.Background(), store.Request{Source: url, SHA256: digest, Size: 1000})
	if !errors.Is(err, store.ErrDigest) || !strings.Contains(err.Error(), "more than the 1000 bytes") {
		t.Errorf("got %v", err)
	}
	for _, name := range left(t, dir) {
		if st, err := os.Stat(name); err == nil && st.Size() > 1001 {
			t.Errorf("%s has %d bytes", name, st.Size())
		}
	}
}

// TestTwoProcessesFetchOnce starts this program twice, as TestFetchAsProcess.
func TestTwoProcessesFetchOnce(t *testing.T) {
	t.Parallel()
	want, digest := content(1 << 20)
	url, requests := answers(t, whole(want))
	dir := t.TempDir()
	var running []*exec.Cmd
	for range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFetchAsProcess$")
		cmd.Env = append(os.Environ(), "STORE_TEST_FETCH="+strings.Join([]string{dir, url, digest}, " "))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	for _, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	s, err := store.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(context.Background(), digest); err != nil {
		t.Error(err)
	}
	if requests.Load() != 1 {
		t.Errorf("got %d requests, want 1", requests.Load())
	}
}

// TestFetchAsProcess is what TestTwoProcessesFetchOnce runs, and nothing else.
func TestFetchAsProcess(t *testing.T) {
	args := strings.Fields(os.Getenv("STORE_TEST_FETCH"))
	if len(args) != 3 {
		return
	}
	s, err := store.Open(args[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(context.Background(), store.Request{Source: args[1], SHA256: args[2], Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}
