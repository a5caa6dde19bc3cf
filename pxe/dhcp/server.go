package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/pxe/admit"
	"github.com/imagectl/imagectl/pxe/boot"
	"github.com/imagectl/imagectl/pxe/datagram"
	"github.com/imagectl/imagectl/pxe/journal"
	"github.com/imagectl/imagectl/pxe/quirk"
)

const (
	// maxPacket is more than any client's MTU; what fills it is cut off and ignored.
	maxPacket = 4096
	// maxPending bounds the answers that wait for the disk. The rest is dropped:
	// clients repeat their request, and UEFI has 60 s of patience.
	maxPending = 4096
)

// Source is what the server asks about machines and the network.
type Source interface {
	boot.Source
	// Network is immutable; another pointer means another network.
	Network() *boot.Network
}

// Store keeps leases across restarts. It is called by one goroutine at a time.
type Store interface {
	Load() ([]Lease, error)
	// Append returns when the changes, in their order, are durable.
	Append([]Lease) error
}

// Meter counts. Its methods do not block and are safe for concurrent use.
type Meter interface {
	// Received counts a packet of that many bytes: its message type ("other" when it
	// is for no server) and the code of the decision.
	Received(kind, code string, bytes int)
	// Sent counts so many replies with so many bytes in all.
	Sent(replies, bytes int)
	// Waiting adds to the number of answers that wait for the disk.
	Waiting(more int)
	// Pools is called once, with what tells how full the subnets are now.
	Pools(func() []Usage)
	// Line is called once where there is a Line, with what tells how it stands now.
	Line(func() admit.Usage)
	// Others is called once, with what tells which other servers give out addresses.
	Others(func() []Other)
}

// Config is what a server needs. All fields but Line, HTTPLine, Peers, Share, Recorder, Meter, Log
// and Now are required; Store only where addresses are given out.
type Config struct {
	// Address is ours on the boot network: boot files come from it.
	Address netip.Addr
	Files   BootFiles
	// Quirks may be the zero value.
	Quirks quirk.Set
	Source Source
	Store  Store
	// Line says which machines may begin, HTTPLine which of those that boot by HTTP; nil
	// lets all of them.
	Line, HTTPLine *admit.Line
	// Peers are the addresses of further servers that share the Store, and Share is what
	// this one offers first.
	Peers    []netip.Addr
	Share    Share
	Recorder boot.Recorder
	Meter    Meter
	Log      *slog.Logger
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
}

// Socket is where requests come in.
type Socket struct {
	Conn net.PacketConn
	// Address is ours in the network that the socket listens to; the zero value means
	// the server's.
	Address netip.Addr
	// BootServer says that it is port 4011 and not 67.
	BootServer bool
}

// Server answers requests on its sockets.
type Server struct {
	Config
	mu      sync.Mutex
	table   *Table
	waiting late
	others  others
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
	s := &Server{Config: cfg, table: NewTable(leases), waiting: make(late, maxLate), others: others{}}
	cfg.Meter.Pools(s.usage)
	cfg.Meter.Others(s.otherServers)
	if cfg.Line != nil {
		cfg.Meter.Line(func() admit.Usage {
			u := cfg.Line.Usage(cfg.Now())
			if cfg.HTTPLine != nil {
				u.Admitted += cfg.HTTPLine.Usage(cfg.Now()).Admitted
			}
			return u
		})
	}
	return s, nil
}

// unmetered counts nothing.
type unmetered struct{}

func (unmetered) Received(string, string, int) {}
func (unmetered) Sent(int, int)                {}
func (unmetered) Waiting(int)                  {}
func (unmetered) Pools(func() []Usage)         {}
func (unmetered) Line(func() admit.Usage)      {}
func (unmetered) Others(func() []Other)        {}

// pending is an answer that waits until its lease is durable.
type pending struct {
	client boot.Machine
	name   string
	leases []Lease
	reply  []byte
	to     netip.AddrPort
	// delay is how long the reply waits once it may leave.
	delay time.Duration
	conn  net.PacketConn
}

