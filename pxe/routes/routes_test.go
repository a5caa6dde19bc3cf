package routes

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
)

func TestWhatIsServedIsListed(t *testing.T) {
	t.Parallel()
	var m Mux
	m.Handle("GET /b/{name}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.PathValue("name")) }))
	m.HandleFunc("/a", func(http.ResponseWriter, *http.Request) {})
	if got := m.Patterns(); !slices.Equal(got, []string{"/a", "GET /b/{name}"}) {
		t.Errorf("it lists %q", got)
	}
	r := httptest.NewRequest(http.MethodGet, "/b/x", nil)
	w := httptest.NewRecorder()
	if m.ServeHTTP(w, r); w.Body.String() != "x" || m.Pattern(r) != "GET /b/{name}" {
		t.Errorf("got %q by %q", w.Body, m.Pattern(r))
	}
	if got := m.Pattern(httptest.NewRequest(http.MethodGet, "/c", nil)); got != "" {
		t.Errorf("what is not served falls under %q", got)
	}
}
