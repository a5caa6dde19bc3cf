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
	// foreign is what Plant made, whoever owns it.
	foreign bool
	// kept is locked by its owner, with one.image.lock; hidden is nobody else's to use.
	kept, hidden bool
	owner, name  string
	regTime      int64
	sizeMB       int64
	attrs        attrs
}

type vmTemplate struct {
	id      int
	foreign bool
	owner   string
	name    string
	attrs   attrs
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

// Hide takes USE of an image from all but its owner, which is oned's default.
func (s *Server) Hide(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, _ := strconv.Atoi(id)
	if i := s.images[n]; i != nil {
		i.hidden = true
	}
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
		if i := s.images[id]; i != nil && i.owner == session && !i.foreign {
			out = append(out, fmt.Sprintf("%d %s %d", id, i.name, i.state))
		}
	}
	return out
}

// Attributes are those of a user's images whose name begins so, for comparison.
func (s *Server) Attributes(session, prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for id := range s.next {
		if i := s.images[id]; i != nil && i.owner == session && strings.HasPrefix(i.name, prefix) {
			fmt.Fprintln(&b, i.attrs.xml())
		}
	}
	return b.String()
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

// record is the audit record that imagectl gives an image of prod-worker, and a template.
func record(version, digest string) attrs {
	return attrs{
		{name: "IMAGECTL", text: "1"}, {name: "IMAGECTL_NAME", text: "prod-worker"}, {name: "IMAGECTL_VERSION", text: version}, {name: "IMAGECTL_DIGEST", text: digest},
		{name: "IMAGECTL_FILE_DIGEST", text: digest}, {name: "IMAGECTL_FLATCAR", text: "1.2.3"}, {name: "IMAGECTL_ROLE", text: "worker"},
	}
}

// Plant makes what is not ours: another user's images and template with our whole record,
// under our names, which everybody may use; copies that our own user made in Sunstone,
// which have the record and another name; and things that use the same words.
func (s *Server) Plant() (untouched func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(owner, name string, state int, a attrs) int {
		s.images[s.next] = &image{id: s.next, foreign: true, state: state, owner: owner, name: name, attrs: a, sizeMB: 3}
		s.next++
		return s.next - 1
	}
	template := func(owner, name string, a attrs) {
		s.templates[s.next] = &vmTemplate{id: s.next, foreign: true, owner: owner, name: name, attrs: a}
		s.next++
	}
	const version = "1.2.3-aaaaaaaa"
	digest := strings.Repeat("a", 64)
	add(Other, "prod-worker-1.2.3-bbbbbbbb", ready, attrs{{name: "IMAGECTL_NAME", text: "prod-worker"}})
	add(Other, "windows", ready, attrs{{name: "ERROR", text: "left by somebody"}})
	theirs := add(Other, "prod-worker-"+version, ready, record(version, digest))
	add(Other, "prod-worker-1.2.3-cccccccc", failed, record("1.2.3-cccccccc", strings.Repeat("c", 64)))
	copied := add(Session, "prod-worker-copy", ready, record(version, digest))
	disk := func(image int) attr {
		return attr{name: "DISK", pairs: attrs{{name: "IMAGE_ID", text: strconv.Itoa(image)}}}
	}
	template(Other, "prod-worker", append(record(version, digest), disk(theirs)))
	template(Session, "prod-worker-tuned", append(record(version, digest), disk(copied)))
	template(Session, "mine", attrs{{name: "CPU", text: "4"}})
	before := s.snapshot()
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if after := s.snapshot(); after != before {
			return fmt.Errorf("objects of others were\n%sand are\n%s", before, after)
		}
		return nil
	}
}

// Clone copies a user's template as Sunstone does: with all attributes, under another name.
func (s *Server) Clone(session, name, as string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.templates {
		if t.owner == session && t.name == name {
			s.templates[s.next] = &vmTemplate{id: s.next, owner: session, name: as, attrs: t.attrs}
			s.next++
			return nil
		}
	}
	return fmt.Errorf("%s has no template %q", session, name)
}

// snapshot is what Plant made, as it is.
func (s *Server) snapshot() string {
	var b strings.Builder
	for id := range s.next {
		if i := s.images[id]; i != nil && i.foreign {
			fmt.Fprintln(&b, i.id, i.name, i.state, i.vms, i.attrs.xml())
		}
		if t := s.templates[id]; t != nil && t.foreign {
			fmt.Fprintln(&b, t.id, t.name, t.attrs.xml())
		}
	}
	return b.String()
}

func (s *Server) write(id int, b []byte) error {
	return os.WriteFile(s.File(strconv.Itoa(id)), b, 0o600)
}
