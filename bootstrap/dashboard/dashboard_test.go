package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// hostile is what a machine could say about itself.
const hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\r\n\r\nevent: view\ndata: {}\n\n\u2028"

func machines() []Machine {
	return []Machine{
		{Name: "cp1", State: "installing", Reason: hostile, Refusal: &Refusal{Code: "no-such-file", Reason: hostile},
			Private: &Private{MACs: []string{"52:54:00:00:00:01"}, Address: "10.0.0.11", Log: []Event{{Stage: "nbp", Detail: hostile}}}},
		{Name: "w1", State: "ready", Private: &Private{MACs: []string{"52:54:00:00:00:02"}}},
		{Name: "52:54:00:00:00:99", Unlisted: true, Private: &Private{Address: "10.0.0.99"}},
	}
}

// stage is a dashboard whose view a test changes.
type stage struct {
	mu    sync.Mutex
	view  View
	looks int
}

func (s *stage) look() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks++
	v := s.view
	v.Machines = slices.Clone(v.Machines)
	return v
}

func (s *stage) set(f func(*View)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.view)
}

// put returns a server with HTTP/2 over TLS, as the real one; a request with the
// header Operator comes from one.
func put(t *testing.T, s *stage) *httptest.Server {
	t.Helper()
	d := New(Config{Look: s.look, Now: time.Now, Operator: func(r *http.Request) bool { return r.Header.Get("Operator") != "" }})
	mux := http.NewServeMux()
	for path, h := range d.Handlers() {
		mux.Handle("GET "+path, h)
	}
	srv := httptest.NewUnstartedServer(mux)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// message is one event as the page reads it.
type message struct {
	Operator bool
	View     View
	Order    []string
	Machines []Machine
}

// watch opens the stream. next returns its next event, in the line format of the
// HTML standard.
func watch(t *testing.T, srv *httptest.Server, operator bool) (next func() message, raw func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	if operator {
		req.Header.Set("Operator", "yes")
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" || resp.ProtoMajor != 2 {
		t.Fatalf("got %s, %s, %s", resp.Status, resp.Header.Get("Content-Type"), resp.Proto)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 16<<20)
	var last string
	next = func() message {
		t.Helper()
		last = ""
		for lines.Scan() {
			switch l := lines.Text(); {
			case l == "" && last != "":
				var m message
				if err := json.Unmarshal([]byte(last), &m); err != nil {
					t.Fatalf("%v in %s", err, last)
				}
				return m
			case strings.HasPrefix(l, "data: "):
				if last != "" {
					t.Fatal("an event of two data lines")
				}
				last = strings.TrimPrefix(l, "data: ")
			case l == "", l == "event: view", strings.HasPrefix(l, ":"):
			default:
				t.Fatalf("line %q", l)
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return message{}
	}
	return next, func() string { return last }
}

func TestEverybodySeesStatesAndOperatorsSeeAll(t *testing.T) {
	t.Parallel()
	srv := put(t, &stage{view: View{Cluster: "demo", Summary: hostile, Machines: machines()}})
	next, raw := watch(t, srv, false)
	m := next()
	if m.Operator || len(m.Machines) != 2 || m.Machines[0].Reason != hostile || m.Machines[0].Refusal.Reason != hostile || m.View.Summary != hostile {
		t.Errorf("got %+v", m)
	}
	for _, secret := range []string{"52:54", "10.0.0", "private", "log"} {
		if strings.Contains(raw(), secret) {
			t.Errorf("anybody sees %q: %s", secret, raw())
		}
	}
	operator, rawOperator := watch(t, srv, true)
	m = operator()
	if !m.Operator || len(m.Machines) != 3 || m.Machines[0].Private.Log[0].Detail != hostile || m.Machines[2].Name != "52:54:00:00:00:99" {
		t.Errorf("got %+v", m)
	}
	for _, text := range []string{raw(), rawOperator()} {
		if strings.ContainsAny(text, "<>&\u2028") {
			t.Errorf("markup leaves unescaped: %s", text)
		}
	}
}

func TestSentencesForAnybodyNameNoAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"refused 10.0.0.5: 10.0.0.5 is not in 10.0.1.0/24": "refused …: … is not in …/24",
		"no reservation for 52:54:00:AB:00:01":             "no reservation for …",
		"fe80::5054:ff:fe00:1 or 52-54-00-ab-00-01":        "… or …",
		"uuid 33333333-3333-4333-8333-333333333333, disk":  "uuid …, disk",
		"imagectl 4593.2.5 since 08:11:06, v1.36.3":        "imagectl 4593.2.5 since 08:11:06, v1.36.3",
	} {
		m := Machine{Reason: text, Activity: text, Refusal: &Refusal{Reason: text}, Private: &Private{Address: "10.0.0.1"}}
		got := m.public()
		if got.Reason != want || got.Activity != want || got.Refusal.Reason != want || got.Private != nil || m.Refusal.Reason != text {
			t.Errorf("%s: got %+v", text, got)
		}
	}
}

func TestOnlyChangesAreSent(t *testing.T) {
	t.Parallel()
	s := &stage{view: View{Cluster: "demo", Machines: machines()}}
	next, _ := watch(t, put(t, s), false)
	if got := next(); len(got.Machines) != 2 || !slices.Equal(got.Order, []string{"cp1", "w1"}) {
		t.Fatalf("first %+v", got)
	}
	s.set(func(v *View) {
		v.Machines[1].State = "failed"
		v.Machines[0].Private = &Private{Address: "10.0.0.12"} // not for this viewer
	})
	if got := next(); len(got.Machines) != 1 || got.Machines[0].Name != "w1" || got.Machines[0].State != "failed" || got.Order != nil {
		t.Errorf("a state: %+v", got)
	}
	s.set(func(v *View) { v.Ready = true })
	if got := next(); len(got.Machines) != 0 || !got.View.Ready {
		t.Errorf("the whole: %+v", got)
	}
	s.set(func(v *View) { v.Machines = v.Machines[1:2] })
	if got := next(); len(got.Machines) != 0 || !slices.Equal(got.Order, []string{"w1"}) {
		t.Errorf("a machine that is gone: %+v", got)
	}
	s.set(func(v *View) { v.Machines = machines()[:2] })
	if got := next(); len(got.Machines) != 2 || !slices.Equal(got.Order, []string{"cp1", "w1"}) {
		t.Errorf("it is back: %+v", got)
	}
}

// A thousand viewers cost as much as one.
func TestAllViewersShareOneLook(t *testing.T) {
	t.Parallel()
	s := &stage{view: View{Machines: machines()}}
	now := time.Now()
	d := New(Config{Look: s.look, Now: func() time.Time { return now }})
	first := d.frame()
	for range 100 {
		if d.frame() != first {
			t.Fatal("it looks again at once")
		}
	}
	now = now.Add(pause)
	second := d.frame()
	if second == first || s.looks != 2 {
		t.Errorf("after a pause: %d looks", s.looks)
	}
	v := viewer{sent: map[string]uint64{}}
	if v.news(first) == "" || v.news(second) != "" {
		t.Error("what did not change is news")
	}
	now = now.Add(-time.Hour)
	if d.frame() == second {
		t.Error("a clock that was set back stops it")
	}
}

func TestViewersAreBounded(t *testing.T) {
	t.Parallel()
	d := New(Config{})
	var leave []func()
	var ok bool
	for i := range maxViewers {
		l, ok := d.enter(false, fmt.Sprint("10.0.0.", i/maxPerAddress))
		if !ok {
			t.Fatalf("viewer %d is turned away", i)
		}
		leave = append(leave, l)
	}
	if _, ok := New(Config{}).enter(false, "10.0.0.0"); !ok {
		t.Error("an empty dashboard turns a viewer away")
	}
	leave[0]() // there is a place again, but not for an address that has its share
	if _, ok := d.enter(false, "10.0.0.1"); ok {
		t.Errorf("one address has more than %d places", maxPerAddress)
	}
	if leave[0], ok = d.enter(false, "10.0.0.0"); !ok {
		t.Error("the place is not free")
	}
	if _, ok := d.enter(false, "10.0.9.9"); ok {
		t.Error("no bound")
	}
	if l, ok := d.enter(true, "10.0.9.9"); !ok {
		t.Error("strangers keep operators out")
	} else {
		l()
	}
	for _, l := range leave {
		l()
	}
	if d.public != 0 || d.operators != 0 || len(d.viewers) != 0 {
		t.Errorf("left over: %d, %d, %v", d.public, d.operators, d.viewers)
	}
	full := New(Config{Operator: func(*http.Request) bool { return false }})
	full.public = maxViewers
	w := httptest.NewRecorder()
	full.Handlers()["/events"].ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/events", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("got %d", w.Code)
	}
}

