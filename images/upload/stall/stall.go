// Package stall tells an upload that is slow from one that does not go on: it counts
// the bytes on all of an upload's connections, both ways, and ends the upload when
// there were none for a time.
//
// It looks at connections, since every platform has them, by HTTP or without: what
// counts has gone to the kernel or come from it. What a platform does without a word
// (copying a disk, say) looks the same as a dead line; so the limit is to be longer
// than that. A connection that stands still beside others that move is no stall.
package stall

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

const (
	// Looks that find nothing new, one after the other, are a stall.
	Looks = 10
	// piece is what is written between two counts, in bytes: few enough for a line of
	// 64 kbit/s to be seen moving within a minute, and enough to cost nothing.
	piece = 256 << 10
)

// Watch counts bytes. It may be used by several goroutines; nil watches nothing.
type Watch struct {
	name  string
	limit time.Duration
	bytes atomic.Int64
}

// New returns a watch with a limit, and the name that users know the limit by; nil
// when the limit is 0.
func New(name string, limit time.Duration) *Watch {
	if limit <= 0 {
		return nil
	}
	return &Watch{name: name, limit: limit}
}

// Every is how long it has to be from one tick to the next; 0 for nil.
func (w *Watch) Every() time.Duration {
	if w == nil {
		return 0
	}
	return w.limit / Looks
}

// Bytes that its connections have carried, both ways.
func (w *Watch) Bytes() int64 {
	if w == nil {
		return 0
	}
	return w.bytes.Load()
}

// Start looks at each tick, and ends the context that it returns when Looks of them
// found nothing new; its cause is an upload.ErrTimeout then. The caller calls stop.
func (w *Watch) Start(ctx context.Context, ticks <-chan time.Time) (watched context.Context, stop func()) {
	if w == nil {
		return ctx, func() {}
	}
	watched, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.look(watched, ticks, cancel)
	}()
	return watched, func() {
		cancel(nil)
		<-done
	}
}

func (w *Watch) look(ctx context.Context, ticks <-chan time.Time, cancel context.CancelCauseFunc) {
	seen, idle := w.Bytes(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		if now := w.Bytes(); now != seen {
			seen, idle = now, 0
		} else if idle++; idle == Looks {
			cancel(fmt.Errorf("%w: %s %s is over, and no byte was sent or came in all that time", upload.ErrTimeout, w.name, w.limit))
			return
		}
	}
}

// Dialer opens a connection, as net.Dialer does.
type Dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// Dialer is a dialer whose connections are watched.
func (w *Watch) Dialer(dial Dialer) Dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return w.Conn(c), nil
	}
}

// Conn is a connection that is watched.
func (w *Watch) Conn(c net.Conn) net.Conn {
	if w == nil {
		return c
	}
	return &conn{c, w}
}

type conn struct {
	net.Conn
	watch *Watch
}

// Read implements io.Reader.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.watch.bytes.Add(int64(n))
	return n, err
}

// Write implements io.Writer.
func (c *conn) Write(b []byte) (int, error) {
	for done := 0; ; {
		n, err := c.Conn.Write(b[done:min(len(b), done+piece)])
		c.watch.bytes.Add(int64(n))
		if done += n; err != nil || done == len(b) {
			return done, err
		}
	}
}
