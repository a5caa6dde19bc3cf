package serverapi

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// maxWait bounds a long poll.
const maxWait = 30 * time.Second

// agents serves AgentService.
type agents struct{ *Server }

// Sync implements apiconnect.AgentServiceHandler.
func (s agents) Sync(ctx context.Context, req *connect.Request[api.SyncRequest]) (*connect.Response[api.SyncResponse], error) {
	from := callerOf(ctx)
	name := from.identity.Name
	held, witness := req.Msg.GetHeld(), req.Msg.GetWitness()
	req.Msg.Held, req.Msg.Witness = nil, nil // only what is asked for is long
	if n := proto.Size(req.Msg); n > 2*maxFacts {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a report of %d bytes exceeds %d", n, 2*maxFacts))
	}
	bound(req.Msg)
	s.board.put(name, from.issuer, s.cfg.Now(), req.Msg)
	if err := s.observe(ctx, from, req.Msg); err != nil {
		return nil, s.storing(name, err)
	}
	if err := s.nodesGone(ctx, from, req.Msg.GetKubernetes().GetFormerGone()); err != nil {
		return nil, s.storing(name, err)
	}
	if err := s.nodesDrained(ctx, from, req.Msg.GetKubernetes().GetDrains()); err != nil {
		return nil, s.storing(name, err)
	}
	if err := s.answered(ctx, from, req.Msg); err != nil {
		return nil, s.storing(name, err)
	}
	if err := s.known(ctx, from); err != nil {
		return nil, s.storing(name, err)
	}
	s.keepSignature(ctx, from, witness)
	learnt, err := s.learn(ctx, from, held)
	if err != nil {
		return nil, s.storing(name, err)
	}
	// The deadline is the wall's: nobody's certificate hangs on it.
	wait := min(time.Duration(req.Msg.GetWaitMs())*time.Millisecond, s.poll)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		news, records, term := s.board.Changed(), s.cfg.Store.Changed(), s.cfg.Store.TermChanged()
		if err := s.leads(); err != nil {
			return nil, err
		}
		if err := s.allowNode(from); err != nil {
			return nil, err // replaced or retired while it waited
		}
		resp, err := s.directive(ctx, from)
		if err != nil {
			return nil, s.storing(name, err)
		}
		if !learnt {
			withoutLists(resp)
		}
		if req.Msg.GetMode() == api.Mode_MODE_NODE {
			resp.Order = s.orderFor(name)
		}
		resp.CaPem = string(s.CAPEM())
		resp.Revision = revision(resp)
		resp.ServerTime = timestamppb.New(s.cfg.Now())
		if resp.Revision != req.Msg.GetKnownRevision() || wait == 0 {
			return s.answer(ctx, req.Msg, name, resp), nil
		}
		select {
		case <-news:
		case <-records:
		case <-term:
		case <-timer.C:
			return s.answer(ctx, req.Msg, name, resp), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// answer adds where the audit log ends and, for a control plane, which backup is the newest:
// no news to wake anybody for and none that anybody waits for.
func (s agents) answer(ctx context.Context, req *api.SyncRequest, name string, resp *api.SyncResponse) *connect.Response[api.SyncResponse] {
	var err error
	if resp.AuditHead, err = s.auditHead(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("a node is not shown the end of the audit log", "error", err.Error())
	}
	if req.GetMode() == api.Mode_MODE_NODE && s.isControlPlane(name) {
		if resp.Backup, err = s.backupCopy(); err != nil {
			s.cfg.Log.Warn("a node is not told of the newest backup", "error", err.Error())
		}
	}
	return connect.NewResponse(resp)
}

// maxTrusts is more CAs than a machine is told to trust.
const maxTrusts = 8

// maxWords bounds each sentence of a report, in bytes.
const maxWords = 1 << 10

// bound shortens what a machine says about itself: it goes into records, the audit
// log and onto terminals.
func bound(r *api.SyncRequest) {
	r.Failure, r.BootId = words(r.GetFailure()), words(r.GetBootId())
	r.Trusts = r.Trusts[:min(len(r.Trusts), maxTrusts)]
	for _, s := range r.GetSteps() {
		s.Name, s.Detail = words(s.GetName()), words(s.GetDetail())
	}
}

func words(s string) string {
	if len(s) <= maxWords {
		return s
	}
	return strings.ToValidUTF8(s[:maxWords], "") + "…"
}

func (s *Server) storing(name string, err error) error {
	if ce := new(connect.Error); errors.As(err, &ce) || errors.Is(err, context.Canceled) {
		return err
	}
	s.cfg.Log.Error("serving an agent", "machine", name, "error", err.Error())
	return connect.NewError(connect.CodeUnavailable, errors.New("the server could not store the change; ask again"))
}

// revision names a directive: the same words have the same revision, also after
// a restart of the server. It is never 0.
func revision(r *api.SyncResponse) uint64 {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return 1 // only invalid UTF-8 does that; then every poll answers at once
	}
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64() | 1
}

// observe moves a machine's state by what it reports.
func (s agents) observe(ctx context.Context, from caller, r *api.SyncRequest) error {
	name := from.identity.Name
	m, ok := s.cfg.Store.Machine(name)
	if !ok || len(observations(m, r, s.isControlPlane(name))) == 0 && !moved(m, r) && !joined(m, r) && !restarted(m, r) {
		return nil
	}
	// Each move is an entry of the log for good. A machine that goes to and fro is
	// heard again with a later report.
	if !s.moves.allow(name, s.cfg.Now()) {
		s.cfg.Log.Warn("a machine changes its state too often; its report is not stored", "machine", name)
		return nil
	}
	return s.coordinate(ctx, from.actor(), func(c *change) error {
		m, err := c.machine(name)
		if err != nil {
			return err
		}
		events := observations(m, r, s.isControlPlane(name))
		if moved(m, r) {
			m.Address = reported(r)
		} else if len(events) == 0 && !joined(m, r) && !restarted(m, r) {
			return nil
		}
		if restarted(m, r) {
			c.compareHardware(&m, r.GetFacts(), r.GetBootId())
		}
		if joined(m, r) {
			if m.JoinedAt.IsZero() {
				m.JoinedAt = c.now
			}
			if err := s.comesBack(c, &m, r.GetBootId()); err != nil {
				return err
			}
			m.NodeBoot = r.GetBootId()
		}
		reason := ""
		if n := len(events); n > 0 && events[n-1] == machine.Fail {
			reason = r.GetFailure()
		} else if n > 0 && events[n-1] == machine.InstallDone {
			reason = warning(r)
		}
		before := m.State
		if err := c.move(&m, "machine-reported", reason, events...); err != nil {
			return err
		}
		if m.State == machine.Installed || before == machine.Installing {
			// The arming is used up, however the installation ended.
			m.Arming = nil
		}
		if m.State == machine.Installed || r.GetMode() == api.Mode_MODE_NODE && m.InstalledAt.IsZero() {
			// A system that runs was installed, whether or not its installer was heard.
			if m.State == machine.Installed {
				c.keepHardware(&m, r.GetFacts())
			}
			m.InstalledAt = c.now
		}
		return c.tx.PutMachine(m)
	})
}

// What one machine may change in its record by reports: a whole life from the
// installer to Ready at once, and then what a node that fails again and again does.
const (
	movesBurst = 60
	movesEvery = 10 * time.Second
)

// What one machine may read again that the server has sent it before: whole backups and the audit
// log, which may be large, so that whoever stole a node's certificate does not keep the server's disk
// busy. A node asks again when a transfer broke off, or when it was installed anew.
const (
	rereadsBurst = 5
	rereadsEvery = 10 * time.Minute
	// rereadFree entries of the log may be read again at any time: agents of before ask for all
	// that there is, and go on from where they have signed.
	rereadFree = 200
)

// limits are limiters by machine. Its names are those of records, so it is bounded.
type limits struct {
	mu    sync.Mutex
	by    map[string]*rate.Limiter
	every time.Duration
	burst int
}

func newLimits() *limits { return newLimitsOf(movesEvery, movesBurst) }

func newLimitsOf(every time.Duration, burst int) *limits {
	return &limits{by: map[string]*rate.Limiter{}, every: every, burst: burst}
}

func (l *limits) allow(name string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.by[name]
	if !ok {
		r = rate.NewLimiter(rate.Every(l.every), l.burst)
		l.by[name] = r
	}
	return r.AllowN(now, 1)
}

// reported is the address of an installed system; empty when it says none.
func reported(r *api.SyncRequest) string {
	a, err := netip.ParseAddr(r.GetAddress())
	if err != nil || r.GetMode() != api.Mode_MODE_NODE {
		return ""
	}
	return a.Unmap().String()
}

// moved says whether an installed system has another address than the one on
// record. Others depend on a control plane's, also when it has not called since the
// server's start.
func moved(m store.Machine, r *api.SyncRequest) bool {
	a := reported(r)
	return a != "" && a != m.Address
}

// joined says whether it is a node of Kubernetes, for the first time since it was started.
func joined(m store.Machine, r *api.SyncRequest) bool {
	return (m.JoinedAt.IsZero() || m.NodeBoot != r.GetBootId()) && r.GetMode() == api.Mode_MODE_NODE && r.GetKubernetes().GetJoined()
}

func (s *Server) isControlPlane(name string) bool {
	m, _ := s.machineOf(name)
	return m.ControlPlane
}

// warning is what did not work in an installation that is good all the same; empty
// most of the time.
func warning(r *api.SyncRequest) string {
	for _, step := range r.GetSteps() {
		if step.GetState() == api.StepStatus_STATE_FAILED {
			return step.GetName() + ": " + step.GetDetail()
		}
	}
	return ""
}

// observations are the events in a report that change the state; none most of
// the time.
func observations(m store.Machine, r *api.SyncRequest, controlPlane bool) []machine.Event {
	var events []machine.Event
	state := m.State
	try := func(e machine.Event) {
		// What a machine says out of turn moves nothing.
		if to, err := machine.Next(state, e); err == nil && to != state {
			state, events = to, append(events, e)
		}
	}
	if r.GetMode() == api.Mode_MODE_INSTALLER {
		switch {
		case m.State != machine.Installing:
			// Leftovers of an earlier attempt must not end a new arming.
		case r.GetInstalled():
			try(machine.InstallDone)
		case r.GetFailure() != "":
			try(machine.Fail)
		}
		return events
	}
	if r.GetFailure() != "" {
		if m.State != machine.Armed {
			try(machine.Fail)
		}
		return events
	}
	try(machine.NodeSeen)
	if k := r.GetKubernetes(); k.GetJoined() && k.GetNodeReady() {
		if controlPlane && r.GetEtcd().GetMemberId() != "" {
			try(machine.EtcdJoined)
		}
		try(machine.NodeReady)
		return events
	}
	try(machine.NodeNotReady)
	if controlPlane && r.GetEtcd().GetMemberId() != "" {
		try(machine.EtcdJoined)
	}
	return events
}

// directive computes what the caller is to do now, and stores what has to be
// stored before it may know.
func (s agents) directive(ctx context.Context, from caller) (*api.SyncResponse, error) {
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, err
	}
	name := from.identity.Name
	d := coordinator.Direct(nodes, choices, name)
	m, _ := s.machineOf(name)
	switch d.Kind {
	case coordinator.Install:
		arming, err := s.beginInstall(ctx, from)
		if err != nil {
			return nil, err
		}
		if arming == nil { // disarmed this moment
			d = coordinator.Directive{Kind: coordinator.Wait, Code: "not-armed", Reason: "the arming was taken back"}
			break
		}
		install, err := s.install(m, arming.ID)
		if err != nil {
			return nil, err
		}
		return &api.SyncResponse{Directive: &api.SyncResponse_Install{Install: install}}, nil
	case coordinator.Reboot:
		return &api.SyncResponse{Directive: &api.SyncResponse_Reboot{Reboot: &api.Reboot{Reason: d.Reason}}}, nil
	case coordinator.Run:
		run := s.run(m, d, choices, from)
		for _, f := range coordinator.Removes(nodes, choices, name) {
			run.Kubernetes.Former = append(run.Kubernetes.Former, &api.FormerNode{Name: f.Name, BootId: f.BootID, WasBootId: f.Was})
		}
		if m.ControlPlane {
			run.Kubernetes.Drains = s.drainsBy(nodes, choices, name)
			run.Admins = s.admins(ctx)
		}
		return &api.SyncResponse{Directive: &api.SyncResponse_Run{Run: run}}, nil
	}
	return &api.SyncResponse{Directive: &api.SyncResponse_Wait{Wait: &api.Wait{ReasonCode: d.Code, Reason: d.Reason}}}, nil
}