// The page's own files, judged by a foreign parser: whatever it loads is here, and
// no script or style stands in the markup.
func TestPageNeedsNothingElse(t *testing.T) {
	t.Parallel()
	handlers := New(Config{}).Handlers()
	fetch := func(path string, header ...string) *http.Response {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		handlers[path].ServeHTTP(w, r)
		return w.Result()
	}
	resp := fetch("/")
	csp := resp.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} {
		if !slices.Contains(strings.Split(csp, "; "), want) {
			t.Errorf("the policy %q lacks %s", csp, want)
		}
	}
	if strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") {
		t.Errorf("policy %q", csp)
	}
	doc, err := html.Parse(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	loaded, phone := 0, false
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		phone = phone || n.Data == "meta" && slices.Contains(n.Attr, html.Attribute{Key: "name", Val: "viewport"}) && slices.Contains(n.Attr, html.Attribute{Key: "content", Val: "width=device-width, initial-scale=1"})
		if (n.Data == "script" || n.Data == "style") && n.FirstChild != nil {
			t.Errorf("a %s stands in the page", n.Data)
		}
		if n.Data == "input" && (n.Parent == nil || n.Parent.Data != "label") {
			t.Error("an input has no label")
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
				t.Errorf("<%s %s> is code in the page", n.Data, a.Key)
			}
			if a.Key == "src" || a.Key == "href" && a.Val != "data:," {
				if got := fetch(a.Val); got.StatusCode != http.StatusOK || got.Header.Get("X-Content-Type-Options") != "nosniff" {
					t.Errorf("%s: %s", a.Val, got.Status)
				}
				loaded++
			}
		}
	}
	if loaded != 2 || !phone {
		t.Errorf("it loads %d files, and has a viewport for phones: %v", loaded, phone)
	}
	style, err := io.ReadAll(fetch("/dashboard.css").Body)
	if err != nil || strings.Contains(string(style), "url(") || strings.Contains(string(style), "@import") {
		t.Errorf("the style loads something, or %v", err)
	}
	script, err := io.ReadAll(fetch("/dashboard.js").Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, sink := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", ".href", "http:", "https:"} {
		if strings.Contains(string(script), sink) {
			t.Errorf("the script uses %s", sink)
		}
	}
	if got := fetch("/events", "Sec-Fetch-Site", "cross-site"); got.StatusCode != http.StatusForbidden {
		t.Errorf("another site's page gets %s", got.Status)
	}
}

// BenchmarkFrame is one look at a thousand machines of which one changed.
func BenchmarkFrame(b *testing.B) {
	v := View{Cluster: "demo"}
	for i := range 1000 {
		v.Machines = append(v.Machines, Machine{Name: fmt.Sprint("w", i), State: "ready", Reason: "it is installed and boots its own disk",
			Private: &Private{MACs: []string{"52:54:00:00:00:01"}, Address: "10.0.0.1"}})
	}
	f := encode(v, nil, time.Now())
	for b.Loop() {
		v.Machines[7].Percent++
		f = encode(v, f, time.Now())
	}
}

func TestANoticeNamesNoAddress(t *testing.T) {
	t.Parallel()
	head := string(encode(View{Notice: "another DHCP server gives out addresses: 10.0.0.9 (last taken by 52:54:00:00:00:01 at 12:00:00 UTC)"}, nil, time.Now()).head)
	if !strings.Contains(head, `"notice":"another DHCP server gives out addresses: … (last taken by … at 12:00:00 UTC)"`) {
		t.Errorf("got %s", head)
	}
}