// Serve answers until ctx ends, then closes the sockets and returns nil. Call it
// once.
//
// One goroutine per socket reads and decides, and in a flood another one sends for it;
// one makes leases durable, many at a time, and sends the answers that depended on them;
// one more sends what must not come too early. Nothing else is started, so a flood costs
// time but no memory.
func (s *Server) Serve(ctx context.Context, sockets ...Socket) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan pending, maxPending)
	g.Go(func() error {
		out := s.outgoing()
		s.waiting.serve(ctx, func(p pending) {
			out.add(p)
			out.flush()
		})
		return nil
	})
	if shared, ok := s.Store.(Shared); ok {
		g.Go(func() error { return s.follow(ctx, shared) })
	}
	g.Go(func() error {
		<-ctx.Done()
		var errs []error
		for _, socket := range sockets {
			errs = append(errs, socket.Conn.Close())
		}
		return errors.Join(errs...)
	})
	var readers sync.WaitGroup
	for _, socket := range sockets {
		readers.Add(1)
		g.Go(func() error {
			defer readers.Done()
			return s.read(ctx, socket, queue)
		})
	}
	g.Go(func() error {
		readers.Wait()
		close(queue)
		return nil
	})
	g.Go(func() error {
		s.commit(queue)
		return nil
	})
	return g.Wait()
}

func (s *Server) read(ctx context.Context, socket Socket, queue chan<- pending) error {
	conn, in, out := datagram.Of(socket.Conn), datagram.New(maxPacket), s.outgoing()
	helper := s.helper()
	defer helper.stop()
	for {
		err := conn.ReadBatch(in)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading DHCP requests: %w", err)
		}
		for i := range in.Len() {
			if packet := in.Data(i); len(packet) < maxPacket {
				if p, ok := s.handle(packet, socket, in.Peer(i)); ok {
					s.pass(p, queue, out)
				}
			}
		}
		if in.Len() < datagram.AtOnce {
			out.flush()
		} else { // more has come meanwhile
			out = helper.flush(out)
		}
	}
}

