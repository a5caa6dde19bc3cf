package serverapi

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// Reason codes of outcomes, besides enrol's.
const (
	codeDone          = "done"
	codeUnknownName   = "no-such-machine"
	codeRefused       = "not-in-this-state"
	codeNeedsWord     = "needs-reinstall"
	codeWouldLoseEtcd = "would-lose-etcd"
	codeLeavesEtcd    = "leaves-etcd"
	codeStorage       = "storage"
	codeNoBMC         = "no-bmc"
	codeDiskless      = "diskless"
	codeBMC           = "bmc"
	codeWriting       = "writes-its-disk"
)

// operators serves OperatorService.
type operators struct{ *Server }

// refusedError ends a change with an outcome instead of an effect.
type refusedError struct{ code, message string }

func (e *refusedError) Error() string { return e.message }

// selected resolves a selection; all means every machine for which keep is true.
func (s operators) selected(sel *api.Selection, keep func(store.Machine) bool) ([]string, error) {
	names := sel.GetNames()
	if (len(names) > 0) == sel.GetAll() {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which machines: names, or all"))
	}
	if !sel.GetAll() {
		return names, nil
	}
	for _, m := range s.records() {
		if m.Known && m.State != machine.Retired && keep(m) {
			names = append(names, m.Name)
		}
	}
	return names, nil
}

// records are all records: cluster.yaml's in its order, then the unknown ones.
func (s *Server) records() []store.Machine {
	all := s.cfg.Store.Machines()
	place := func(m store.Machine) int {
		if i, ok := s.byName[m.Name]; ok {
			return i
		}
		return len(s.byName)
	}
	slices.SortStableFunc(all, func(a, b store.Machine) int { return place(a) - place(b) })
	return all
}

// each runs one transaction per machine, one after the other, and collects the outcomes.
func (s operators) each(ctx context.Context, names []string, message string, f func(c *change, m *store.Machine) error) []*api.Outcome {
	out := make([]*api.Outcome, len(names))
	for i, name := range names {
		out[i] = s.one(ctx, name, message, f)
	}
	return out
}

// abreast is how many machines are changed at a time where they have nothing to do with
// each other.
const abreast = 64

// together is each for changes that may be made in any order.
func (s operators) together(ctx context.Context, names []string, message string, f func(c *change, m *store.Machine) error) []*api.Outcome {
	out := make([]*api.Outcome, len(names))
	var workers errgroup.Group
	workers.SetLimit(abreast)
	for i, name := range names {
		workers.Go(func() error {
			out[i] = s.one(ctx, name, message, f)
			return nil
		})
	}
	_ = workers.Wait() // nobody returns an error
	return out
}

func (s operators) one(ctx context.Context, name, message string, f func(c *change, m *store.Machine) error) *api.Outcome {
	from := callerOf(ctx)
	o := &api.Outcome{Machine: name, Ok: true, ReasonCode: codeDone, Message: message}
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		m, ok, err := c.tx.Machine(name)
		if err != nil {
			return err
		}
		if !ok {
			return &refusedError{codeUnknownName, fmt.Sprintf("there is no machine %s; imagectl machines ls shows them", name)}
		}
		if err := f(c, &m); err != nil {
			return err
		}
		return c.tx.PutMachine(m)
	})
	if err != nil {
		o.Ok, o.ReasonCode, o.Message = false, codeStorage, err.Error()
		var refused *refusedError
		var state *machine.RefusedError
		var enrolment *enrol.Refusal
		switch {
		case errors.As(err, &refused):
			o.ReasonCode = refused.code
		case errors.As(err, &state):
			o.ReasonCode, o.Message = codeRefused, fmt.Sprintf("it is %s: %s", state.State, state.Hint)
		case errors.As(err, &enrolment):
			o.ReasonCode = enrolment.Code
		default:
			s.cfg.Log.Error("changing a machine", "machine", name, "error", err.Error())
		}
	}
	if m, ok := s.cfg.Store.Machine(name); ok {
		o.State = string(m.State)
	}
	return o
}

