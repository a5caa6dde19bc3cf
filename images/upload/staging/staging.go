// Package staging lets a platform fetch an image that it takes only from a URL:
// an HTTP server that has each image under a path of its own, which cannot be
// guessed and ends with the upload. There is nothing else on it and no list.
//
// Platforms fetch the same file many times, break off, ask for parts and for the
// header only (OpenNebula 7.5 sends one HEAD and eight GETs for a raw image), so
// every request stands for itself. Bodies go from the file to the socket in the
// kernel.
package staging

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imagectl/imagectl/images/upload"
)

const (
	// headerLimit is how long a client may take to ask.
	headerLimit = 10 * time.Second
	// stallLimit is how long a client may take for one piece.
	stallLimit = 2 * time.Minute
	// piece is what is sent between two looks at the clock, in bytes: the most whole pages
	// that Linux sends as one segment to the card. Larger ones were half as fast
	// (docs/performance.md).
	piece = 60 << 10
)

// Server is an http.Handler, safe for concurrent use. The zero value serves
// nothing until something is staged, but has no URL to name: use New.
type Server struct {
	base string

	mu     sync.RWMutex
	staged map[string]*staged
}

type staged struct {
	name string
	img  upload.Image
	ev   upload.Events
	// passes is how many GETs began.
	passes atomic.Int64
}

// New returns a server that platforms reach at a base URL, such as
// http://10.0.0.5:8099.
func New(base string) *Server {
	return &Server{base: strings.TrimRight(base, "/"), staged: map[string]*staged{}}
}

// Stage implements upload.Source. It tells ev how far the platform reads, and writes
// nothing into the journal: what is staged ends with this process.
func (s *Server) Stage(_ context.Context, w upload.Wanted, _ upload.Journal, ev upload.Events) (url string, release func(), err error) {
	name := path.Base(w.Name)
	p := "/" + strings.ToLower(rand.Text()+rand.Text()) + "/" + name
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged[p] = &staged{name: name, img: w.Image, ev: ev}
	return s.base + p, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.staged, p)
	}, nil
}

// Clean implements upload.Source: it leaves nothing.
func (s *Server) Clean(context.Context, upload.Leftover) (bool, error) { return false, nil }

// Serve serves on a socket, which it closes, until ctx ends; what is being sent
// then is broken off.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{Handler: s, ReadHeaderTimeout: headerLimit, IdleTimeout: stallLimit, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the image: %w", err)
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	st, f, err := s.open(r.URL.Path)
	switch {
	case st == nil:
		http.NotFound(w, r)
		return
	case err != nil:
		http.Error(w, "the image cannot be read", http.StatusInternalServerError)
		st.ev(upload.Event{Phase: "front-end reading", Note: err.Error()})
		return
	}
	defer f.Close()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("ETag", `"`+st.img.SHA256+`"`)
	out := &counted{ResponseWriter: w, control: http.NewResponseController(w)}
	if r.Method == http.MethodGet {
		pass := st.passes.Add(1)
		phase := fmt.Sprintf("front-end reading, pass %d", pass)
		out.sent = func(n int64) { st.ev(upload.Event{Phase: phase, Done: n, Total: st.img.Size}) }
		out.sent(0)
	}
	http.ServeContent(out, r, st.name, time.Time{}, f)
}

// open finds what is staged and opens it for one request; nil when there is nothing.
// Its owner may close the file once release has returned, so it is not touched
// outside the lock.
func (s *Server) open(path string) (*staged, *os.File, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := s.staged[path]
	if st == nil {
		return nil, nil, nil
	}
	f, err := reopen(st.img.File)
	return st, f, err
}

// reopen gives a file of its own offset, so that the kernel can copy from it: the
// same one even where its path names another by now.
func reopen(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// counted says how much was sent, and gives each piece its time.
type counted struct {
	http.ResponseWriter
	control *http.ResponseController
	total   int64
	sent    func(int64)
}

// Write implements io.Writer.
func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.count(int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom: ServeContent copies n bytes of the file, and
// net/http hands a limited *os.File to the kernel.
func (c *counted) ReadFrom(src io.Reader) (int64, error) {
	from, left := src, int64(1<<62)
	if l, ok := src.(*io.LimitedReader); ok {
		from, left = l.R, l.N
	}
	var total int64
	for left > 0 {
		// No deadline where the connection has none to set.
		_ = c.control.SetWriteDeadline(time.Now().Add(stallLimit))
		n, err := io.CopyN(c.ResponseWriter, from, min(piece, left))
		total += n
		left -= n
		c.count(n)
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func (c *counted) count(n int64) {
	c.total += n
	if c.sent != nil {
		c.sent(c.total)
	}
}
