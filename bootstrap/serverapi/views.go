package serverapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// watchPause is the least time between two looks of a watching operator.
const watchPause = 200 * time.Millisecond

// ListMachines implements apiconnect.OperatorServiceHandler.
func (s operators) ListMachines(ctx context.Context, _ *connect.Request[api.ListMachinesRequest]) (*connect.Response[api.ListMachinesResponse], error) {
	views, err := s.views(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.ListMachinesResponse{Machines: views}), nil
}

func (s operators) views(ctx context.Context) ([]*api.MachineView, error) {
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, err
	}
	var out []*api.MachineView
	for _, r := range s.records() {
		out = append(out, s.viewOf(r, nodes, choices))
	}
	return out, nil
}

func (s *Server) viewOf(r store.Machine, nodes []coordinator.Node, choices coordinator.Choices) *api.MachineView {
	m, _ := s.machineOf(r.Name)
	v := &api.MachineView{
		Name: r.Name, Role: m.Role, Zone: m.Zone, State: string(r.State), Reason: r.Reason, Known: r.Known,
		Macs: m.MACs, Facts: factsOf(r), Address: s.addressOf(r.Name),
	}
	if f := s.board.factsOf(r.Name); f != nil && r.Key == nil {
		v.Facts = f
	}
	last, heard := s.board.get(r.Name)
	if heard {
		v.LastSeen = timestamppb.New(last.at)
		v.InstallBytesDone, v.InstallBytesTotal = last.done, last.total
		v.Steps = last.last.GetSteps()
		if f := last.last.GetFacts(); f != nil {
			v.Facts = f
		}
	}
	if len(v.Macs) == 0 {
		v.Macs = hardware(v.Facts).MACs
	}
	if n := len(r.Pending); n > 0 {
		v.PendingCode = r.Pending[n-1].Code
		v.KeyConflict = r.Key != nil
	}
	v.Tpm, v.Order = tpmView(r), s.orderView(r.Order)
	if r.Key != nil && r.Key.Serial != "" {
		v.CertificateSerial, v.CertificateNotAfter = r.Key.Serial, timestamppb.New(r.Key.NotAfter)
	}
	if s.cfg.Boot != nil {
		if e, ok := s.cfg.Boot.Last(v.Macs); ok {
			v.BootStage, v.BootStageAt = e.Stage, timestamppb.New(e.At)
		}
	}
	if v.Reason == "" {
		v.Reason = s.netbootReason(r)
	}
	if v.Reason == "" {
		v.Reason = reasonOf(r, nodes, choices)
	}
	return v
}

// reasonOf says what a machine waits for.
func reasonOf(r store.Machine, nodes []coordinator.Node, choices coordinator.Choices) string {
	switch {
	case !r.Known:
		return "cluster.yaml does not list it"
	case len(r.Pending) > 0 && r.Key != nil:
		return "another key than the approved one asks for it; compare the code"
	case len(r.Pending) > 1:
		return fmt.Sprintf("%d keys ask for it; compare the codes", len(r.Pending))
	case len(r.Pending) > 0:
		return "waits for an operator to compare the code"
	case r.State == machine.Ready:
		return ""
	case r.State == machine.Approved:
		return "not armed: it boots its own disk"
	}
	d := coordinator.Direct(nodes, choices, r.Name)
	switch {
	case d.Kind == coordinator.Run && d.EtcdReason != "":
		return d.EtcdReason
	case d.Kind == coordinator.Run && d.KubernetesReason != "":
		return d.KubernetesReason
	case d.Kind == coordinator.Run, d.Kind == coordinator.Reboot, d.Kind == coordinator.Install:
		return d.Reason
	case r.State == machine.Armed:
		return "netboot it to install it"
	default:
		return "has not called lately"
	}
}

func factsOf(r store.Machine) *api.Facts {
	f := &api.Facts{}
	if len(r.Facts) == 0 || (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(r.Facts, f) != nil {
		return &api.Facts{} // written by another version: they are for display only
	}
	return f
}

// Why implements apiconnect.OperatorServiceHandler.
func (s operators) Why(_ context.Context, req *connect.Request[api.WhyRequest]) (*connect.Response[api.WhyResponse], error) {
	if s.cfg.Boot == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this server boots nobody"))
	}
	asked := strings.ToLower(req.Msg.GetMachine())
	a, ok := s.cfg.Boot.Explain(asked)
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("%q is neither a machine of cluster.yaml nor a MAC address", req.Msg.GetMachine()))
	}
	resp := &api.WhyResponse{Answer: a.Action, ReasonCode: a.Code, Reason: a.Reason, Machine: a.Machine, Script: a.Script,
		State: string(s.cfg.Store.State(a.Machine))}
	resp.Events, resp.Console = eventsOf(a.Events), eventsOf(a.Console)
	return connect.NewResponse(resp), nil
}

func eventsOf(events []BootEvent) []*api.BootEvent {
	var out []*api.BootEvent
	for _, e := range events {
		out = append(out, &api.BootEvent{At: timestamppb.New(e.At), Stage: e.Stage, Detail: e.Detail})
	}
	return out
}

