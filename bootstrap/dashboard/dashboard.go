// Package dashboard is a page that shows every machine's way from power-on to
// Ready, live. It is read only: nothing on it changes anything.
//
// Without an operator's certificate it shows names, states, stages and reasons of
// the machines of cluster.yaml. Addresses, what machines say about themselves and
// those that cluster.yaml does not name are for operators.
//
// What machines say is hostile input. It leaves here as JSON only, the page's own
// script puts it on the screen as text, and the Content-Security-Policy allows no
// other script.
package dashboard

import (
	"embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

//go:embed page.html page.css page.js
var files embed.FS

// Bounds, since anybody may look.
const (
	// maxViewers is how many look at the same time, maxPerAddress how many of them
	// from one address. Places reserved for operators are on top.
	maxViewers, maxPerAddress = 48, 8
	operatorPlaces            = 16
	// pause is the least time between two looks at the machines, for all viewers
	// together, and between two messages to one.
	pause = time.Second
	// quiet is when a viewer is told that there is no news: proxies cut off what says
	// nothing.
	quiet = 15 * time.Second
	// patience is how long one message may take to leave. It is longer than quiet:
	// HTTP/2 ends a stream whose deadline passes, also when nothing is to be written.
	patience = 2 * quiet
	// lifetime is when a viewer has to come again: a certificate is looked at only at
	// the start.
	lifetime = time.Hour
)

// Machine is one machine as the page shows it.
type Machine struct {
	Name  string `json:"name"`
	Role  string `json:"role,omitempty"`
	Zone  string `json:"zone,omitempty"`
	State string `json:"state,omitempty"`
	// Since is when it came into its state, Seen when its agent last called.
	Since time.Time `json:"since,omitzero"`
	Seen  time.Time `json:"seen,omitzero"`
	// Stage is how far its newest boot has come, At since when; Over says that there
	// is nothing to wait for.
	Stage string    `json:"stage,omitempty"`
	At    time.Time `json:"at,omitzero"`
	Over  bool      `json:"over,omitempty"`
	// Reason is what it waits for, Activity what it does.
	Reason   string `json:"reason,omitempty"`
	Activity string `json:"activity,omitempty"`
	// Percent of an installation that runs.
	Percent int `json:"percent,omitempty"`
	// Alarm: an operator should look.
	Alarm bool `json:"alarm,omitempty"`
	// Refusal is the last one.
	Refusal *Refusal `json:"refusal,omitempty"`
	// Private is for operators.
	Private *Private `json:"private,omitempty"`
	// Unlisted: cluster.yaml does not name it. Only operators see those.
	Unlisted bool `json:"unlisted,omitempty"`
}

// address finds what tells an address or a UUID in a sentence.
var address = regexp.MustCompile(`(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|([0-9a-f]{2}-){5}[0-9a-f]{2}|([0-9a-f]{0,4}:){3,}[0-9a-f]{0,4}|[0-9]{1,3}(\.[0-9]{1,3}){3}`)

func hide(s string) string { return address.ReplaceAllString(s, "…") }

// public is what anybody may see of a machine: also its sentences name no address.
func (m Machine) public() Machine {
	m.Private, m.Reason, m.Activity = nil, hide(m.Reason), hide(m.Activity)
	if m.Refusal != nil {
		m.Refusal = &Refusal{Code: m.Refusal.Code, Reason: hide(m.Refusal.Reason), At: m.Refusal.At}
	}
	return m
}

// Refusal is why a machine did not get what it asked for.
type Refusal struct {
	Code   string    `json:"code"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

// Private is what only operators see.
type Private struct {
	MACs    []string `json:"macs,omitempty"`
	Address string   `json:"address,omitempty"`
	// Log is what the server saw of it last, oldest first.
	Log []Event `json:"log,omitempty"`
	// Console is what it said last by syslog, oldest first; the stage is the program
	// that speaks.
	Console []Event `json:"console,omitempty"`
}

// Event is one thing that the server saw of a machine.
type Event struct {
	At     time.Time `json:"at"`
	Stage  string    `json:"stage"`
	Detail string    `json:"detail"`
}

// View is everything at one moment.
type View struct {
	Cluster string `json:"cluster"`
	// Ready and Summary are about the whole.
	Ready   bool   `json:"ready"`
	Summary string `json:"summary"`
	// Notice is a sentence on what is wrong with the boot network; often empty. It is
	// shown without its addresses.
	Notice string `json:"notice,omitempty"`
	// Machines have different names.
	Machines []Machine `json:"-"`
}

// Config is what a Dashboard works with. All fields are needed.
type Config struct {
	// Look returns the present view from memory; it is called at most once a second.
	Look func() View
	// Operator tells whose request it is.
	Operator func(*http.Request) bool
	Now      func() time.Time
}

// Dashboard serves the page to a bounded number of viewers.
type Dashboard struct {
	cfg Config

	mu sync.Mutex
	// last is the newest frame.
	last *frame
	// viewers by address; operators are not in it.
	viewers   map[string]int
	public    int
	operators int
}

// New returns a Dashboard.
func New(cfg Config) *Dashboard {
	return &Dashboard{cfg: cfg, viewers: map[string]int{}}
}

// Handlers are the page's parts by path.
func (d *Dashboard) Handlers() map[string]http.Handler {
	file := func(name, contentType string) http.Handler {
		return guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := files.ReadFile(name)
			if err != nil {
				http.Error(w, "this file is not in the program", http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", contentType)
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			_, _ = w.Write(b) // a viewer that went away is not our failure
		}))
	}
	return map[string]http.Handler{
		"/":              file("page.html", "text/html; charset=utf-8"),
		"/dashboard.css": file("page.css", "text/css; charset=utf-8"),
		"/dashboard.js":  file("page.js", "text/javascript; charset=utf-8"),
		"/events":        guarded(http.HandlerFunc(d.events)),
	}
}

// guarded sets what browsers are told about everything here, and turns away what
// another site's page asks for.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if site := r.Header.Get("Sec-Fetch-Site"); r.URL.Path != "/" && site != "" && site != "same-origin" && site != "none" {
			http.Error(w, "this is only for the page of this server", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// enter takes a place for a viewer; leave gives it back.
func (d *Dashboard) enter(operator bool, from string) (leave func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case operator && d.operators < operatorPlaces:
		d.operators++
		return func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.operators--
		}, true
	case d.public >= maxViewers || d.viewers[from] >= maxPerAddress:
		return nil, false
	}
	d.public++
	d.viewers[from]++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.public--
		if d.viewers[from]--; d.viewers[from] == 0 {
			delete(d.viewers, from)
		}
	}, true
}

// events streams what changes, as server-sent events.
func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		return
	}
	operator := d.cfg.Operator(r)
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	leave, ok := d.enter(operator, from)
	if !ok {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many viewers, try again", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // there is nothing more to read
	send := func(text string) bool {
		// Without deadlines (a recorder in a test) the server's own remain.
		_ = out.SetWriteDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprint(w, text); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	end := time.NewTimer(lifetime)
	defer end.Stop()
	s := viewer{operator: operator, sent: map[string]uint64{}}
	for silent := time.Duration(0); ; silent += pause {
		if text := s.news(d.frame()); text != "" {
			if !send(text) {
				return
			}
			silent = 0
		} else if silent >= quiet {
			if !send(": nothing new\n\n") {
				return
			}
			silent = 0
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// frame is a view, encoded once for all viewers. It is immutable.
type frame struct {
	at      time.Time
	version uint64
	// head is the view without its machines.
	head        []byte
	headVersion uint64
	rows        []row
}

// row is one machine. version is that of the frame in which it changed last.
type row struct {
	name                          string
	public, private               []byte // public is nil when only operators see it
	publicVersion, privateVersion uint64
}

// frame returns the present frame; at most once a pause it looks anew.
func (d *Dashboard) frame() *frame {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.cfg.Now()
	if d.last != nil && now.Sub(d.last.at) < pause/2 && !now.Before(d.last.at) {
		return d.last
	}
	d.last = encode(d.cfg.Look(), d.last, now)
	return d.last
}

func encode(v View, old *frame, now time.Time) *frame {
	f := &frame{at: now, version: 1}
	before := map[string]row{}
	if old != nil {
		f.version = old.version + 1
		for _, r := range old.rows {
			before[r.name] = r
		}
	}
	v.Notice = hide(v.Notice)
	f.head, f.headVersion = marshal(v), f.version
	if old != nil && string(old.head) == string(f.head) {
		f.headVersion = old.headVersion
	}
	for _, m := range v.Machines {
		r := row{name: m.Name, private: marshal(m), privateVersion: f.version, publicVersion: f.version}
		if !m.Unlisted {
			r.public = marshal(m.public())
		}
		if was, ok := before[m.Name]; ok {
			if string(was.private) == string(r.private) {
				r.privateVersion = was.privateVersion
			}
			if string(was.public) == string(r.public) {
				r.publicVersion = was.publicVersion
			}
		}
		f.rows = append(f.rows, r)
	}
	return f
}

// marshal escapes <, > and & besides what JSON asks for.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("{}") // there is nothing in these types that cannot be encoded
	}
	return b
}

// viewer is what one viewer has been sent: the version of each row.
type viewer struct {
	operator bool
	sent     map[string]uint64
	head     uint64
	// order are the names in the order that it knows.
	order []string
}

// news is a message with what a viewer does not know yet; empty when there is none.
func (s *viewer) news(f *frame) string {
	var rows []byte
	var order []string
	for _, r := range f.rows {
		content, version := r.public, r.publicVersion
		if s.operator {
			content, version = r.private, r.privateVersion
		}
		if content == nil {
			continue
		}
		order = append(order, r.name)
		if s.sent[r.name] == version {
			continue
		}
		s.sent[r.name] = version
		if rows != nil {
			rows = append(rows, ',')
		}
		rows = append(rows, content...)
	}
	moved := !slices.Equal(order, s.order)
	if rows == nil && !moved && s.head == f.headVersion {
		return ""
	}
	names := []byte("null")
	if moved {
		for _, gone := range s.order {
			if !slices.Contains(order, gone) {
				delete(s.sent, gone)
			}
		}
		s.order = order
		names = marshal(order)
	}
	s.head = f.headVersion
	return fmt.Sprintf("event: view\ndata: {\"now\":%d,\"operator\":%v,\"view\":%s,\"order\":%s,\"machines\":[%s]}\n\n", f.at.UnixMilli(), s.operator, f.head, names, rows)
}
