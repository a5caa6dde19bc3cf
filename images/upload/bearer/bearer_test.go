package bearer_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/bearer"
)

func TestCallsSayWhatThePlatformSaid(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   error
		text   string
	}{
		{"success", 201, `{"n": 7}`, nil, ""},
		{"an answer that is none", 200, `<html>`, upload.ErrServer, "calling POST /things: reading the answer: server failed: invalid character '<' looking for beginning of value"},
		{"a code that the platform's package knows", 403, `{"code": "full", "message": "no more"}`, upload.ErrSpace, "calling POST /things: no space: 403 Forbidden: full: no more"},
		{"one that it does not know", 403, `{"code": "forbidden", "message": "no"}`, upload.ErrAuth, "calling POST /things: not allowed: 403 Forbidden: forbidden: no"},
		{"a proxy's page", 503, `<h1>maintenance</h1>`, upload.ErrServer, "calling POST /things: server failed: 503 Service Unavailable: <h1>maintenance</h1>"},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var in struct{ A int }
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.A != 1 || r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: asked %v %+v %v", tt.name, r.Header, in, err)
			}
			w.WriteHeader(tt.status)
			if _, err := w.Write([]byte(tt.body)); err != nil {
				t.Error(err)
			}
		}))
		c := bearer.Client{Base: s.URL, Token: "secret", Transport: http.DefaultTransport, Tries: 1,
			Reason: func(body []byte) (string, string) {
				var a struct{ Code, Message string }
				_ = json.Unmarshal(body, &a)
				return a.Code, a.Message
			},
			Kind: func(r bearer.Refusal) error {
				if r.Code == "full" {
					return upload.ErrSpace
				}
				return nil
			}}
		var out struct{ N int }
		err := c.Do(t.Context(), http.MethodPost, "/things", map[string]int{"a": 1}, &out)
		s.Close()
		if !errors.Is(err, tt.want) || err != nil && err.Error() != tt.text || err == nil && out.N != 7 {
			t.Errorf("%s: got %v, %+v", tt.name, err, out)
		}
		var r *bearer.Refusal
		if tt.status/100 != 2 && (!errors.As(err, &r) || r.Status != tt.status) {
			t.Errorf("%s: no refusal of status %d in %v", tt.name, tt.status, err)
		}
	}
}
