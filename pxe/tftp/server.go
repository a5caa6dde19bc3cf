package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path"
	"strings"
	"sync"
	"time"
)

// server is one call of Serve.
type server struct {
	Config
	// blockSize is the largest that fits the network.
	blockSize int
	now       func() time.Time
	lanes     []*lane

	mu      sync.Mutex
	line    line
	waiting map[netip.AddrPort]Request

	// finding are those that look for a file.
	finding sync.WaitGroup
}

func newServer(cfg Config, overhead int, now func() time.Time, sockets ...*socket) *server {
	s := &server{Config: cfg, blockSize: cfg.MTU - overhead, now: now, line: newLine(cfg.Sessions, spareTimes*cfg.Sessions, maxWaiting),
		waiting: map[netip.AddrPort]Request{}}
	for _, socket := range sockets {
		s.lanes = append(s.lanes, newLane(socket, max(s.blockSize, defaultBlockSize), cfg.Log, now, s.ended, s.begin))
	}
	return s
}

// start begins a transfer, or says that there is no such file.
func (s *server) start(client netip.AddrPort, r Request) {
	if content, ok := s.Files[r.File()]; ok {
		s.Started(client.Addr(), r.File())
		s.begins(newTransfer(r, client, s.now()), inMemory{bytes.NewReader(content)})
		return
	}
	if s.Find == nil {
		s.refuse(client, r.Name, false)
		return
	}
	// To find it may take longer than a lane can wait. There are not more of these than
	// places.
	s.finding.Go(func() {
		content, known := s.Find(client.Addr(), r.Path())
		if content == nil {
			s.refuse(client, r.Name, known)
			s.begin() // the place is free again
			return
		}
		t := newTransfer(r, client, s.now())
		t.found = true
		s.begins(t, content)
	})
}

// begins sends the first packet of a transfer.
func (s *server) begins(t *transfer, content io.ReadSeekCloser) {
	s.Meter.Begun()
	if err := t.open(content, s.blockSize); err != nil {
		s.lanes[0].refuse(t.client, 0, errUnreadable.Error())
		s.ended(t, err)
		return
	}
	s.emptiest().begin(t)
}

// inMemory is a file that needs no closing.
type inMemory struct{ *bytes.Reader }

// Close implements io.Closer.
func (inMemory) Close() error { return nil }

// refuse answers who asks for a file that there is not, which is no news when it is known.
func (s *server) refuse(client netip.AddrPort, asked string, known bool) {
	if !known {
		asked = printable(asked)
		s.Log.Info("no such file", "client", client.Addr(), "name", asked)
		s.Refused(client.Addr(), CodeNoSuchFile, fmt.Sprintf("there is no file %q here; its firmware was given another name", asked))
	}
	s.lanes[0].refuse(client, 1, "file not found")
	s.leave(client, true)
}

func (s *server) emptiest() *lane {
	best, least := s.lanes[0], s.lanes[0].busy()
	for _, l := range s.lanes[1:] {
		if n := l.busy(); n < least {
			best, least = l, n
		}
	}
	return best
}

// ended tells everybody that a transfer came to its end, and lets others begin.
func (s *server) ended(t *transfer, err error) {
	s.leave(t.client, err == nil) // first: who hears of the end may ask again at once
	t.close()
	s.Meter.Ended(t.name, t.sent, err == nil)
	if err == nil {
		s.Log.Debug("transfer done", "client", t.client.Addr(), "name", t.name, "duration", s.now().Sub(t.began))
		if !t.found {
			s.Loaded(t.client.Addr(), t.name)
		}
	} else {
		level := slog.LevelInfo
		if meant(err) {
			level = slog.LevelDebug
		}
		s.Log.Log(context.Background(), level, "transfer ended early", "client", t.client.Addr(), "name", t.name, "error", err)
	}
	if code, reason := t.why(err); code != "" {
		s.Refused(t.client.Addr(), code, reason)
	}
	if !errors.Is(err, errStopping) {
		s.begin()
	}
}

// clean reduces what firmware asks for to one of our names: directories in both
// styles, any case, and the \xff that ROMs append when they read past option 67.
func clean(name string) string { return path.Base(slashed(name)) }

// slashed is the same with its directories.
func slashed(name string) string {
	name = strings.TrimRightFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	name = path.Clean("/" + strings.ReplaceAll(name, `\`, "/"))
	return strings.ToLower(strings.TrimPrefix(name, "/"))
}

// printable makes a stranger's text fit for a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return '?'
		}
		return r
	}, s[:min(len(s), 80)])
}
