// Package tftp serves a fixed set of small files, read only (RFC 1350 with the
// options blksize and tsize), to the network boot programs in ROMs.
//
// The protocol is github.com/pin/tftp's. In front of it stands a gate that lets
// only well-formed read requests in, a bounded number at a time and one per
// client port: the library opens a socket for each. The others wait in a line.
package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/quirk"
)

const (
	// overhead4 and overhead6 are IP and UDP headers plus four bytes of TFTP: ROMs
	// cannot put fragments together.
	overhead4 = 20 + 8 + 4
	overhead6 = 40 + 8 + 4
	// A packet without an answer is sent again after timeout, then each time a step
	// later: that gives a client 15 s of silence before its transfer ends. In lock-step
	// every lost packet costs the whole first wait, so it is short; a packet too many
	// does no harm, since the library answers no repeated acknowledgement.
	timeout = 500 * time.Millisecond
	step    = 200 * time.Millisecond
	retries = 10
	// defaultSessions is the number of transfers at a time. So many in lock-step keep
	// two processors busy; more would only make each of them slower, and nobody could
	// tell from the line how slow.
	defaultSessions = 128
)

// Meter counts. Its methods do not block and are safe for concurrent use.
type Meter interface {
	// Begun counts a transfer that starts.
	Begun()
	// Ended counts its end: the file, the bytes that were sent, and whether that was
	// all of it.
	Ended(file string, sent int64, whole bool)
}

// Refusal codes.
const (
	// CodeOverloaded: as many run and wait as may.
	CodeOverloaded = "overloaded"
	// CodeNoSuchFile: the name is none of ours.
	CodeNoSuchFile = "no-such-file"
)

// Config is what a server needs. Only Files is required.
type Config struct {
	// Files by name, lower case and without a directory. They are not changed.
	Files map[string][]byte
	// Find is asked for names that are none of these; it may be nil. They are whole, in
	// lower case, with slashes, and none at the beginning. The server closes what it
	// returns. When it knows the name and returns nil, the client is told that there is no
	// such file and nobody else.
	Find func(client netip.Addr, name string) (content io.ReadSeekCloser, known bool)
	// MTU of the boot network; 0 means 1500.
	MTU int
	// Sessions is how many transfers run at a time, 0 means 128. Further requests wait
	// for their turn; when 4,096 do, others stay unanswered. One address has at most a
	// quarter of either.
	Sessions int
	// Started is told about each transfer, Waits about each request that has to wait,
	// with how many before it, and Loaded about each transfer that came to its end.
	// Each may be nil, and none may block.
	Started func(client netip.Addr, name string)
	Waits   func(client netip.Addr, before int)
	Loaded  func(client netip.Addr, name string)
	// Refused is told about each request that is turned down, with one of the codes
	// and a sentence; it may be nil.
	Refused func(client netip.Addr, code, reason string)
	// Effect is what a client's firmware needs done differently; it may be nil.
	Effect func(client netip.Addr) quirk.Effect
	Meter  Meter
	Log    *slog.Logger
}

