package uploadtest

import (
	"net/http"
	"net/http/httptest"
)

// InProcess carries requests to a handler without a socket, for suites that make
// thousands of them.
func InProcess(h http.Handler) http.RoundTripper { return inProcess{h} }

type inProcess struct{ h http.Handler }

// RoundTrip implements http.RoundTripper.
func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	t.h.ServeHTTP(w, in)
	in.Body.Close()
	resp := w.Result()
	resp.Request = r
	return resp, nil
}
