// Package proxmoxtest is a node of Proxmox VE for tests: a stateful stand-in behind
// its HTTP API, written from the published sources of pve-storage 9 and qemu-server 9:
// tasks with exit status and log, machines without notes while they are made, VMIDs
// that exist once, checksums compared in the task, configurations that somebody else
// changed, templates that linked clones lie on, what a token may not do. It is not
// Proxmox VE: what it does not do was not looked at.
package proxmoxtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The token of the user that tests are, and the names of what there is.
const (
	Token  = "ops@pve!imagectl"
	Secret = "11111111-2222-3333-4444-555555555555"

	Node      = "pve1"
	Import    = "local"
	Datastore = "vmpool"
)

// Server is one node.
type Server struct {
	// URL of the API, without /api2/json.
	URL string

	mu       sync.Mutex
	machines map[int]*machine
	files    map[string][]byte
	stored   map[string]time.Time
	tasks    map[string]*task
	nextTask int
	avail    int64
	copies   bool
	hold     chan struct{}
	work     sync.WaitGroup
	discard  atomic.Bool
}

type machine struct {
	config map[string]string
	// changes makes the digest of the configuration.
	changes  int
	template bool
	lock     string
	// base is the VMID of the template that a linked clone lies on.
	base int
	disk []byte
}

type task struct {
	upid, kind, id string
	exit           string
	log            []string
	stopped        chan struct{}
	stop           sync.Once
}

// Start runs a node until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{machines: map[int]*machine{}, files: map[string][]byte{}, stored: map[string]time.Time{}, tasks: map[string]*task{}, avail: 100 << 30}
	h := httptest.NewServer(s)
	s.URL = h.URL
	t.Cleanup(func() {
		s.Release()
		s.work.Wait()
		h.Close()
	})
	return s
}

// Hold lets the making of machines wait until Release.
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

// Settle waits until no task runs.
func (s *Server) Settle() { s.work.Wait() }

// Fill leaves no room, as storages say; Break lets copies fail for it all the same,
// as when a quota of the file system is reached.
func (s *Server) Fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.avail = 1000
}

// Break is said at Fill.
func (s *Server) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies = true
}

// Things are machines and files, but those whose name begins with foreign.
func (s *Server) Things() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for id, m := range s.machines {
		if !strings.HasPrefix(m.config["name"], "foreign") {
			out = append(out, fmt.Sprintf("VM %d %s %s", id, m.config["name"], m.lock))
		}
	}
	for name := range s.files {
		if !strings.HasPrefix(name, "foreign") {
			out = append(out, "file "+name)
		}
	}
	slices.Sort(out)
	return out
}

// Disk is what a machine's disk was made of.
func (s *Server) Disk(id string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machine(id); m != nil {
		return m.disk
	}
	return nil
}

// File is one of a storage.
func (s *Server) File(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.files[name]
}

// Named is the configuration of the machine of a name, in lines; empty if there is none.
func (s *Server) Named(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, m := range s.machines {
		if m.config["name"] == name {
			for k, v := range m.config {
				out = append(out, k+": "+v+"\n")
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// PutFile makes a file of somebody else's.
func (s *Server) PutFile(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = []byte("somebody's")
}

// Config is a machine's.
func (s *Server) Config(id string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	if m := s.machine(id); m != nil {
		for k, v := range m.config {
			out[k] = v
		}
	}
	return out
}

func (s *Server) machine(id string) *machine {
	n, _ := strconv.Atoi(id)
	return s.machines[n]
}

// Put makes a machine of somebody else's.
func (s *Server) Put(id int, config map[string]string, template bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machines[id] = &machine{config: config, template: template}
}

// Change sets an option of a machine, as somebody in the web interface does.
func (s *Server) Change(id, option, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machine(id); m != nil {
		m.config[option] = value
		m.changes++
	}
}

// Clone makes a linked clone of a template; its notes and tags come with it.
func (s *Server) Clone(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machine(id)
	if m == nil || !m.template {
		return fmt.Errorf("VM %s is no template", id)
	}
	n, _ := strconv.Atoi(id)
	like := map[string]string{}
	for k, v := range m.config {
		like[k] = v
	}
	like["name"] = "foreign-clone"
	s.machines[100+len(s.machines)] = &machine{config: like, base: n}
	return nil
}

// Plant makes a template of somebody else's and a clone of one of ours, which has its
// notes and tags; the function says whether they are as they were.
func (s *Server) Plant() (untouched func() error) {
	notes := `Flatcar
    {"audit":{"imagectl":"1","name":"prod-worker","version":"4593.2.1-00000000","digest":"sha256:00"},"vmid":90000,"mark":"00"}`
	all := map[int]map[string]string{
		101: {"name": "foreign-template", "tags": "imagectl"},
		102: {"name": "foreign-w1", "tags": "imagectl;prod", "description": notes},
	}
	for id, c := range all {
		s.Put(id, c, id == 101)
	}
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for id := range all {
			if m := s.machines[id]; m == nil || m.changes != 0 || m.template != (id == 101) {
				return fmt.Errorf("VM %d is gone or changed", id)
			}
		}
		return nil
	}
}

// refusal is an answer that is none.
type refusal struct {
	status int
	text   string
	params map[string]string
}

func no(status int, format string, args ...any) *refusal {
	return &refusal{status: status, text: fmt.Sprintf(format, args...)}
}

func wrong(param, text string) *refusal {
	return &refusal{http.StatusBadRequest, "Parameter verification failed.\n", map[string]string{param: text}}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, is := strings.CutPrefix(r.URL.Path, "/api2/json/")
	if !is {
		http.NotFound(w, r)
		return
	}
	var data any
	bad := no(http.StatusUnauthorized, "invalid token value!")
	if r.Header.Get("Authorization") == "PVEAPIToken="+Token+"="+Secret {
		data, bad = s.route(r, strings.Split(path, "/"))
	}
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	answer := map[string]any{"data": data}
	if bad != nil {
		answer = map[string]any{"data": nil, "message": bad.text}
		if bad.params != nil {
			answer["errors"] = bad.params
		}
		w.WriteHeader(bad.status)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *Server) route(r *http.Request, p []string) (any, *refusal) {
	at := r.Method + " " + strings.Join(p, "/")
	switch {
	case at == "GET version":
		return map[string]string{"version": "9.0.3", "release": "9.0"}, nil
	case at == "GET cluster/resources":
		return s.resources(), nil
	case len(p) < 3 || p[0] != "nodes":
		return nil, no(http.StatusNotImplemented, "Method '%s' not implemented", at)
	case p[1] != Node:
		return nil, no(596, "no such cluster node '%s'", p[1])
	case p[2] == "storage" && len(p) >= 5:
		return s.storage(r, p[3], p[4:])
	case p[2] == "tasks":
		return s.serveTasks(r, p[3:])
	case at == "POST nodes/"+Node+"/qemu":
		return s.create(r)
	case p[2] == "qemu" && len(p) >= 4:
		return s.serveMachine(r, p[3], strings.Join(p[4:], "/"))
	}
	return nil, no(http.StatusNotImplemented, "Method '%s' not implemented", at)
}