// Serve answers until ctx ends, then lets running transfers fail at their next
// block, closes conn and returns nil.
func Serve(ctx context.Context, conn net.PacketConn, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Started == nil {
		cfg.Started = func(netip.Addr, string) {}
	}
	if cfg.Waits == nil {
		cfg.Waits = func(netip.Addr, int) {}
	}
	if cfg.Loaded == nil {
		cfg.Loaded = func(netip.Addr, string) {}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(netip.Addr, string, string) {}
	}
	if cfg.Meter == nil {
		cfg.Meter = unmetered{}
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	if cfg.Sessions == 0 {
		cfg.Sessions = defaultSessions
	}
	g := newGate(conn, cfg.Sessions, time.Now)
	g.crowded = cfg.Waits
	g.overloaded = func(client netip.Addr, reason string) { cfg.Refused(client, CodeOverloaded, reason) }
	if cfg.Effect != nil {
		g.effect = cfg.Effect
	}
	h := handler{Config: cfg, ctx: ctx, gate: g}
	s := tftp.NewServer(h.read, nil)
	// With the library's own negotiation off, the block size is the client's wish up
	// to this limit; the library itself would allow four bytes too many.
	s.SetBlockSizeNegotiation(false)
	s.SetBlockSize(cfg.MTU - overhead(conn))
	s.SetTimeout(timeout)
	s.SetRetries(retries)
	s.SetBackoff(func(attempt int) time.Duration { return time.Duration(attempt) * step })
	s.SetHook(hook{cfg.Log})

	var tasks errgroup.Group
	tasks.Go(func() error {
		g.listen()
		return nil
	})
	tasks.Go(func() error { return s.Serve(g) })
	tasks.Go(func() error {
		select {
		case <-ctx.Done():
		case <-g.broken:
		}
		s.Shutdown()
		// The library closes the socket only if it had begun to serve.
		return errors.Join(g.Close(), g.failure())
	})
	return tasks.Wait()
}

func overhead(conn net.PacketConn) int {
	if udp, ok := conn.LocalAddr().(*net.UDPAddr); ok && udp.IP.To4() == nil {
		return overhead6
	}
	return overhead4
}

// unmetered counts nothing.
type unmetered struct{}

func (unmetered) Begun()                    {}
func (unmetered) Ended(string, int64, bool) {}

// handler answers read requests. It lives as long as one call of Serve, whose
// context it therefore may hold.
type handler struct {
	Config
	ctx  context.Context
	gate *gate
}

// errNotFound goes to the client as TFTP error 1.
var errNotFound = errors.New("file not found")

func (h handler) read(name string, rf io.ReaderFrom) error {
	t, ok := rf.(tftp.OutgoingTransfer)
	if !ok {
		return fmt.Errorf("sending %q: the transfer has no address", name)
	}
	udp := t.RemoteAddr()
	client := netip.AddrPortFrom(udp.AddrPort().Addr().Unmap(), udp.AddrPort().Port())
	content, ok := h.Files[clean(name)]
	if !ok {
		return h.find(client, name, rf)
	}
	h.Started(client.Addr(), clean(name))
	whole := h.send(clean(name), bytes.NewReader(content), rf)
	if whole {
		h.Loaded(client.Addr(), clean(name))
	}
	h.gate.leave(client, whole)
	return nil
}

// find serves what is not there under its last part alone.
func (h handler) find(client netip.AddrPort, name string, rf io.ReaderFrom) error {
	var content io.ReadSeekCloser
	known := false
	if h.Find != nil {
		content, known = h.Find(client.Addr(), slashed(name))
	}
	if content == nil {
		defer h.gate.leave(client, true)
		if !known {
			h.Log.Info("no such file", "client", client.Addr(), "name", printable(name))
			h.Refused(client.Addr(), CodeNoSuchFile, fmt.Sprintf("there is no file %q here; its firmware was given another name", printable(name)))
		}
		return errNotFound
	}
	defer content.Close()
	h.gate.leave(client, h.send(clean(name), content, rf))
	return nil
}

// send sends a file and says whether that was all of it.
func (h handler) send(name string, content io.ReadSeeker, rf io.ReaderFrom) bool {
	// The hook logs the outcome; after a failure the library has told the client.
	h.Meter.Begun()
	n, err := rf.ReadFrom(stopper{content, h.ctx})
	h.Meter.Ended(name, n, err == nil)
	return err == nil
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

// stopper is a file that ends with an error when the server stops. The library
// finds its size through Seek.
type stopper struct {
	io.ReadSeeker
	ctx context.Context
}

func (s stopper) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, errors.New("server is stopping")
	}
	return s.ReadSeeker.Read(p)
}

// hook logs ends of transfers.
type hook struct{ log *slog.Logger }

// OnSuccess implements tftp.Hook.
func (h hook) OnSuccess(s tftp.TransferStats) {
	h.log.Debug("transfer done", "client", s.RemoteAddr, "name", printable(s.Filename), "duration", s.Duration)
}

// OnFailure implements tftp.Hook. UEFI asks for the size first and aborts with
// error 8; ROMs do it with error 0: neither is a failure.
func (h hook) OnFailure(s tftp.TransferStats, err error) {
	level := slog.LevelInfo
	if s.RemoteAddr == nil || errors.Is(err, errNotFound) || strings.Contains(err.Error(), "code=8") || strings.Contains(err.Error(), "code=0") {
		level = slog.LevelDebug
	}
	h.log.Log(context.Background(), level, "transfer ended early", "client", s.RemoteAddr, "name", printable(s.Filename), "error", printable(err.Error()))
}