// ApproveMachine implements apiconnect.OperatorServiceHandler.
func (s operators) ApproveMachine(ctx context.Context, req *connect.Request[api.ApproveMachineRequest]) (*connect.Response[api.ApproveMachineResponse], error) {
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool { return len(m.Pending) > 0 })
	if err != nil {
		return nil, err
	}
	by := callerOf(ctx).identity.Name
	// First keys have nothing to do with each other. Of voters whose keys are replaced each costs
	// etcd one, so they go one after the other.
	apply := s.together
	var nodes []coordinator.Node
	var choices coordinator.Choices
	if req.Msg.GetReplaceKey() {
		if nodes, choices, err = s.decide(ctx); err != nil {
			return nil, s.storing("", err)
		}
		nodes, apply = slices.Clone(nodes), s.each
	}
	outcomes := apply(ctx, names, "its key is approved", func(c *change, m *store.Machine) error {
		approvedCode := ""
		if m.Key != nil {
			approvedCode = m.Key.Code
		}
		i, refusal := enrol.Approve(s.recordOf(*m), approvedCode, req.Msg.GetCodes()[m.Name], req.Msg.GetReplaceKey())
		if refusal != nil {
			return refusal
		}
		if i < 0 {
			return nil // approved before; the reply was lost
		}
		if m.Key != nil {
			if !req.Msg.GetForce() {
				if err := s.mayReplaceKey(c, *m, nodes, choices); err != nil {
					return err
				}
			}
			if _, err := s.revoke(c, holderOf(pki.KindNode, m.Name), "the machine's key was replaced", every); err != nil {
				return err
			}
			if at := slices.IndexFunc(nodes, func(n coordinator.Node) bool { return n.Name == m.Name }); at >= 0 {
				nodes[at] = ill(nodes[at]) // for those that follow
			}
		}
		if err := c.approve(m, i, by); err != nil {
			return err
		}
		return c.move(m, "conflict-resolved", "", machine.ConflictResolved)
	})
	for _, o := range outcomes {
		if o.GetOk() && req.Msg.GetReplaceKey() {
			s.board.forget(o.GetMachine()) // what it said last, it said by the key before
		}
	}
	return connect.NewResponse(&api.ApproveMachineResponse{Outcomes: outcomes}), nil
}

// RejectMachine implements apiconnect.OperatorServiceHandler.
func (s operators) RejectMachine(ctx context.Context, req *connect.Request[api.RejectMachineRequest]) (*connect.Response[api.RejectMachineResponse], error) {
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool { return len(m.Pending) > 0 })
	if err != nil {
		return nil, err
	}
	outcomes := s.each(ctx, names, "what asked for it is rejected", func(c *change, m *store.Machine) error {
		if len(m.Pending) == 0 {
			return &refusedError{enrol.CodeNothing, fmt.Sprintf("no key waits for %s", m.Name)}
		}
		for _, k := range m.Pending {
			reject(m, k.Fingerprint)
			c.log(audit.Entry{Action: "key-rejected", Machine: m.Name, Detail: strings.TrimSpace(fmt.Sprintf("key %s, code %s %s", k.Fingerprint, k.Code, req.Msg.GetReason()))})
		}
		m.Pending, m.Asked = nil, 0
		return c.move(m, "conflict-resolved", "", machine.ConflictResolved)
	})
	return connect.NewResponse(&api.RejectMachineResponse{Outcomes: outcomes}), nil
}

// ArmMachine implements apiconnect.OperatorServiceHandler.
func (s operators) ArmMachine(ctx context.Context, req *connect.Request[api.ArmMachineRequest]) (*connect.Response[api.ArmMachineResponse], error) {
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool {
		_, has := s.bmcOf(m.Name)
		return (has || !req.Msg.GetNetboot()) && !s.isDiskless(m.Name)
	})
	if err != nil {
		return nil, err
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	by := callerOf(ctx).identity.Name
	reinstall := req.Msg.GetReinstall()
	message := "its next netboot may install it, once"
	if req.Msg.GetNetboot() {
		message = "its BMC starts it from the network"
	}
	outcomes := s.each(ctx, names, message, func(c *change, m *store.Machine) error {
		if req.Msg.GetNetboot() {
			if begun, err := s.canNetboot(*m); begun || err != nil {
				return err
			}
		}
		event := machine.Arm
		if reinstall {
			event = machine.ArmReinstall
		}
		if _, listed := s.machineOf(m.Name); !listed {
			return &refusedError{enrol.CodeUnknownMachine, fmt.Sprintf("cluster.yaml does not list %s; add it there first", m.Name)}
		}
		if s.isDiskless(m.Name) { // before it is said how to do it
			return errDiskless()
		}
		if !reinstall && !m.InstalledAt.IsZero() && m.State != machine.Armed {
			return &refusedError{codeNeedsWord, "it was installed before; say --reinstall to wipe it"}
		}
		if err := s.loses(c, nodes, choices, m.Name, "wiping"); err != nil {
			return err
		}
		if err := s.armNow(c, m, event, by); err != nil {
			return err
		}
		if req.Msg.GetNetboot() {
			s.askNetboot(c, m, req.Msg.GetAgain())
		}
		return nil
	})
	return connect.NewResponse(&api.ArmMachineResponse{Outcomes: outcomes}), nil
}

