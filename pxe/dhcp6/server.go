package dhcp6

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/dhcp"
	"github.com/imagectl/imagectl/pxe/journal"
)

const (
	// maxPacket is more than any client's MTU; what fills it is cut off and ignored.
	maxPacket = 4096
	// maxPending bounds the answers that wait for the disk. The rest is dropped:
	// clients repeat their request.
	maxPending = 4096
)

// Source is what the server asks about machines and the network.
type Source interface {
	boot.Source
	// Network6 is immutable.
	Network6() *boot.Network6
}

// Store keeps leases across restarts. It is called by one goroutine at a time.
type Store interface {
	Load() ([]Lease, error)
	// Append returns when the changes, in their order, are durable.
	Append([]Lease) error
}

// Meter counts. Its methods do not block and are safe for concurrent use.
type Meter interface {
	// Received counts a packet of that many bytes: its message type ("v6-other" when it
	// is for no server) and the code of the decision.
	Received(kind, code string, bytes int)
	// Sent counts so many replies with so many bytes in all.
	Sent(replies, bytes int)
	// Waiting adds to the number of answers that wait for the disk.
	Waiting(more int)
	// Others6 is called once, with what tells which other servers give out addresses.
	Others6(func() []Other)
}

// Config is what a server needs. All fields but Holds, Peers, the lines, Recorder, Meter, Log
// and Now are required; Store only where addresses are given out.
type Config struct {
	// Address is ours on the boot network: boot files come from it.
	Address netip.Addr
	DUID    dhcpv6.DUID
	// Peers are the names of further servers that share the Store.
	Peers []dhcpv6.DUID
	// Line and HTTPLine are those of DHCP: a machine loads the same programs.
	Line, HTTPLine *admit.Line
	Files          BootFiles
	Source         Source
	// Holds are the machines of cluster.yaml whose addresses a card has by leases of
	// DHCPv4; nil for none.
	Holds    func(net.HardwareAddr) []string
	Store    Store
	Recorder boot.Recorder
	Meter    Meter
	Log      *slog.Logger
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// Server answers requests on its socket.
type Server struct {
	Config
	mu     sync.Mutex
	table  *Table
	others others
}

// NewServer loads the leases.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Meter == nil {
		cfg.Meter = unmetered{}
	}
	var leases []Lease
	if cfg.Store != nil {
		var err error
		if leases, err = cfg.Store.Load(); err != nil {
			return nil, err
		}
	}
	s := &Server{Config: cfg, table: NewTable(leases), others: others{}}
	cfg.Meter.Others6(s.otherServers)
	return s, nil
}

// unmetered counts nothing.
type unmetered struct{}

func (unmetered) Received(string, string, int) {}
func (unmetered) Sent(int, int)                {}
func (unmetered) Waiting(int)                  {}
func (unmetered) Others6(func() []Other)       {}

// pending is an answer that waits until its leases are durable.
type pending struct {
	client boot.Machine
	name   string
	leases []Lease
	reply  []byte
	to     net.Addr
}

// Serve answers what comes to conn until ctx ends, then closes it and returns nil.
// Call it once.
//
// One goroutine reads and decides; another one makes leases durable, many at a time,
// and sends the answers that depended on them. Nothing else is started, so a flood
// costs time but no memory.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan pending, maxPending)
	g.Go(func() error {
		<-ctx.Done()
		return conn.Close()
	})
	if shared, ok := s.Store.(Shared); ok {
		g.Go(func() error { return s.follow(ctx, shared) })
	}
	g.Go(func() error {
		defer close(queue)
		return s.read(ctx, conn, queue)
	})
	g.Go(func() error {
		s.commit(conn, queue)
		return nil
	})
	return g.Wait()
}

func (s *Server) read(ctx context.Context, conn net.PacketConn, queue chan<- pending) error {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading DHCPv6 requests: %w", err)
		}
		udp, ok := from.(*net.UDPAddr)
		if n == len(buf) || !ok {
			continue
		}
		p := s.handle(buf[:n], udp)
		if p.reply == nil {
			continue
		}
		if len(p.leases) == 0 {
			s.send(conn, p)
			continue
		}
		s.Meter.Waiting(1)
		select {
		case queue <- p:
		default:
			s.Meter.Waiting(-1)
			s.Log.Warn("request dropped", "code", "overloaded", "reason", "leases wait for the disk", "pending", maxPending)
			s.refuse(p, "overloaded", fmt.Sprintf("no answer: %d answers wait for the disk already; it asks again", maxPending))
		}
	}
}

