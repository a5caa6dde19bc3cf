package serverapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// orderLife is how long a machine may take to fetch an order, and how long one that obeyed may be
// away before the server stops making allowance for it. Nobody wants a machine to reboot days
// after it was asked to.
const orderLife = 10 * time.Minute

// Kinds of orders, as records have them.
const (
	orderReboot    = "reboot"
	orderShutdown  = "shutdown"
	orderResetKeep = "reset-keep"
)

// Reason codes of orders.
const (
	codeSilent          = "has-not-called"
	codeWouldStopEtcd   = "would-stop-etcd"
	codeOrderUnderWay   = "order-under-way"
	codeAgentDoesNotAct = "agent-too-old"
)

// away says whether a machine is on its way down, or may be, by order.
func away(m store.Machine, now time.Time) bool {
	o := m.Order
	return o != nil && o.Refused == "" && now.Sub(o.At) < orderLife && !(o.Kind != orderShutdown && o.Boot != "" && m.NodeBoot != "" && m.NodeBoot != o.Boot)
}

// ActMachine implements apiconnect.OperatorServiceHandler. What is wanted is stored with the
// machine's record and an entry of the log; the machine fetches it with its next call, asks etcd
// itself, and writes down in its own log who wanted it before it obeys.
func (s operators) ActMachine(ctx context.Context, req *connect.Request[api.ActMachineRequest]) (*connect.Response[api.ActMachineResponse], error) {
	action := req.Msg.GetAction()
	kind, how, message := orderReboot, "rebooting", "it is told to reboot"
	switch action {
	case api.ActMachineRequest_ACTION_REBOOT:
	case api.ActMachineRequest_ACTION_SHUTDOWN:
		kind, how, message = orderShutdown, "shutting down", "it is told to switch off"
	case api.ActMachineRequest_ACTION_RESET:
		message = "it is armed and told to reboot; when it netboots its disk is written anew"
	case api.ActMachineRequest_ACTION_RESET_KEEP:
		kind, message = orderResetKeep, "it is told to forget etcd and Kubernetes and to reboot; then it joins again as an empty machine"
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say what to do: reboot, shutdown, reset or reset-keep"))
	}
	if req.Msg.GetSelection().GetAll() {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("name the machines: nobody means all of them"))
	}
	names, err := s.selected(req.Msg.GetSelection(), nil)
	if err != nil {
		return nil, err
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	from := callerOf(ctx)
	outcomes := s.each(ctx, names, message, func(c *change, m *store.Machine) error {
		if err := s.canAct(*m, c.now); err != nil {
			return err
		}
		if action == api.ActMachineRequest_ACTION_RESET {
			if err := s.reset(c, m, nodes, choices, from.identity.Name); err != nil {
				return err
			}
		} else if action == api.ActMachineRequest_ACTION_RESET_KEEP {
			if err := s.mayWipe(c, m, nodes, choices); err != nil {
				return err
			}
		} else if !req.Msg.GetForce() {
			now, err := s.asOfNow(c, nodes, choices, m.Name)
			if err != nil {
				return err
			}
			if ok, why := coordinator.MayPause(now, choices, m.Name, how); !ok {
				return &refusedError{codeWouldStopEtcd, why + "; --force does it all the same"}
			}
		}
		id, err := s.newID()
		if err != nil {
			return err
		}
		r, _ := s.board.get(m.Name)
		m.Order = &store.Order{ID: id, Kind: kind, By: from.identity.String(), Serial: from.serial, At: c.now, Reason: words(req.Msg.GetReason()),
			Force: req.Msg.GetForce() && kind != orderResetKeep && action != api.ActMachineRequest_ACTION_RESET, Boot: r.last.GetBootId(),
			Uncordon: req.Msg.GetUncordon() && action == api.ActMachineRequest_ACTION_REBOOT}
		detail := req.Msg.GetReason()
		if m.Order.Force {
			detail = strings.TrimSpace("forced; " + detail)
		}
		word := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(action.String(), "ACTION_")), "_", "-")
		c.log(audit.Entry{Action: word + "-asked", Machine: m.Name, Before: string(m.State), After: string(m.State), Detail: words(detail)})
		return nil
	})
	return connect.NewResponse(&api.ActMachineResponse{Outcomes: outcomes}), nil
}

