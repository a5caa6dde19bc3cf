// Package onedtest is a front-end of OpenNebula for tests: a stateful oned behind
// its XML-RPC API, with the behaviour that a real oned 7.5.80 with the fs driver
// was seen to have: codes of refusals, how often it reads a file and how it breaks
// off, images in ERROR that hold their name, checksums that are compared only when
// all is read, restricted attributes. It is not OpenNebula: what it does not do
// was not looked at.
package onedtest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The session of the user that tests are, and of another one.
const (
	Session = "ops:secret-token"
	Other   = "someone:else"
)

// Datastore is the name of the image datastore.
const Datastore = "default"

// Codes of refusals.
const (
	authentication = 256
	authorization  = 512
	noExists       = 1024
	action         = 2048
	internal       = 8192
	allocate       = 16384
)

// States of images.
const (
	ready  = 1
	used   = 2
	locked = 4
	failed = 5
)

// Server is one front-end.
type Server struct {
	// URL of the API.
	URL string
	dir string

	mu        sync.Mutex
	next      int
	clock     int64
	images    map[int]*image
	templates map[int]*vmTemplate
	totalMB   int64
	freeMB    int64
	quota     int
	hold      chan struct{}
	spoilt    string
	safe      string
	imports   sync.WaitGroup
	gets      int
	heads     int
}

type image struct {
	id, state, vms int
	// kept is locked by its owner, with one.image.lock.
	kept        bool
	owner, name string
	regTime     int64
	sizeMB      int64
	attrs       attrs
}

type vmTemplate struct {
	id    int
	owner string
	name  string
	attrs attrs
}

// Start runs a front-end until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{dir: t.TempDir(), clock: 1_700_000_000, images: map[int]*image{}, templates: map[int]*vmTemplate{}, totalMB: 100_000, freeMB: 100_000, quota: -1}
	h := httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = h.URL + "/RPC2"
	t.Cleanup(func() {
		s.Release()
		s.imports.Wait()
		h.Close()
	})
	return s
}

// Hold lets imports wait before the last reading until Release.
func (s *Server) Hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = make(chan struct{})
}

// Release ends Hold.
func (s *Server) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil {
		close(s.hold)
		s.hold = nil
	}
}

// Settle waits until no image is being imported.
func (s *Server) Settle() { s.imports.Wait() }

// Fill leaves so many MB free.
func (s *Server) Fill(freeMB int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freeMB = freeMB
}

// Restart forgets how much is free until Monitor.
func (s *Server) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totalMB, s.freeMB = 0, 0
}

// Monitor is what oned does every few minutes.
func (s *Server) Monitor() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.totalMB, s.freeMB = 100_000, 100_000
}

// Quota limits how many images a user may have.
func (s *Server) Quota(images int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quota = images
}

// Use runs a machine on an image.
func (s *Server) Use(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := strconv.Atoi(id)
	i := s.images[n]
	if i == nil || i.state != ready {
		return fmt.Errorf("image %q is not ready", id)
	}
	i.vms, i.state = i.vms+1, used
	return nil
}

// Safe adds a directory to those that images may be read from.
func (s *Server) Safe(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.safe = filepath.Clean(dir)
}

// Lock is one.image.lock: nobody deletes the image any more.
func (s *Server) Lock(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := strconv.Atoi(id)
	i := s.images[n]
	if i == nil {
		return fmt.Errorf("there is no image %q", id)
	}
	i.kept = true
	return nil
}

// Spoil lets all imports end in state ERROR with these words of the driver.
func (s *Server) Spoil(words string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoilt = words
}

// File is where the bytes of an image lie.
func (s *Server) File(id string) string { return filepath.Join(s.dir, id) }

// Reads are the GETs and HEADs that were sent for all images.
func (s *Server) Reads() (gets, heads int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gets, s.heads
}

// Images are "NUMBER NAME STATE" of a user's images, in the order of their numbers.
func (s *Server) Images(session string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for id := range s.next {
		if i := s.images[id]; i != nil && i.owner == session {
			out = append(out, fmt.Sprintf("%d %s %d", id, i.name, i.state))
		}
	}
	return out
}

// Template is the text of a user's template of this name, for comparison.
func (s *Server) Template(session, name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.templates {
		if t.owner == session && t.name == name {
			return t.attrs.xml()
		}
	}
	return ""
}

// Plant makes a finished image and a template of somebody else's, which use the
// same words for other things.
func (s *Server) Plant() (untouched func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(name string, a attrs) {
		s.images[s.next] = &image{id: s.next, state: ready, owner: Other, name: name, attrs: a, sizeMB: 3}
		s.next++
	}
	add("prod-worker-1.2.3-aaaaaaaa", attrs{{name: "IMAGECTL_NAME", text: "prod-worker"}})
	add("windows", attrs{{name: "ERROR", text: "left by somebody"}})
	s.templates[s.next] = &vmTemplate{id: s.next, owner: Other, name: "prod-worker", attrs: attrs{{name: "CPU", text: "4"}}}
	s.next++
	before := s.snapshot(Other)
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if after := s.snapshot(Other); after != before {
			return fmt.Errorf("objects of others were\n%sand are\n%s", before, after)
		}
		return nil
	}
}

func (s *Server) snapshot(owner string) string {
	var b strings.Builder
	for id := range s.next {
		if i := s.images[id]; i != nil && i.owner == owner {
			fmt.Fprintln(&b, i.id, i.name, i.state, i.vms, i.attrs.xml())
		}
		if t := s.templates[id]; t != nil && t.owner == owner {
			fmt.Fprintln(&b, t.id, t.name, t.attrs.xml())
		}
	}
	return b.String()
}

func (s *Server) write(id int, b []byte) error {
	return os.WriteFile(s.File(strconv.Itoa(id)), b, 0o600)
}