// beginInstall binds the arming to the caller's key and returns it; nil when the
// machine is not armed any more.
func (s agents) beginInstall(ctx context.Context, from caller) (*store.Arming, error) {
	name := from.identity.Name
	taken := func(m store.Machine) bool {
		return m.State == machine.Installing && m.Arming != nil && m.Arming.Fingerprint == from.fingerprint
	}
	// Memory is behind where other servers change the same records.
	if m, ok := s.cfg.Store.Machine(name); ok && taken(m) && !s.cfg.Store.Shared() {
		return m.Arming, nil
	}
	var arming *store.Arming
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		arming = nil
		m, err := c.machine(name)
		if err != nil {
			return err
		}
		if taken(m) {
			arming = m.Arming
			return nil
		}
		if m.Arming == nil || m.Key == nil || m.Key.Fingerprint != from.fingerprint {
			return nil
		}
		if err := c.move(&m, "install-begun", "", machine.InstallBegun); err != nil {
			var refused *machine.RefusedError
			if errors.As(err, &refused) {
				return nil
			}
			return err
		}
		if m.Arming.Fingerprint != from.fingerprint {
			c.log(audit.Entry{Action: "arming-taken", Machine: name, Detail: fmt.Sprintf("arming %s by key %s", m.Arming.ID, from.fingerprint)})
			m.Arming.Fingerprint = from.fingerprint
		}
		arming = m.Arming
		return c.tx.PutMachine(m)
	})
	return arming, err
}

// ReportInstall implements apiconnect.AgentServiceHandler.
func (s agents) ReportInstall(ctx context.Context, req *connect.Request[api.ReportInstallRequest]) (*connect.Response[api.ReportInstallResponse], error) {
	name := callerOf(ctx).identity.Name
	if m, ok := s.cfg.Store.Machine(name); ok && m.Arming != nil && m.Arming.ID == req.Msg.GetArmingId() {
		s.board.progress(name, s.cfg.Now(), req.Msg.GetBytesDone(), req.Msg.GetBytesTotal())
	}
	return connect.NewResponse(&api.ReportInstallResponse{}), nil
}
