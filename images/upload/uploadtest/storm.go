package uploadtest

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
)

// squall is a server that fails for a while: one request gets a 5xx several times over.
type squall struct {
	requests     int
	hits         func(n int, r *http.Request) bool
	status, left int
	key          string
	victim       *http.Request
}

// Storm answers the first HTTP request from now that is hit with a status, and so the
// next times-1 of the same method and URL, whoever sends them; n counts requests from
// 1. Heal ends it.
func (f *Faults) Storm(hits func(n int, r *http.Request) bool, status, times int) {
	f.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.storm = squall{hits: hits, status: status, left: times}
}

// stormy is the status that a request gets in the server's place; 0 for none.
func (f *Faults) stormy(r *http.Request) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, key := &f.storm, r.Method+" "+r.URL.String()
	s.requests++
	if s.victim == nil && s.hits != nil && s.hits(s.requests, r) {
		s.key, s.victim = key, r
	}
	if s.key != key || s.left == 0 {
		return 0
	}
	s.left--
	return s.status
}

// answered is the page of a proxy whose server fails.
func answered(r *http.Request, status int) *http.Response {
	if r.Body != nil {
		r.Body.Close()
	}
	return &http.Response{
		Status: strconv.Itoa(status) + " " + http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"text/html"}}, Body: io.NopCloser(bytes.NewReader([]byte("<h1>maintenance</h1>"))), Request: r,
	}
}

// stormTimes is how often a request fails: less than any of our clients tries.
const stormTimes = 2

// storms has each request of an upload fail for a while, with each status in turn. One
// that the client sends again does not break the upload; all others leave what the next
// run mends.
func storms(t *testing.T, start func(*testing.T) Platform) {
	count := set(t, start)
	count.needs(Storm)
	img := count.image(1)
	count.target = count.Patient(count.faults)
	count.must(img, true)
	count.faults.mu.Lock()
	requests := count.faults.storm.requests
	count.faults.mu.Unlock()
	again := 0
	for n := range requests + 1 {
		if count.Slow && n > 0 && n%4 != 1 {
			continue
		}
		hits := func(i int, _ *http.Request) bool { return i == n }
		if n == 0 {
			// The first of those that are sent again: where they come is for the platform's
			// pace to say, and a sample could miss them all.
			hits = func(_ int, r *http.Request) bool { return count.Repeats(r) }
		}
		status := []int{http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}[n%4]
		b := set(t, start)
		b.target = b.Patient(b.faults)
		b.faults.Storm(hits, status, stormTimes)
		out, err := b.run(b.Context(), img, true)
		victim := b.faults.storm.victim
		b.faults.Heal()
		if victim == nil {
			continue // There were less of them this time: some wait for the platform.
		}
		what := victim.Method + " " + victim.URL.Redacted()
		switch {
		case b.Repeats(victim):
			if again++; err != nil {
				t.Errorf("request %d of %d, %s, was answered with %d twice, and not sent again: %v", n, requests, what, status, err)
			}
		case err != nil && !errors.Is(err, upload.ErrServer) && !errors.Is(err, upload.ErrTimeout):
			t.Errorf("request %d of %d, %s, was answered with %d: %v, want ErrServer or ErrTimeout", n, requests, what, status, err)
		}
		if !b.recovers(img, out, err, "run again") {
			t.Errorf("that was request %d of %d, %s, answered with %d; the first run said: %v", n, requests, what, status, err)
		}
	}
	if again == 0 {
		t.Error("no request is one that is sent again")
	}
	t.Logf("%d requests, of which %d are sent again", requests, again)
}
