package cli

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A server that sends its clients to another one, or to itself without TLS, gets them to
// take neither password nor token there.
func TestUploadFollowsNobodyElsewhere(t *testing.T) {
	s := newUploadSite(t)
	t.Setenv("SECRET", "hunter2")
	a := newAuthority(t)
	s.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})))
	var asked atomic.Int32
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusForbidden)
	}))
	t.Cleanup(thief.Close)
	var answer atomic.Int32
	good := a.front(true, time.Now().Add(time.Hour))
	good.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, thief.URL+r.URL.Path, int(answer.Load()))
	})
	for _, status := range []int{http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		answer.Store(int32(status))
		for _, p := range httpPlatforms() {
			// These take no ca here, and follow nobody (package rest); those are signed for
			// one request, and their bodies are images.
			if !p.ca || slices.Contains([]string{"s3", "oci"}, p.kind) {
				continue
			}
			name := "my-" + p.kind
			s.write("cluster.yaml", s.started+"\nupload:\n"+p.entry(name, good.URL, "ca: ca.pem"))
			code, out, errs := s.imagectl("upload", "list", name)
			if code != exitServer || !strings.Contains(errs, "sends us to "+thief.URL+", where neither password nor token is taken") {
				t.Errorf("%s, %d: exit code %d, want %d and what happened\n%s%s", p.kind, status, code, exitServer, out, errs)
			}
			if n := asked.Swap(0); n > 0 {
				t.Errorf("%s, %d: the other server was asked %d times", p.kind, status, n)
			}
		}
	}
}

func TestWhereAnAnswerSendsUs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status         int
		location, want string
	}{
		{308, "http://one.example.org/RPC2", "http://one.example.org"}, // the same host without TLS
		{307, "https://other.example.org/RPC2", "https://other.example.org"},
		{301, "https://one.example.org:8443/RPC2", "https://one.example.org:8443"},
		{302, "//other.example.org/", "https://other.example.org"},
		{303, "http://[::1", "a place that is no URL"},
		{301, "https://ONE.example.org/RPC2/", ""},
		{307, "/v2/", ""},
		{308, "", ""},
		{201, "https://other.example.org/", ""},
		{300, "https://other.example.org/", ""},
	} {
		r := httptest.NewRequest(http.MethodPost, "https://one.example.org/RPC2", nil)
		resp := &http.Response{StatusCode: tt.status, Header: http.Header{"Location": {tt.location}}}
		if got := elsewhere(r, resp); got != tt.want {
			t.Errorf("%d to %q: got %q, want %q", tt.status, tt.location, got, tt.want)
		}
	}
}
