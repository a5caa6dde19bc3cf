package uploadtest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"
)

// withBody is a request with another body, which nobody can have a second time.
func withBody(r *http.Request, body io.ReadCloser) *http.Request {
	r = r.Clone(r.Context())
	r.Body, r.GetBody = body, nil
	return r
}

// part is the beginning of a body; what comes then is end's error.
type part struct {
	io.ReadCloser
	left int64
	end  func() error
}

func (p *part) Read(b []byte) (int, error) {
	if p.left <= 0 {
		return 0, p.end()
	}
	n, err := p.ReadCloser.Read(b[:min(int64(len(b)), p.left)])
	p.left -= int64(n)
	return n, err
}

// stall stops in the middle of the request's body or, where it has none, of the
// answer's; where that has none either, before the answer.
func (t transport) stall(r *http.Request, size int64) (*http.Response, error) {
	ctx := r.Context()
	if size > 0 {
		stop := func() error { return t.f.stall(ctx) }
		// The server is told to the end of it, as by a connection that is closed.
		_ = t.lose(withBody(r, &part{ReadCloser: r.Body, left: size / 2, end: stop}).WithContext(context.WithoutCancel(ctx)))
		return nil, t.f.stall(ctx)
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		// There was no answer to stop in the middle of: a client that tries TLS first.
		t.f.putOff()
		return nil, err
	}
	whole, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	if len(whole) == 0 {
		return nil, t.f.stall(ctx)
	}
	resp.Body = &part{ReadCloser: io.NopCloser(bytes.NewReader(whole)), left: int64(len(whole)) / 2, end: func() error { return t.f.stall(ctx) }}
	return resp, nil
}

const (
	// pieces that a body is taken in, and the pause before each: enough for whatever
	// counts on getting all at once to fail, and little for a suite of many calls.
	pieces = 16
	rest   = time.Millisecond
)

func (t transport) trickle(r *http.Request, size int64) (*http.Response, error) {
	if size > 0 {
		r = withBody(r, &trickle{ReadCloser: r.Body, ctx: r.Context(), most: int(size/pieces) + 1})
	}
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	const unsaid = 64
	most := unsaid
	if resp.ContentLength > 0 {
		most = int(resp.ContentLength/pieces) + 1
	}
	resp.Body = &trickle{ReadCloser: resp.Body, ctx: r.Context(), most: most}
	return resp, nil
}

// trickle is a body that comes in small pieces.
type trickle struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // A body is read without one.
	most int
}

func (s *trickle) Read(b []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	case <-time.After(rest):
	}
	return s.ReadCloser.Read(b[:min(len(b), s.most)])
}
