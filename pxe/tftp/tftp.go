// Package tftp serves a fixed set of small files, read only (RFC 1350 with the
// options blksize and tsize), to the network boot programs in ROMs.
//
// Requests come to a gate that lets only well-formed ones in, a bounded number at a
// time and one per client port; the others wait in a line. Transfers run in a few lanes,
// each of them one socket and one goroutine for many clients. There are no writes, no
// windows (RFC 7440), no directories and no files of a disk.
package tftp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/quirk"
)

const (
	// overhead4 and overhead6 are IP and UDP headers plus four bytes of TFTP: ROMs
	// cannot put fragments together.
	overhead4 = 20 + 8 + 4
	overhead6 = 40 + 8 + 4
	// defaultSessions is the number of transfers at a time. So many in lock-step keep
	// two processors busy; more would only make each of them slower, and nobody could
	// tell from the line how slow.
	defaultSessions = 128
	// spareTimes as many more may run while others have halted. With every tenth exchange
	// lost, most of a transfer is waiting; four times as many then keep the server busy.
	spareTimes = 3
	// maxLanes bounds the threads that wait for acknowledgements: one serves about a
	// gigabit a second, and while it waits it costs nothing.
	maxLanes = 4
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
	// Find is asked for names that are none of these; it may be nil, and it may block. They
	// are whole, in lower case, with slashes, and none at the beginning. The server closes
	// what it returns. When it knows the name and returns nil, the client is told that there
	// is no such file and nobody else.
	Find func(client netip.Addr, name string) (content io.ReadSeekCloser, known bool)
	// MTU of the boot network; 0 means 1500.
	MTU int
	// Sessions is how many transfers run at a time, 0 means 128. Those that wait for the
	// answer to a lost packet do not count, up to three times as many. Further requests wait
	// for their turn; when 4,096 do, others stay unanswered. One address has at most a
	// quarter of either.
	Sessions int
	// Started is told about each transfer, Waits about each request that has to wait,
	// with how many before it, and Loaded about each transfer that came to its end.
	// Each may be nil, and none may block.
	Started func(client netip.Addr, name string)
	Waits   func(client netip.Addr, before int)
	Loaded  func(client netip.Addr, name string)
	// Refused is told about each request that is turned down and each transfer that
	// fails, with one of the codes and a sentence; it may be nil, and may not block.
	Refused func(client netip.Addr, code, reason string)
	// Effect is what a client's firmware needs done differently; it may be nil.
	Effect func(client netip.Addr) quirk.Effect
	Meter  Meter
	Log    *slog.Logger
}

// Serve answers until ctx ends, then tells running transfers that it stops, closes
// conn and returns nil. conn is a UDP socket; transfers leave from its address.
func Serve(ctx context.Context, conn net.PacketConn, cfg Config) error {
	var sockets []*socket
	for range min(maxLanes, runtime.GOMAXPROCS(0)) {
		one, err := newSocket(conn.LocalAddr())
		if err != nil {
			return errors.Join(err, closeAll(sockets), conn.Close())
		}
		sockets = append(sockets, one)
	}
	s := newServer(cfg.complete(), overhead(conn), time.Now, sockets...)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.listen(ctx, conn) })
	for _, l := range s.lanes {
		g.Go(func() error { return l.run(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		for _, l := range s.lanes {
			l.stop()
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil // it had failed
	})
	err := g.Wait()
	s.finding.Wait()
	return errors.Join(err, closeAll(sockets)) // nobody uses them any more
}

func closeAll(sockets []*socket) error {
	var errs []error
	for _, s := range sockets {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// complete puts something in place of all that may be nil.
func (cfg Config) complete() Config {
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
	if cfg.Effect == nil {
		cfg.Effect = func(netip.Addr) quirk.Effect { return quirk.Effect{} }
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
	return cfg
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