// pass lets an answer leave, or wait for its lease.
func (s *Server) pass(p pending, queue chan<- pending, out *outgoing) {
	if len(p.leases) == 0 {
		out.send(p)
		return
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

// handle decides over one packet and changes the table.
func (s *Server) handle(packet []byte, socket Socket, from netip.AddrPort) (pending, bool) {
	req, err := dhcpv4.FromBytes(packet)
	if err != nil {
		s.Log.Debug("packet ignored", "code", "malformed", "error", err)
		s.Meter.Received("other", "malformed", len(packet))
		return pending{}, false
	}
	if err := s.notReady(); err != nil {
		s.Log.Debug("packet ignored", "code", "store-failed", "error", err)
		s.Meter.Received(kind(messageType(req)), "store-failed", len(packet))
		return pending{}, false
	}
	network, now := s.Source.Network(), s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.table.use(network, now)
	env := Env{Now: now, Server: s.Address, Link: socket.Address, BootServer: socket.BootServer,
		Network: network, Leases: s.table, Answer: s.Source.Decide, Files: s.Files, Quirks: s.Quirks, Peers: s.Peers, Share: s.Share, From: from}
	if s.Line != nil {
		env.Line = s.Line
	}
	if s.HTTPLine != nil {
		env.HTTPLine = s.HTTPLine
	}
	d := Decide(req, env)
	if d.Verdict != nil {
		line := s.Line
		if d.Client.Stage == HTTPBoot {
			line = s.HTTPLine
		}
		line.Note(admit.MAC(d.Client.MAC), d.Answer.Name != "", *d.Verdict, env.Now)
	}
	s.Meter.Received(kind(messageType(req)), d.Code, len(packet))
	s.report(req, d)
	s.noteOther(req, d, network.Proxy, network.Neighbours)
	if d.Code == "peer-server" || d.Code == boot.CodeNeighbour {
		for _, line := range []*admit.Line{s.Line, s.HTTPLine} {
			if line != nil {
				line.Left(admit.MAC(d.Client.MAC))
			}
		}
	}
	p := pending{client: d.Client.machine(), name: d.Answer.Name, leases: s.table.apply(d), to: d.To, delay: d.Delay, conn: socket.Conn}
	if d.Reply != nil {
		p.reply = encode(d.Reply)
	}
	return p, len(p.leases) > 0 || p.reply != nil
}

// kind keeps what a stranger sends from becoming a word of ours.
func kind(t dhcpv4.MessageType) string {
	switch t {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeDecline:
		return strings.ToLower(t.String())
	}
	return "other"
}

// Card is the network card that has an address now. It is safe for concurrent use.
func (s *Server) Card(a netip.Addr) (net.HardwareAddr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.table.ByAddr(a)
	if !ok || l.State != Bound && l.State != Seen || !l.active(s.Now()) {
		return nil, false
	}
	return net.HardwareAddr(l.MAC[:]), true
}

// Holds are the machines of cluster.yaml whose reserved addresses a card has by leases that
// go on; usually none or one. It is safe for concurrent use.
func (s *Server) Holds(mac net.HardwareAddr) []string {
	if len(mac) != 6 {
		return nil
	}
	network, now := s.Source.Network(), s.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return holds(s.table.ByMAC(MAC(mac)), network, now)
}

// noteOther takes in which other server a client chose, and tells the operator where
// there should be none, or only one.
func (s *Server) noteOther(req *dhcpv4.DHCPv4, d Decision, proxy bool, neighbours []netip.Addr) {
	chosen := optionAddr(req, dhcpv4.OptionServerIdentifier)
	chooses := proxy && messageType(req) == dhcpv4.MessageTypeRequest && chosen.IsValid() && d.Client.MAC != MAC{}
	if !chooses && d.Code != "other-server" || slices.Contains(neighbours, chosen) {
		return
	}
	now := s.Now()
	tell := s.others.note(chosen, d.Client.MAC, now)
	if notice := Notice(proxy, s.others.recent(now)); tell && notice != "" {
		s.Log.Warn("another DHCP server answers", "other", chosen, "mac", d.Client.MAC, "code", "other-server", "reason", notice)
	}
}

func (s *Server) otherServers() []Other {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.others.recent(s.Now())
}

// report records what a netbooting machine got. Silence towards a stranger's
// broken packet is only a debug line.
func (s *Server) report(req *dhcpv4.DHCPv4, d Decision) {
	if s.Log.Enabled(context.Background(), slog.LevelDebug) { // what it would be told costs more than to ask
		s.Log.Debug("request", "mac", d.Client.MAC, "xid", req.TransactionID, "type", req.MessageType(), "stage", d.Client.Stage, "code", d.Code, "reason", d.Reason)
	}
	if s.Recorder == nil || d.Client.MAC == (MAC{}) || d.Code == boot.CodeNeighbour || (!d.Client.boots() && d.Code != "nak" && d.Code != "decline" && d.Code != "pool-exhausted") {
		return
	}
	detail := fmt.Sprintf("%s from %s: %s", req.MessageType(), d.Client.Stage, d.Reason)
	if d.Client.boots() && d.Reply != nil && d.Answer.Reason != "" {
		detail += "; " + d.Answer.Reason
	}
	e := boot.Event{At: s.Now(), Machine: d.Client.machine(), Stage: boot.StageDHCP, Detail: detail,
		Name: d.Answer.Name, Firmware: d.Client.Stage != IPXE}
	if d.Client.Stage == HTTPBoot {
		e.Action = d.Answer.Action
	}
	switch d.Code {
	case "offer":
		e.Offer = boot.OfferAddress
	case "proxy-offer":
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
func (s *Server) commit(queue <-chan pending) {
	leases := func(p pending) []Lease { return p.leases }
	out := s.outgoing()
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
			if p.reply != nil {
				out.send(p)
			}
		}
		out.flush()
	})
}

// yield takes over what other servers gave away. Who is not answered asks again, and is
// offered another address.
func (s *Server) yield(lost []pending, now []Lease) {
	s.mu.Lock()
	s.table.Learn(now)
	s.mu.Unlock()
	for _, p := range lost {
		s.refuse(p, "taken", "no answer: another server gave its address to another machine in this moment; it asks again")
	}
}
