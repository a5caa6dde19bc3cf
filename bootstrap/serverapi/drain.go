package serverapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/store"
)

const (
	// drainTime is how long pods are waited for where nobody says, drainMax how long at most.
	drainTime = 5 * time.Minute
	drainMax  = 24 * time.Hour
	// drainSlack is how much later than its end a control plane may say how a drain ended.
	drainSlack = time.Minute
)

// DrainMachine implements apiconnect.OperatorServiceHandler. A control plane does it, with
// Kubernetes' administrator rights that it has anyway.
func (s operators) DrainMachine(ctx context.Context, req *connect.Request[api.DrainMachineRequest]) (*connect.Response[api.DrainMachineResponse], error) {
	name, id := req.Msg.GetMachine(), req.Msg.GetId()
	limit := cmp.Or(time.Duration(req.Msg.GetTimeoutSeconds())*time.Second, drainTime)
	switch {
	case name == "":
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which machine"))
	case limit > drainMax:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("pods are waited for at most %s, not %s", drainMax, limit))
	case id != "":
		return s.drainState(name, id)
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing(name, err)
	}
	var drain store.Drain
	joined := false
	o := s.one(ctx, name, "", func(c *change, m *store.Machine) error {
		drain, joined = store.Drain{}, m.NodeBoot != ""
		if !joined {
			return nil
		}
		if r, ok := s.board.get(name); !req.Msg.GetUndo() && (!ok || c.now.Sub(r.at) >= silence) {
			return &refusedError{codeSilent, "it has not called lately, and pods end only where kubelet runs; --no-drain goes on without"}
		}
		if coordinator.Drainer(nodes, choices, name) == "" {
			return &refusedError{"no-control-plane", "no control plane is ready that could drain it; imagectl status says what is wrong"}
		}
		if d := m.Drain; d != nil && !d.Done && d.Undo == req.Msg.GetUndo() && c.now.Before(d.Until) {
			drain = *d // it is under way
			return nil
		}
		id, err := s.newID()
		if err != nil {
			return err
		}
		drain = store.Drain{ID: id, By: callerOf(ctx).identity.Name, At: c.now, Until: c.now.Add(limit), Undo: req.Msg.GetUndo()}
		m.Drain = &drain
		action, detail := "drain-asked", fmt.Sprintf("pods are waited for until %s", drain.Until.UTC().Format(time.RFC3339))
		if drain.Undo {
			action, detail = "uncordon-asked", ""
		}
		c.log(audit.Entry{Action: action, Machine: name, Detail: detail})
		return nil
	})
	switch {
	case !o.GetOk():
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s cannot be drained (%s): %s", name, o.GetReasonCode(), o.GetMessage()))
	case !joined:
		return connect.NewResponse(&api.DrainMachineResponse{Done: true, Detail: "it is no node of Kubernetes"}), nil
	}
	return s.drainState(name, drain.ID)
}

// uncordonTime is how long it is tried to have a node that is back take pods again.
const uncordonTime = time.Hour

// comesBack lets a machine take pods again that was drained for a reboot, when a new system runs
// on it.
func (s *Server) comesBack(c *change, m *store.Machine, boot string) error {
	o := m.Order
	if o == nil || !o.Obeyed || !o.Uncordon || o.Boot == boot {
		return nil
	}
	id, err := s.newID()
	if err != nil {
		return err
	}
	now := *o
	now.Uncordon = false
	m.Order = &now
	m.Drain = &store.Drain{ID: id, By: o.By, At: c.now, Until: c.now.Add(uncordonTime), Undo: true}
	c.log(audit.Entry{Action: "uncordon-asked", Machine: m.Name, Detail: "it is back from a reboot that it was drained for"})
	return nil
}

// drainState says how far a drain is.
func (s operators) drainState(name, id string) (*connect.Response[api.DrainMachineResponse], error) {
	m, _ := s.cfg.Store.Machine(name)
	d := m.Drain
	if d == nil || d.ID != id {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no drain %q of %s any more: somebody began another one", id, name))
	}
	resp := &api.DrainMachineResponse{Id: id, Done: d.Done, Problem: d.Problem}
	if !d.Done && s.cfg.Now().After(d.Until.Add(drainSlack)) {
		resp.Done, resp.Problem = true, "no control plane has said how it went"
	}
	if r := s.drainReport(id); !resp.Done {
		resp.Detail = "waits for a control plane to begin"
		if r.GetDetail() != "" {
			resp.Detail = words(r.GetDetail())
		}
	}
	return connect.NewResponse(resp), nil
}

// drainReport is what a control plane last said of a drain; nil for nothing.
func (s *Server) drainReport(id string) *api.Drain {
	for _, m := range s.cfg.Machines {
		if r, ok := s.board.get(m.Name); ok && m.ControlPlane && s.cfg.Now().Sub(r.at) < silence {
			for _, d := range r.last.GetKubernetes().GetDrains() {
				if d.GetId() == id {
					return d
				}
			}
		}
	}
	return nil
}

// drainsBy are the drains that one control plane does.
func (s *Server) drainsBy(nodes []coordinator.Node, choices coordinator.Choices, name string) []*api.Drain {
	var out []*api.Drain
	for _, m := range s.records() {
		d := m.Drain
		if d == nil || d.Done || s.cfg.Now().After(d.Until.Add(drainSlack)) || coordinator.Drainer(nodes, choices, m.Name) != name {
			continue
		}
		out = append(out, &api.Drain{Name: m.Name, Id: d.ID, Until: timestamppb.New(d.Until), Undo: d.Undo})
	}
	return out
}

// nodesDrained takes in how drains ended. Each is an entry of the log, once.
func (s agents) nodesDrained(ctx context.Context, from caller, drains []*api.Drain) error {
	if !s.isControlPlane(from.identity.Name) {
		return nil
	}
	for _, d := range drains {
		ends := func(m store.Machine) bool {
			return d.GetDone() && m.Drain != nil && m.Drain.ID == d.GetId() && !m.Drain.Done
		}
		if m, ok := s.cfg.Store.Machine(d.GetName()); !ok || !ends(m) {
			continue
		}
		err := s.coordinate(ctx, from.actor(), func(c *change) error {
			m, err := c.machine(d.GetName())
			if err != nil || !ends(m) {
				return err
			}
			ended := *m.Drain
			ended.Done, ended.Problem = true, words(d.GetDetail())
			m.Drain = &ended
			action := "node-drained"
			switch {
			case ended.Problem != "":
				action = "node-not-drained"
			case ended.Undo:
				action = "node-uncordoned"
			}
			c.log(audit.Entry{Action: action, Machine: m.Name, Detail: ended.Problem})
			return c.tx.PutMachine(m)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
