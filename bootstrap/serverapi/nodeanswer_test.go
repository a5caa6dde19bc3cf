package serverapi

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"connectrpc.com/connect"
)

// envelope is one of Connect's and gRPC's.
func envelope(flags byte, text string) string {
	n := len(text)
	return string([]byte{flags, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + text
}

func TestHowAnswersEnd(t *testing.T) {
	t.Parallel()
	const stream, unary, grpc, web = "application/connect+proto", "application/proto", "application/grpc", "application/grpc-web+proto"
	trailer := func(status string) http.Header { return http.Header{"Grpc-Status": {status}} }
	long := envelope(0, strings.Repeat("x", 3*endMax))
	for what, c := range map[string]struct {
		kind    string
		status  int
		body    string
		trailer http.Header
		want    string
	}{
		"one message":            {unary, 200, "anything", nil, "done"},
		"an error":               {"application/json", 404, `{"code":"not_found","message":"x"}`, nil, "not_found"},
		"an error of no code":    {"text/plain", 502, "bad gateway", nil, "unavailable"},
		"a stream":               {stream, 200, long + envelope(2, "{}"), nil, "done"},
		"an empty stream":        {stream, 200, envelope(2, `{"metadata":{}}`), nil, "done"},
		"a stream's error":       {stream, 200, long + envelope(0, "") + envelope(2, `{"error":{"code":"unauthenticated"}}`), nil, "unauthenticated"},
		"a word that is none":    {stream, 200, envelope(2, `{"error":{"code":"ada was here"}}`), nil, "unknown"},
		"a stream that broke":    {stream, 200, long, nil, "unavailable"},
		"an end that broke":      {stream, 200, envelope(2, `{"error":{"code":"unauthenticated"}}`)[:12], nil, "unavailable"},
		"what looks like an end": {stream, 200, envelope(0, envelope(2, "{}")) + envelope(2, `{"error":{"code":"internal"}}`), nil, "internal"},
		"gRPC":                   {grpc, 200, long, trailer("0"), "done"},
		"gRPC's error":           {grpc, 200, long, trailer("7"), "permission_denied"},
		"gRPC's silence":         {grpc, 200, long, nil, "unavailable"},
		"gRPC's new word":        {grpc, 200, "", trailer("99"), "unknown"},
		"gRPC-Web":               {web, 200, long + envelope(0x80, "grpc-status: 0\r\n"), nil, "done"},
		"gRPC-Web's error":       {web, 200, long + envelope(0x80, "grpc-message: x\r\nGRPC-Status: 5\r\n"), nil, "not_found"},
		"gRPC-Web that broke":    {web, 200, long, nil, "unavailable"},
	} {
		for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.body), "byte by byte": iotest.OneByteReader(strings.NewReader(c.body))} {
			resp := &http.Response{StatusCode: c.status, Header: http.Header{"Content-Type": {c.kind}}, Body: io.NopCloser(in), Trailer: c.trailer}
			a := newAnswer(resp)
			got, err := io.ReadAll(a)
			if err != nil || string(got) != c.body || a.bytes != int64(len(c.body)) {
				t.Errorf("%s, %s: it was changed (%v)", what, how, err)
			}
			if r := a.result(); r != c.want {
				t.Errorf("%s, %s: %s, want %s", what, how, r, c.want)
			}
		}
	}
	resp := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {stream}}, Body: io.NopCloser(strings.NewReader(long))}
	a := newAnswer(resp)
	if _, err := io.CopyN(io.Discard, a, 100); err != nil || a.result() != "canceled" {
		t.Errorf("nobody listens any more: %s, %v", a.result(), err)
	}
	resp.Body = io.NopCloser(iotest.ErrReader(errors.New("the cable is out")))
	if a = newAnswer(resp); a.result() != "canceled" {
		t.Error(a.result())
	}
	if _, err := io.ReadAll(a); err == nil || a.result() != "unavailable" {
		t.Errorf("the node has gone: %s, %v", a.result(), err)
	}
}

// Nothing that a node sends becomes a word of the log.
func FuzzAnswer(f *testing.F) {
	kinds := []string{"application/connect+proto", "application/proto", "application/grpc", "application/grpc-web", "x"}
	for i := range kinds {
		f.Add(byte(i), []byte(envelope(0, "x")+envelope(2, `{"error":{"code":"internal"}}`)+envelope(0x81, "grpc-status: 3")))
	}
	known := map[string]bool{"done": true}
	for c := connect.CodeCanceled; c <= connect.CodeUnauthenticated; c++ {
		known[c.String()] = true
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		a := newAnswer(&http.Response{StatusCode: 200 + 300*int(kind>>7), Header: http.Header{"Content-Type": {kinds[int(kind)%len(kinds)]}}, Body: io.NopCloser(bytes.NewReader(body))})
		if got, err := io.ReadAll(a); err != nil || !bytes.Equal(got, body) {
			t.Errorf("it was changed: %v", err)
		}
		if r := a.result(); !known[r] && !strings.HasPrefix(r, "code_") {
			t.Errorf("a word of nobody: %q", r)
		}
		if len(a.end) > endMax {
			t.Errorf("%d bytes are kept", len(a.end))
		}
	})
}
