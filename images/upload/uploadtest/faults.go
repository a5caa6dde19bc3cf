package uploadtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Kind of a fault.
type Kind string

// The faults.
const (
	// Refused: the call does not reach the server.
	Refused Kind = "refused"
	// Lost: the server does it, and its answer does not arrive.
	Lost Kind = "lost"
	// Unavailable: a proxy answers 503 and the server hears nothing. Where there is
	// no HTTP it is Refused.
	Unavailable Kind = "unavailable"
	// Hangs: no answer comes until the caller's patience ends, which it does at once:
	// Patience is what to call with.
	Hangs Kind = "hangs"
)

// Faults lets remote calls fail. All of a target's calls go through it, as an
// http.RoundTripper or by Call. The zero value lets all pass, and counts.
type Faults struct {
	mu    sync.Mutex
	calls int
	at    int
	dead  bool
	kind  Kind
	out   chan struct{}
}

// errInjected is what a caller sees of a broken connection.
var errInjected = errors.New("connection reset by the test")

// Calls is how many there were.
func (f *Faults) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Fail lets the n-th call from now, counted from 1, fail, and with dead all after
// it: the network is gone, or the process was.
func (f *Faults) Fail(n int, kind Kind, dead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.at, f.kind, f.dead = 0, n, kind, dead
}

// Heal lets all calls pass.
func (f *Faults) Heal() { f.Fail(0, Refused, false) }

func (f *Faults) next() (Kind, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.at == 0 || f.calls < f.at || f.calls > f.at && !f.dead {
		return "", false
	}
	if f.calls > f.at && (f.kind == Lost || f.kind == Hangs) {
		// Only the first reached the server, or took all the patience there was.
		return Refused, true
	}
	if f.kind == Hangs && f.out != nil {
		select {
		case <-f.out:
		default:
			close(f.out)
		}
	}
	return f.kind, true
}

// Call makes a call that is no HTTP request.
func (f *Faults) Call(ctx context.Context, do func() error) error {
	kind, bad := f.next()
	switch {
	case !bad:
		return do()
	case kind == Lost:
		// What it did counts, what it said is lost.
		_ = do()
	case kind == Hangs:
		return f.hang(ctx)
	}
	return errInjected
}

// hang ends with the caller's patience, even where a call to tidy up has a context
// of its own.
func (f *Faults) hang(ctx context.Context) error {
	f.mu.Lock()
	out := f.out
	f.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-out:
		return context.DeadlineExceeded
	}
}

// Transport is a RoundTripper with faults over another.
func (f *Faults) Transport(base http.RoundTripper) http.RoundTripper {
	return transport{f, base}
}

type transport struct {
	f    *Faults
	base http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	kind, bad := t.f.next()
	if !bad {
		return t.base.RoundTrip(r)
	}
	if kind == Lost {
		resp, err := t.base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return nil, errInjected
	}
	if r.Body != nil {
		r.Body.Close()
	}
	switch kind {
	case Hangs:
		return nil, t.f.hang(r.Context())
	case Unavailable:
		return &http.Response{
			Status: "503 Service Unavailable", StatusCode: http.StatusServiceUnavailable, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Content-Type": {"text/html"}}, Body: io.NopCloser(bytes.NewReader([]byte("<h1>maintenance</h1>"))), Request: r,
		}, nil
	}
	return nil, errInjected
}

// Patience is a context whose deadline passes when a call hangs, and no sooner.
func (f *Faults) Patience(parent context.Context) context.Context {
	out := make(chan struct{})
	f.mu.Lock()
	f.out = out
	f.mu.Unlock()
	return patience{parent, out}
}

type patience struct {
	context.Context
	out chan struct{}
}

func (p patience) Done() <-chan struct{} { return p.out }

func (p patience) Err() error {
	select {
	case <-p.out:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// Deadline says that there is one; when it is does not matter here.
func (p patience) Deadline() (time.Time, bool) { return time.Time{}, false }