// armNow arms a machine that is not armed yet.
func (s *Server) armNow(c *change, m *store.Machine, event machine.Event, by string) error {
	if m.State == machine.Armed {
		return nil
	}
	if s.isDiskless(m.Name) {
		return errDiskless()
	}
	id, err := s.newID()
	if err != nil {
		return err
	}
	if err := c.move(m, "machine-armed", "", event); err != nil {
		return err
	}
	m.Arming = &store.Arming{ID: id, At: c.now, By: by}
	return nil
}

func (s *Server) isDiskless(name string) bool {
	m, _ := s.machineOf(name)
	return m.Diskless
}

func errDiskless() error {
	return &refusedError{codeDiskless, "it is diskless: it starts from the network whenever it is switched on, and nothing is ever installed on it"}
}

func (s *Server) newID() (string, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(s.cfg.Rand, b); err != nil {
		return "", fmt.Errorf("reading randomness: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// DisarmMachine implements apiconnect.OperatorServiceHandler.
func (s operators) DisarmMachine(ctx context.Context, req *connect.Request[api.DisarmMachineRequest]) (*connect.Response[api.DisarmMachineResponse], error) {
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool { return m.Arming != nil })
	if err != nil {
		return nil, err
	}
	outcomes := s.each(ctx, names, "nothing may write its disk", func(c *change, m *store.Machine) error {
		reason := ""
		if m.State == machine.Installing {
			reason = "disarmed while it was installing: its disk is incomplete"
		}
		if err := c.move(m, "machine-disarmed", reason, machine.Disarm); err != nil {
			return err
		}
		m.Arming = nil
		return nil
	})
	return connect.NewResponse(&api.DisarmMachineResponse{Outcomes: outcomes}), nil
}

// IssueKubeconfig implements apiconnect.OperatorServiceHandler.
func (s operators) IssueKubeconfig(ctx context.Context, req *connect.Request[api.IssueKubeconfigRequest]) (*connect.Response[api.IssueKubeconfigResponse], error) {
	from := callerOf(ctx)
	_, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	if !choices.KubernetesFormed {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the Kubernetes API server has not started yet; imagectl status says what it waits for"))
	}
	key, err := pki.ParseRequest(req.Msg.GetCsrDer())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	made, err := pki.KubernetesAdmin(from.identity.Name, s.lifetimes)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	issued, err := s.authority.kubernetes.Sign(made, key, s.cfg.Now(), s.cfg.Rand)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		return c.issued(holderOf(pki.KindOperator, from.identity.Name), caKubernetes, profileKubeconfig, issued)
	})
	if err != nil {
		return nil, s.storing("", err)
	}
	endpoint := s.cfg.Kubernetes.Endpoint
	if vips := s.vips(); endpoint == "" && len(vips) > 0 {
		endpoint = hostPort(vips[0], apiServerPort)
	} else if endpoint == "" {
		endpoint = hostPort(s.addressOf(choices.KubernetesFirst), apiServerPort)
	}
	return connect.NewResponse(&api.IssueKubeconfigResponse{
		CertificatePem: string(issued.PEM), CaPem: string(s.authority.kubernetes.CertificatePEM()),
		Server: "https://" + endpoint, Cluster: s.cfg.Cluster,
	}), nil
}