// canAct refuses what no agent would hear.
func (s *Server) canAct(m store.Machine, now time.Time) error {
	r, ok := s.board.get(m.Name)
	switch {
	case !ok || r.last == nil || now.Sub(r.at) >= silence:
		return &refusedError{codeSilent, "it has not called lately, so nobody hears it; imagectl machines power asks its BMC"}
	case r.last.GetMode() != api.Mode_MODE_NODE:
		return &refusedError{codeSilent, "its installer runs, not its installed system; imagectl machines power asks its BMC"}
	case !r.last.GetObeys():
		return &refusedError{codeAgentDoesNotAct, fmt.Sprintf("its agent (%s) does not know how; imagectl machines power asks its BMC", words(r.last.GetAgentVersion()))}
	case m.State == machine.Retired:
		return &refusedError{codeRefused, "it is retired, and nobody listens to it any more"}
	case m.Order != nil && away(m, now):
		return &refusedError{codeOrderUnderWay, fmt.Sprintf("a %s that %s asked for at %s is under way", m.Order.Kind, m.Order.By, m.Order.At.UTC().Format(time.RFC3339))}
	}
	return nil
}

// mayWipe refuses what arming a machine that is installed refuses too.
func (s operators) mayWipe(c *change, m *store.Machine, nodes []coordinator.Node, choices coordinator.Choices) error {
	if _, listed := s.machineOf(m.Name); !listed {
		return &refusedError{enrol.CodeUnknownMachine, fmt.Sprintf("cluster.yaml does not list %s; add it there first", m.Name)}
	}
	return s.loses(c, nodes, choices, m.Name, "wiping")
}

// reset arms a machine that is installed, as ArmMachine does with reinstall.
func (s operators) reset(c *change, m *store.Machine, nodes []coordinator.Node, choices coordinator.Choices, by string) error {
	if err := s.mayWipe(c, m, nodes, choices); err != nil {
		return err
	}
	if m.State == machine.Armed {
		return nil
	}
	id, err := s.newID()
	if err != nil {
		return err
	}
	if err := c.move(m, "machine-armed", "reset", machine.ArmReinstall); err != nil {
		return err
	}
	m.Arming = &store.Arming{ID: id, At: c.now, By: by}
	return nil
}

// orderFor is what a machine that calls is to do; nil for nothing.
func (s *Server) orderFor(name string) *api.Order {
	m, ok := s.cfg.Store.Machine(name)
	o := m.Order
	if !ok || o == nil || o.Obeyed || o.Refused != "" || s.cfg.Now().Sub(o.At) >= orderLife {
		return nil
	}
	kind := map[string]api.Order_Kind{orderReboot: api.Order_KIND_REBOOT, orderShutdown: api.Order_KIND_SHUTDOWN, orderResetKeep: api.Order_KIND_RESET_KEEP}[o.Kind]
	return &api.Order{Id: o.ID, Kind: kind, By: o.By, Serial: o.Serial, Reason: o.Reason, Force: o.Force}
}

// answered takes in what became of a machine's order. Each is an entry of the log, once.
func (s agents) answered(ctx context.Context, from caller, r *api.SyncRequest) error {
	said, name := r.GetOrder(), from.identity.Name
	waits := func(m store.Machine) bool {
		return m.Order != nil && m.Order.ID == said.GetId() && !m.Order.Obeyed && m.Order.Refused == ""
	}
	if m, ok := s.cfg.Store.Machine(name); said.GetId() == "" || !ok || !waits(m) {
		return nil
	}
	return s.coordinate(ctx, from.actor(), func(c *change) error {
		m, err := c.machine(name)
		if err != nil || !waits(m) {
			return err
		}
		o := *m.Order
		e := audit.Entry{Action: o.Kind + "-obeyed", Machine: name, Detail: "asked by " + o.By}
		if o.Obeyed = said.GetObeyed(); !o.Obeyed {
			o.Refused = words(said.GetDetail())
			if o.Refused == "" {
				o.Refused = "it does not say why"
			}
			e.Action, e.Detail = o.Kind+"-refused", o.Refused
		}
		m.Order = &o
		c.log(e)
		return c.tx.PutMachine(m)
	})
}

func (s *Server) orderView(o *store.Order) *api.OrderView {
	if o == nil {
		return nil
	}
	v := &api.OrderView{Id: o.ID, What: o.Kind, By: o.By, At: timestamppb.New(o.At), State: "asked", Detail: o.Refused}
	switch {
	case o.Obeyed:
		v.State = "obeyed"
	case o.Refused != "":
		v.State = "refused"
	case s.cfg.Now().Sub(o.At) >= orderLife:
		v.State = "missed"
	}
	return v
}
