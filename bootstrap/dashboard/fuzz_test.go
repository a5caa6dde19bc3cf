package dashboard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// Whatever is asked, and whatever machines say of themselves, a viewer gets one of the
// page's parts with the page's policy, or a view that is one event of JSON; and nobody but
// an operator gets an address, what a machine said, or one that is not listed.
func FuzzHandlers(f *testing.F) {
	const get = " HTTP/1.1\r\nHost: x\r\n"
	for _, s := range []string{"GET /" + get, "GET /events" + get, "GET /events" + get + "Operator: yes\r\n", "HEAD /events" + get,
		"GET /events" + get + "Sec-Fetch-Site: cross-site\r\n", "GET /dashboard.js" + get + "Range: bytes=1-\r\n", "GET /dashboard.css" + get + "Sec-Fetch-Site: none\r\n",
		"POST /events" + get + "Content-Length: 3\r\n", "GET /page.html" + get, "GET //events?x=../" + get} {
		f.Add([]byte(s+"\r\n"), "w1", hostile)
		f.Add([]byte(s+"\r\n"), "\xff\u2028", "it has 10.0.0.77, and 52:54:00:00:00:77 of ::ffff:10.0.0.77x10.0.0.77")
	}
	const address, mac, said, stranger = "10.0.0.77", "52:54:00:00:00:77", "what only operators hear", "a machine that nobody lists"
	f.Fuzz(func(t *testing.T, raw []byte, name, sentence string) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		for _, only := range []string{said, stranger} {
			if strings.Contains(name+sentence, only) {
				return
			}
		}
		if strings.Contains(name, address) || strings.Contains(name, mac) {
			return // it is the operator who names machines
		}
		view := View{Cluster: name, Summary: "to be armed: " + name, Notice: sentence, Machines: []Machine{
			{Name: name, State: "failed", Reason: sentence, Activity: sentence, Refusal: &Refusal{Code: "x", Reason: sentence}, Private: &Private{
				MACs: []string{mac}, Address: address, Log: []Event{{Stage: "nbp", Detail: said + sentence}}, Console: []Event{{Stage: name, Detail: said + sentence}}}},
			{Name: stranger, Unlisted: true, Reason: sentence, Private: &Private{Address: address}},
		}}
		d := New(Config{Look: func() View { return view }, Now: func() time.Time { return time.Unix(1_800_000_000, 0) },
			Operator: func(r *http.Request) bool { return r.Header.Get("Operator") != "" }})
		h := d.Handlers()[r.URL.Path]
		if h == nil {
			return
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a viewer that leaves after the first message
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(ctx))
		if w.Header().Get("Content-Security-Policy") == "" || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%q is answered with %v", raw, w.Header())
		}
		body := w.Body.String()
		operator := r.Header.Get("Operator") != ""
		for _, only := range []string{address, mac, said, stranger} {
			if !operator && strings.Contains(body, only) {
				t.Errorf("%q gets %q: %s", raw, only, body)
			}
		}
		if w.Header().Get("Content-Type") != "text/event-stream" {
			return
		}
		text, ok := strings.CutPrefix(body, "event: view\ndata: ")
		text, whole := strings.CutSuffix(text, "\n\n")
		var m message
		if err := json.Unmarshal([]byte(text), &m); !ok || !whole || strings.ContainsAny(text, "\r\n") || err != nil || m.Operator != operator {
			t.Errorf("%q gets %q, %v", raw, body, err)
		}
		if d.public != 0 || d.operators != 0 || len(d.viewers) != 0 {
			t.Errorf("places stay taken: %d, %d, %v", d.public, d.operators, d.viewers)
		}
	})
}
