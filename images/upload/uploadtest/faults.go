package uploadtest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/imagectl/imagectl/images/upload/stall"
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
	// Cut: the connection is cut when half of the request's body has gone. A call
	// without a body is Refused.
	Cut Kind = "cut"
	// Stalls: nothing goes on when half of the request's body has gone, or of the answer
	// where the request has none, until the caller's patience ends, which it does then.
	Stalls Kind = "stalls"
	// Trickles: the request's body is taken and the answer given in small pieces, with a
	// pause before each. The call succeeds. Where there is no HTTP nothing happens.
	Trickles Kind = "trickles"
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
	// silent lets time pass, once, until the caller's watch has had enough, and closes out.
	silent func()
	// sent are the sizes of the calls' bodies; least is the size that the first call
	// to fail has, where that is what it is chosen by.
	sent  []int64
	least int64
	storm squall
	// streamed are the bytes that went out over connections, halfway is where what is sent
	// is held.
	streamed int64
	halfway  *Halfway
	// see is shown every request.
	see func(*http.Request)
}

// unknown is the size of a body whose length is not said before.
const unknown = 1 << 20

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
	f.calls, f.at, f.kind, f.dead, f.sent, f.least, f.storm, f.streamed = 0, n, kind, dead, nil, 0, squall{}, 0
}

// FailSending lets the first call from now fail whose body has at least so many bytes,
// and all after it.
func (f *Faults) FailSending(least int64, kind Kind) {
	f.Fail(0, kind, true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.least = least
}

// Sent are the sizes of the bodies of all calls since the last Fail.
func (f *Faults) Sent() []int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.sent)
}

// Heal lets all calls pass.
func (f *Faults) Heal() { f.Fail(0, Refused, false) }

// next says what becomes of a call with a body of so many bytes.
func (f *Faults) next(size int64) (Kind, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	f.sent = append(f.sent, size)
	if f.at == 0 && f.least > 0 && size >= f.least {
		f.at = f.calls
	}
	if f.at == 0 || f.calls < f.at || f.calls > f.at && !f.dead {
		return "", false
	}
	if f.calls > f.at {
		switch f.kind {
		case Lost, Cut:
			// Only the first reached the server.
			return Refused, true
		case Hangs, Stalls:
			// The first takes all the patience there is. Those beside it hear nothing
			// either until then, and are not refused before it.
			return Hangs, true
		}
	}
	if f.kind == Hangs {
		f.giveUp()
	}
	return f.kind, true
}

// putOff has the next call fail instead of this one.
func (f *Faults) putOff() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = f.calls + 1
}

// giveUp ends the caller's patience. The lock is held.
func (f *Faults) giveUp() {
	if f.out == nil {
		return
	}
	if f.silent != nil {
		// It must not wait for who holds the lock.
		go f.silent()
		return
	}
	select {
	case <-f.out:
	default:
		close(f.out)
	}
}

// stall ends the caller's patience, and fails when it has ended.
func (f *Faults) stall(ctx context.Context) error {
	f.mu.Lock()
	f.giveUp()
	f.mu.Unlock()
	return f.hang(ctx)
}

// Call makes a call that is no HTTP request.
func (f *Faults) Call(ctx context.Context, do func() error) error {
	kind, bad := f.next(0)
	switch {
	case !bad || kind == Trickles:
		return do()
	case kind == Lost:
		// What it did counts, what it said is lost.
		_ = do()
	case kind == Hangs:
		return f.hang(ctx)
	case kind == Stalls:
		return f.stall(ctx)
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
	t.f.show(r)
	if status := t.f.stormy(r); status != 0 {
		return answered(r, status), nil
	}
	size := r.ContentLength
	if r.Body == nil || r.Body == http.NoBody {
		size = 0
	} else if size < 0 {
		size = unknown
	}
	kind, bad := t.f.next(size)
	if h := t.f.stands(size); h != nil {
		r = held(r, size, h)
	}
	if !bad {
		return t.base.RoundTrip(r)
	}
	switch kind {
	case Lost:
		if err := t.lose(r); err != nil {
			return nil, err
		}
		return nil, errInjected
	case Cut:
		if size > 0 {
			// What the server makes of half a body counts, what it says is lost.
			_ = t.lose(withBody(r, &part{ReadCloser: r.Body, left: size / 2, end: func() error { return io.ErrUnexpectedEOF }}))
			return nil, errInjected
		}
	case Stalls:
		return t.stall(r, size)
	case Trickles:
		return t.trickle(r, size)
	}
	if r.Body != nil {
		r.Body.Close()
	}
	switch kind {
	case Hangs:
		return nil, t.f.hang(r.Context())
	case Unavailable:
		return answered(r, http.StatusServiceUnavailable), nil
	}
	return nil, errInjected
}

// lose makes a call whose answer does not arrive.
func (t transport) lose(r *http.Request) error {
	resp, err := t.base.RoundTrip(r)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// Watched is a context that ends by a watch on connections when a call hangs, which
// has time pass, and no sooner. The caller calls stop.
func (f *Faults) Watched(parent context.Context, w *stall.Watch) (ctx context.Context, stop func()) {
	out, ticks := make(chan struct{}), make(chan time.Time)
	ctx, stop = w.Start(parent, ticks)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out, f.silent = out, sync.OnceFunc(func() {
		defer close(out)
		for ctx.Err() == nil {
			select {
			case ticks <- time.Time{}:
			case <-ctx.Done():
			}
		}
	})
	return ctx, stop
}

// Patience is a context whose deadline passes when a call hangs, and no sooner.
func (f *Faults) Patience(parent context.Context) context.Context {
	out := make(chan struct{})
	f.mu.Lock()
	f.out, f.silent = out, nil
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