// Status implements apiconnect.OperatorServiceHandler.
func (s operators) Status(ctx context.Context, _ *connect.Request[api.StatusRequest]) (*connect.Response[api.StatusResponse], error) {
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	views, err := s.views(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	ends, err := s.endNotes(ctx, nodes)
	if err != nil {
		return nil, s.storing("", err)
	}
	ready, summary := coordinator.Summary(nodes, choices)
	return connect.NewResponse(&api.StatusResponse{
		Cluster: s.cfg.Cluster, ServerVersion: s.cfg.Version, Ready: ready, Summary: summary, Machines: views,
		Backup: s.backupView(), Notes: append(s.notes(nodes, choices), ends...), Since: timestamppb.New(s.start), Etcd: s.etcdView(nodes, choices),
	}), nil
}

// etcdView is the list of members as a healthy voter has last reported it, or the
// names on record when none has.
func (s *Server) etcdView(nodes []coordinator.Node, choices coordinator.Choices) *api.EtcdView {
	v := &api.EtcdView{Summary: coordinator.EtcdSummary(nodes, choices), Alarms: append(s.etcdAlarms(nodes), s.snapshotAlarms(choices)...), Warnings: append(s.etcdWarnings(nodes), s.snapshotWarnings()...)}
	well, said := map[string]bool{}, map[string]*api.EtcdObserved{}
	var newest time.Time
	for _, n := range nodes {
		if n.Seen == nil || !n.Seen.EtcdMember {
			continue
		}
		r, _ := s.board.get(n.Name)
		well[n.Name], said[n.Name] = r.last.GetEtcd().GetHealthy(), r.last.GetEtcd()
		if list := r.last.GetEtcd().GetMembers(); n.Seen.EtcdHealthy && len(list) > 0 && r.at.After(newest) {
			newest, v.Members = r.at, nil
			for _, m := range list {
				v.Members = append(v.Members, &api.EtcdView_Member{Id: m.GetId(), Name: m.GetName(), PeerUrl: m.GetPeerUrl(), Learner: m.GetLearner()})
			}
		}
	}
	if len(v.Members) == 0 {
		for _, name := range choices.EtcdVoters {
			v.Members = append(v.Members, &api.EtcdView_Member{Name: name})
		}
	}
	for _, m := range v.Members {
		m.Healthy = well[m.GetName()]
		if e := said[m.GetName()]; e != nil {
			m.Leader, m.Size, m.Used, m.Quota, m.Upkeep = e.GetLeader(), e.GetSize(), e.GetUsed(), e.GetQuota(), words(e.GetUpkeep())
		}
	}
	if choices.EtcdAlone != "" && choices.EtcdSnapshot != (coordinator.Snapshot{}) {
		v.Restoring = &api.EtcdView_Restoring{Machine: choices.EtcdAlone, Snapshot: wireSnapshot(choices.EtcdSnapshot), Waits: coordinator.SnapshotWaits(nodes, choices)}
	}
	slices.SortFunc(v.Members, func(a, b *api.EtcdView_Member) int { return strings.Compare(a.GetName(), b.GetName()) })
	return v
}

func (s *Server) notes(nodes []coordinator.Node, choices coordinator.Choices) []string {
	notes := append(s.caNotes(choices), s.encryptionNotes(nodes, choices)...)
	notes = append(notes, s.etcdCANotes(nodes, choices)...)
	notes = append(notes, s.rollNotes()...)
	if s.staleNow() {
		notes = append(notes, s.staleNotes()...)
	}
	conflicts := 0
	for _, r := range s.cfg.Store.Machines() {
		if r.Key != nil && len(r.Pending) > 0 {
			conflicts++
		}
	}
	if conflicts > 0 {
		notes = append(notes, fmt.Sprintf("alarm: %d machines are claimed by a second key; compare the codes before you approve or reject", conflicts))
	}
	if s.cfg.Boot != nil {
		for _, n := range s.cfg.Boot.Notices() {
			notes = append(notes, "alarm: "+n)
		}
	}
	notes = append(notes, s.hardwareNotes()...)
	notes = append(notes, s.etcdNotes(nodes)...)
	notes = append(notes, s.snapshotNotes(choices)...)
	notes = append(notes, s.vipNotes(choices)...)
	return append(append(notes, s.kubeadmNotes(nodes, choices)...), s.backupNotes()...)
}

// WatchMachines implements apiconnect.OperatorServiceHandler.
func (s operators) WatchMachines(ctx context.Context, _ *connect.Request[api.WatchMachinesRequest], stream *connect.ServerStream[api.WatchMachinesResponse]) error {
	sent := map[string]*api.MachineView{}
	for {
		news, records := s.board.Changed(), s.cfg.Store.Changed()
		// It watches for hours.
		if err := errors.Join(s.leads(), s.allowTime(callerOf(ctx)), s.allowSerial(callerOf(ctx))); err != nil {
			return err
		}
		views, err := s.views(ctx)
		if err != nil {
			return s.storing("", err)
		}
		for _, v := range views {
			if old, ok := sent[v.Name]; ok && sameView(old, v) {
				continue
			}
			sent[v.Name] = v
			if err := stream.Send(&api.WatchMachinesResponse{Machine: v}); err != nil {
				return err
			}
		}
		select {
		case <-news:
		case <-records:
		case <-time.After(2 * time.Second): // boot stages and progress wake nobody
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(watchPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// sameView ignores the heartbeat.
func sameView(a, b *api.MachineView) bool {
	b = proto.CloneOf(b)
	b.LastSeen = a.LastSeen
	return proto.Equal(a, b)
}
