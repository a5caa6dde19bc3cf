package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/limit"
)

const (
	// maxConns bounds HTTP connections; a rack that boots at once waits in the
	// kernel's queue.
	maxConns = 1024
	// maxConnsEach is how many of them one client may have.
	maxConnsEach = maxConns / 4
	// idleTime is how long a connection without a request keeps its place. iPXE leaves
	// its own open when the kernel takes over and never says so; what it finds closed
	// it opens again.
	idleTime = 5 * time.Second
	// stopTime is how long open HTTP transfers may go on after the end was asked for.
	stopTime = 5 * time.Second
)

// HTTPTask serves h on l. Handlers that send much set their own write deadline.
func HTTPTask(name string, l net.Listener, h http.Handler, log *slog.Logger) Task {
	return httpTask(name, l, h, log, usual())
}

func usual() manner { return manner{header: 5 * time.Second, idle: idleTime, stop: stopTime} }

// bootTLSTask serves UEFI, which may need seconds for each step of a handshake that
// any other client makes at once.
func bootTLSTask(l net.Listener, h http.Handler, cfg *tls.Config, log *slog.Logger, m manner) Task {
	const slow = 30 * time.Second
	m.header, m.idle, m.stop = slow, slow, stopTime
	return httpTask("https boot", tls.NewListener(l, cfg), h, log, m)
}

// manner is how a server treats its clients.
type manner struct {
	// These are how long it waits: for a handshake and a request's header each, for
	// another request, and at its end for those that run.
	header, idle, stop time.Duration
	// single is limit.Source's; it may be nil.
	single func(netip.Addr) bool
	// state hears what becomes of connections, as http.Server's ConnState does; it may be
	// nil.
	state func(net.Conn, http.ConnState)
}

func httpTask(name string, l net.Listener, h http.Handler, log *slog.Logger, wait manner) Task {
	if m, ok := h.(interface{ Patterns() []string }); ok {
		log.Debug("routes", "server", name, "patterns", m.Patterns())
	}
	return Task{name, func(ctx context.Context) error {
		limited := limit.New(l, maxConns, maxConnsEach)
		limited.Single = wait.single
		s := &http.Server{
			Handler:           h,
			ReadHeaderTimeout: wait.header,
			ReadTimeout:       30 * time.Second,
			WriteTimeout:      time.Minute,
			IdleTimeout:       wait.idle,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(log.With("server", name).Handler(), slog.LevelDebug),
			ConnState: func(c net.Conn, s http.ConnState) {
				limited.Left(c, s)
				if wait.state != nil {
					wait.state(c, s)
				}
			},
		}
		var g errgroup.Group
		stopped := make(chan struct{})
		g.Go(func() error {
			defer close(stopped)
			if err := s.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		g.Go(func() error {
			select {
			case <-ctx.Done():
			case <-stopped:
				return nil
			}
			graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait.stop)
			defer cancel()
			if s.Shutdown(graceful) != nil {
				return s.Close() // whoever still fetches resumes from the next server
			}
			return nil
		})
		return g.Wait()
	}}
}
