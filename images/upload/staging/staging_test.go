package staging_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/staging"
)

const size = 20 << 20

type site struct {
	url     string
	content []byte
	release func()
	base    string

	mu     sync.Mutex
	events []upload.Event
}

func serve(t *testing.T) *site {
	t.Helper()
	s := &site{content: make([]byte, size)}
	if _, err := rand.Read(s.content); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.qcow2")
	if err := os.WriteFile(path, s.content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	// What was opened is served, whatever the path names now.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.base = "http://" + l.Addr().String()
	server := staging.New(s.base + "/")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.url, s.release, err = server.Stage(ctx, upload.Wanted{Name: "prod-worker.qcow2", Image: upload.Image{File: f, Size: size, SHA256: "ab"}}, nil, func(e upload.Event) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.events = append(s.events, e)
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// whole is how many readings were told of that had all of the file.
func (s *site) whole() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	ends := map[string]bool{}
	for _, e := range s.events {
		if e.Done == size && e.Total == size {
			ends[e.Phase] = true
		}
	}
	n := 0
	for pass := 1; pass <= 8; pass++ {
		if ends[fmt.Sprintf("front-end reading, pass %d", pass)] {
			n++
		}
	}
	return n
}

func ask(t *testing.T, method, url, rang string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if rang != "" {
		r.Header.Set("Range", rang)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestImageIsReadAsOftenAndInWhatPartsThePlatformLikes(t *testing.T) {
	t.Parallel()
	s := serve(t)
	if !strings.HasPrefix(s.url, s.base+"/") || !strings.HasSuffix(s.url, "/prod-worker.qcow2") || len(s.url) < len(s.base)+52 {
		t.Fatalf("the URL is %s", s.url)
	}
	resp, _ := ask(t, http.MethodHead, s.url, "")
	if resp.StatusCode != 200 || resp.ContentLength != size {
		t.Errorf("HEAD: %d, %d bytes", resp.StatusCode, resp.ContentLength)
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if resp, b := ask(t, http.MethodGet, s.url, ""); resp.ContentLength != size || !bytes.Equal(b, s.content) {
				t.Errorf("GET %d: %d bytes, not those of the file", i, len(b))
			}
		})
		all.Go(func() {
			// One that hangs up early.
			resp, err := http.Get(s.url)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := io.CopyN(io.Discard, resp.Body, 100); err != nil {
				t.Error(err)
			}
			resp.Body.Close()
		})
	}
	all.Wait()
	if resp, b := ask(t, http.MethodGet, s.url, "bytes=9000000-18999999"); resp.StatusCode != 206 || !bytes.Equal(b, s.content[9000000:19000000]) {
		t.Errorf("Range: %d, %d bytes", resp.StatusCode, len(b))
	}
	// The server tells of a piece after it has sent it, which may be after a client has all.
	const patience = time.Minute
	for end := time.Now().Add(patience); s.whole() < 4; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of at least 4 whole readings were told after %s", s.whole(), patience)
		}
	}
}

func TestNothingElseIsServed(t *testing.T) {
	t.Parallel()
	s := serve(t)
	dir := s.url[:strings.LastIndex(s.url, "/")+1]
	for _, url := range []string{s.base, s.base + "/", dir, s.url + "x", dir + "other.qcow2", s.base + "/prod-worker.qcow2", s.base + "/../etc/passwd"} {
		if resp, _ := ask(t, http.MethodGet, url, ""); resp.StatusCode != 404 {
			t.Errorf("%s: %d", url, resp.StatusCode)
		}
	}
	for _, method := range []string{http.MethodPut, http.MethodPost, http.MethodDelete} {
		if resp, _ := ask(t, method, s.url, ""); resp.StatusCode != 405 {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}
	s.release()
	if resp, _ := ask(t, http.MethodGet, s.url, ""); resp.StatusCode != 404 {
		t.Errorf("after the end: %d", resp.StatusCode)
	}
}
