package uploadtest

import (
	"io"
	"net"
	"net/http"
	"sync"
)

// Halfway is where one upload stands while another goes on. The zero value is nowhere.
type Halfway struct {
	// least is the size of a body that is the file's, and streamed how many bytes go over
	// connections until the middle of it; the one that is 0 is not looked at.
	least, streamed int64
	reached, on     chan struct{}
	goOn            func()
}

// Reached is closed when the upload stands.
func (h *Halfway) Reached() <-chan struct{} { return h.reached }

// GoOn lets it go on, and never stops it again.
func (h *Halfway) GoOn() { h.goOn() }

// stand tells that the middle is reached, and returns when the upload may go on.
func (h *Halfway) stand() {
	close(h.reached)
	<-h.on
}

// Stand holds what is sent from now on, once: in the middle of the first body of at least so
// many bytes or, where least is 0, before the byte goes out that is the streamed-th over
// connections (Conn).
func (f *Faults) Stand(least, streamed int64) *Halfway {
	h := &Halfway{least: least, streamed: streamed, reached: make(chan struct{}), on: make(chan struct{})}
	h.goOn = sync.OnceFunc(func() { close(h.on) })
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streamed, f.halfway = 0, h
	return h
}

// Streamed is how many bytes went out over connections since the last Fail.
func (f *Faults) Streamed() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streamed
}

// stands gives where a body of so many bytes is to be held; nil for nowhere.
func (f *Faults) stands(size int64) *Halfway {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.halfway
	if h == nil || h.least == 0 || size < h.least {
		return nil
	}
	f.halfway = nil
	return h
}

// Conn counts what goes out over a connection whose bytes are no HTTP request's.
func (f *Faults) Conn(c net.Conn) net.Conn { return conn{c, f} }

type conn struct {
	net.Conn
	f *Faults
}

// Write implements net.Conn.
func (c conn) Write(p []byte) (int, error) {
	c.f.mu.Lock()
	c.f.streamed += int64(len(p))
	h := c.f.halfway
	if h == nil || h.streamed == 0 || c.f.streamed < h.streamed {
		h = nil
	} else {
		c.f.halfway = nil
	}
	c.f.mu.Unlock()
	if h != nil {
		h.stand()
	}
	return c.Conn.Write(p)
}

// held is a request whose body stands in its middle.
func held(r *http.Request, size int64, h *Halfway) *http.Request {
	return withBody(r, &standing{ReadCloser: r.Body, left: size / 2, stand: sync.OnceFunc(h.stand)})
}

type standing struct {
	io.ReadCloser
	left  int64
	stand func()
}

func (s *standing) Read(b []byte) (int, error) {
	if s.left <= 0 {
		s.stand()
		return s.ReadCloser.Read(b)
	}
	n, err := s.ReadCloser.Read(b[:min(int64(len(b)), s.left)])
	s.left -= int64(n)
	return n, err
}