// handle decides over one packet and changes the table.
func (s *Server) handle(packet []byte, from *net.UDPAddr) pending {
	req, err := dhcpv6.FromBytes(packet)
	if err != nil {
		s.Log.Debug("packet ignored", "code", "malformed", "error", err)
		s.Meter.Received("v6-other", "malformed", len(packet))
		return pending{}
	}
	if err := s.notReady(); err != nil {
		s.Log.Debug("packet ignored", "code", "store-failed", "error", err)
		s.Meter.Received("v6-other", "store-failed", len(packet))
		return pending{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	env := Env{Now: s.Now(), From: from.AddrPort().Addr(), Server: s.Address, DUID: s.DUID, Peers: s.Peers,
		Network: s.Source.Network6(), Leases: s.table, Answer: s.answer, Files: s.Files}
	if s.Line != nil {
		env.Line = s.Line
	}
	if s.HTTPLine != nil {
		env.HTTPLine = s.HTTPLine
	}
	d := Decide(req, env)
	if d.Verdict != nil {
		line := s.Line
		if d.Client.Stage == dhcp.HTTPBoot {
			line = s.HTTPLine
		}
		line.Note(d.Client.place(), d.Answer.Name != "", *d.Verdict, env.Now)
	}
	if d.Code == "peer-server" {
		for _, line := range []*admit.Line{s.Line, s.HTTPLine} {
			if line != nil {
				line.Left(d.Client.place())
			}
		}
	}
	s.Meter.Received(kind(d.Type), d.Code, len(packet))
	s.report(d)
	p := pending{client: d.Client.machine(), name: d.Answer.Name, leases: d.Changes, to: destination(from, req.IsRelay())}
	for _, l := range d.Changes {
		s.table.put(l)
	}
	if d.Reply != nil {
		p.reply = d.Reply.ToBytes()
	}
	return p
}

// answer decides about a machine that asks, and so is here.
func (s *Server) answer(m boot.Machine) boot.Answer {
	m.Here = true
	if s.Holds != nil {
		m.Holds = s.Holds(m.MAC)
	}
	return s.Source.Decide(m)
}

// destination is who sent the packet, at the port of its part (RFC 8415 section 7.2).
func destination(from *net.UDPAddr, relay bool) *net.UDPAddr {
	to := *from
	if to.Port = dhcpv6.DefaultClientPort; relay {
		to.Port = dhcpv6.DefaultServerPort
	}
	return &to
}

// kind keeps what a stranger sends from becoming a word of ours.
func kind(t dhcpv6.MessageType) string {
	switch t {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeConfirm,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeInformationRequest:
		return "v6-" + strings.ToLower(t.String())
	}
	return "v6-other"
}

// Card is the network card that has an address now. It is safe for concurrent use.
func (s *Server) Card(a netip.Addr) (net.HardwareAddr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.table.ByAddr(a)
	if !ok || l.State != Bound || !l.active(s.Now()) {
		return nil, false
	}
	mac, err := net.ParseMAC(l.Client)
	return mac, err == nil && len(mac) == 6
}

// noteOther takes in which other server a client chose, and tells the operator where
// there should be none, or only one.
func (s *Server) noteOther(d Decision) {
	if d.Other == nil {
		return
	}
	name := d.Other.ToBytes()
	if len(name) > maxDUID {
		return // nobody's
	}
	now := s.Now()
	tell := s.others.note(duidText(name), d.Client.Key, now)
	if notice := Notice(s.Source.Network6().Stateless, s.others.recent(now)); tell && notice != "" {
		s.Log.Warn("another DHCPv6 server answers", "client", d.Client.Key, "code", d.Code, "reason", notice)
	}
}

func (s *Server) otherServers() []Other {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.others.recent(s.Now())
}

// report records what a netbooting machine got. Silence towards a stranger's broken
// packet is only a debug line.
func (s *Server) report(d Decision) {
	s.Log.Debug("request", "mac", d.Client.MAC, "client", d.Client.Key, "type", d.Type, "stage", d.Client.Stage, "code", d.Code, "reason", d.Reason)
	s.noteOther(d)
	if s.Recorder == nil || d.Client.MAC == (dhcp.MAC{}) || (!d.Client.boots() && d.Code != "decline" && d.Code != "pool-exhausted") {
		return
	}
	detail := fmt.Sprintf("%s from %s by IPv6: %s", d.Type, d.Client.Stage, d.Reason)
	if d.Client.boots() && d.Reply != nil && d.Answer.Reason != "" {
		detail += "; " + d.Answer.Reason
	}
	e := boot.Event{At: s.Now(), Machine: d.Client.machine(), Stage: boot.StageDHCP, Detail: detail,
		Name: d.Answer.Name, Firmware: d.Client.Stage != dhcp.IPXE}
	if d.Client.Stage == dhcp.HTTPBoot {
		e.Action = d.Answer.Action
	}
	switch d.Code {
	case "advertise":
		e.Offer = boot.OfferAddress
	case "proxy-advertise":
		e.Offer = boot.OfferProgram
	}
	if d.Refused {
		e.Detail += " (" + d.Code + ")"
		e.Refusal = boot.Refusal{Code: d.Code, Reason: d.Reason}
	}
	s.Recorder.Record(e)
}

// refuse records that an answer which was ready does not leave.
func (s *Server) refuse(p pending, code, reason string) {
	if s.Recorder != nil {
		s.Recorder.Record(boot.Event{At: s.Now(), Machine: p.client, Stage: boot.StageDHCP, Detail: reason + " (" + code + ")", Name: p.name,
			Refusal: boot.Refusal{Code: code, Reason: reason}})
	}
}

// commit makes leases durable in groups and then answers. When the store fails nobody
// is answered: the client asks again.
func (s *Server) commit(conn net.PacketConn, queue <-chan pending) {
	leases := func(p pending) []Lease { return p.leases }
	keep := func(all []Lease) error { return s.Store.Append(all) } // there may be no Store, and then nothing waits
	journal.Commit(queue, leases, journal.Gather, keep, func(batch []pending, err error) {
		s.Meter.Waiting(-len(batch))
		kept, lost, now, err := journal.Yield(batch, leases, err)
		if err != nil {
			s.Log.Error("leases not kept, requests stay unanswered", "code", "store-failed", "error", err, "requests", len(batch))
			for _, p := range batch {
				s.refuse(p, "store-failed", "no answer: the server cannot write its leases, see its log")
			}
			return
		}
		s.yield(lost, now)
		for _, p := range kept {
			s.send(conn, p)
		}
	})
}

func (s *Server) send(conn net.PacketConn, p pending) {
	_, err := conn.WriteTo(p.reply, p.to)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		s.Log.Warn("reply not sent", "to", p.to, "error", err)
	}
	if err == nil {
		s.Meter.Sent(1, len(p.reply))
	}
}
