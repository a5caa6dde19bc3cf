package syslog

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	// perSecond and burst bound what one address says: a kernel that starts has a
	// thousand lines.
	perSecond, burst = 100, 2000
	// maxSources bounds how many addresses are heard at a time; who was silent for
	// sourceTime makes room.
	maxSources = 4096
	sourceTime = time.Minute
	// maxPacket is more than any sender's MTU.
	maxPacket = 8 << 10
)

// Line is one line of a machine.
type Line struct {
	At time.Time
	// App is the program that speaks; often empty.
	App, Text string
}

// Meter counts. Its methods do not block.
type Meter interface {
	// Heard counts a packet that is kept, Dropped one of who says too much.
	Heard()
	Dropped()
}

// Config is what a receiver needs. Meter and Now may be nil.
type Config struct {
	// Take gets every line with its sender's address; it must not block.
	Take  func(netip.Addr, Line)
	Meter Meter
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// source is an address that is heard.
type source struct {
	limit *rate.Limiter
	last  time.Time
	// dropped counts packets since the last one that was kept.
	dropped int
}

// receiver is not safe for concurrent use.
type receiver struct {
	Config
	sources map[netip.Addr]*source
}

func newReceiver(cfg Config) *receiver {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &receiver{Config: cfg, sources: map[netip.Addr]*source{}}
}

// Serve hears until ctx ends, then closes conn and returns nil.
func Serve(ctx context.Context, conn net.PacketConn, cfg Config) error {
	r := newReceiver(cfg)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		return conn.Close()
	})
	g.Go(func() error {
		buf := make([]byte, maxPacket)
		for {
			n, from, err := conn.ReadFrom(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading syslog: %w", err)
			}
			if udp, ok := from.(*net.UDPAddr); ok {
				r.hear(udp.AddrPort().Addr().Unmap(), buf[:n])
			}
		}
	})
	return g.Wait()
}

// hear takes one packet.
func (r *receiver) hear(from netip.Addr, packet []byte) {
	now := r.Now()
	s := r.sources[from]
	if s == nil {
		if len(r.sources) >= maxSources && !r.forget(now) {
			r.count(Meter.Dropped)
			return
		}
		s = &source{limit: rate.NewLimiter(perSecond, burst)}
		r.sources[from] = s
	}
	s.last = now
	if !s.limit.AllowN(now, 1) {
		s.dropped++
		r.count(Meter.Dropped)
		return
	}
	r.count(Meter.Heard)
	if s.dropped > 0 {
		r.Take(from, Line{At: now, App: "imagectl", Text: fmt.Sprintf("%d packets before this one were not kept: more than %d a second", s.dropped, perSecond)})
		s.dropped = 0
	}
	m := Parse(packet)
	for _, text := range m.Lines {
		r.Take(from, Line{At: now, App: m.App, Text: text})
	}
}

func (r *receiver) count(how func(Meter)) {
	if r.Meter != nil {
		how(r.Meter)
	}
}

// forget makes room for others.
func (r *receiver) forget(now time.Time) bool {
	for a, s := range r.sources {
		if now.Sub(s.last) >= sourceTime {
			delete(r.sources, a)
		}
	}
	return len(r.sources) < maxSources
}
