package serverapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// reasoned is why something was done, for the log and for those who are refused.
func reasoned(what, why string) string {
	if why = strings.TrimSpace(why); why == "" {
		return what
	}
	return what + ": " + words(why)
}

// RetireMachine implements apiconnect.OperatorServiceHandler.
func (s operators) RetireMachine(ctx context.Context, req *connect.Request[api.RetireMachineRequest]) (*connect.Response[api.RetireMachineResponse], error) {
	if req.Msg.GetSelection().GetAll() {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("name the machines to retire; there is no way back"))
	}
	names, err := s.selected(req.Msg.GetSelection(), nil)
	if err != nil {
		return nil, err
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	why := reasoned("the machine was retired", req.Msg.GetReason())
	leaving := "" // one at a time
	outcomes := s.each(ctx, names, "", func(c *change, m *store.Machine) error {
		if m.State == machine.Retired {
			return nil // a lost reply
		}
		if leaving == m.Name {
			leaving = "" // this runs again
		}
		if err := s.loses(c, nodes, choices, m.Name, "retiring"); err != nil {
			now, errNow := s.asOfNow(c, nodes, choices, m.Name)
			if errNow != nil || !coordinator.MayLeave(now, choices, m.Name) {
				return cmp.Or(errNow, err)
			}
			if leaving != "" {
				return &refusedError{codeLeavesEtcd, fmt.Sprintf("its etcd member is removed first, and that of %s before it; retire it again when imagectl etcd members does not list %s any more", leaving, leaving)}
			}
			leaving = m.Name
			return &refusedError{codeLeavesEtcd, fmt.Sprintf("its etcd member is removed first, while it is well: %d voters become %d; retire it again when imagectl etcd members does not list it any more", len(choices.EtcdVoters), len(choices.EtcdVoters)-1)}
		}
		if _, err := s.revoke(c, holderOf(pki.KindNode, m.Name), why, every); err != nil {
			return err
		}
		m.Arming, m.Token, m.Pending, m.Asked = nil, nil, nil, 0
		m.NodeBoot, m.LostBoot = "", cmp.Or(m.NodeBoot, m.LostBoot)
		if err := c.unbind(m); err != nil {
			return err
		}
		return c.move(m, "machine-retired", req.Msg.GetReason(), machine.Retire)
	})
	if leaving != "" {
		if err := s.leave(ctx, leaving); err != nil {
			return nil, s.storing(leaving, err)
		}
	}
	for _, o := range outcomes {
		if o.GetOk() {
			o.Message = "its certificates are refused from now on; left to do: " + s.leftToDo(o.GetMachine())
		}
	}
	return connect.NewResponse(&api.RetireMachineResponse{Outcomes: outcomes}), nil
}

// leave has a voter taken off etcd's list while it is well.
func (s operators) leave(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.refresh()
	var stored coordinator.Choices
	err := s.coordinate(ctx, callerOf(ctx).actor(), func(c *change) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		if stored.EtcdLeaving == name || !coordinator.MayLeave(nodes, stored, name) {
			return nil // asked before, or not possible any more
		}
		stored.EtcdLeaving = name
		c.log(audit.Entry{Action: "etcd-leaving", Machine: name, Detail: "its member is removed so that it can be retired"})
		return c.tx.PutValue(valueChoices, stored)
	})
	if err == nil {
		s.choices = stored
		s.board.wake()
	}
	return err
}

// leftToDo is what the server cannot do about a machine that is gone.
func (s *Server) leftToDo(name string) string {
	m, listed := s.machineOf(name)
	todo := []string{"switch it off or wipe it (kubelet's own certificate is Kubernetes', which cannot revoke)"}
	if s.lostBoot(name) != "" {
		todo = append(todo, "nothing in Kubernetes: a control plane removes its node by itself (imagectl audit ls)")
	} else if r, _ := s.cfg.Store.Machine(name); !r.JoinedAt.IsZero() {
		// It is gone, or the record is of a server that did not know which one it was.
		todo = append(todo, fmt.Sprintf("kubectl delete node %s, if there is one", name))
	}
	if m.ControlPlane {
		todo = append(todo, "nothing in etcd: its member is removed by itself (imagectl etcd members)")
	}
	if listed {
		todo = append(todo, "take it out of cluster.yaml")
	}
	return strings.Join(todo, "; ")
}

// approve takes the key at a place among the pending ones, and the TPM that it was
// proven by.
func (c *change) approve(m *store.Machine, i int, by string) error {
	action, detail := "key-approved", ""
	if m.Key != nil {
		action, detail = "key-replaced", ", replaces key "+m.Key.Fingerprint
	}
	key := m.Pending[i]
	key.ApprovedAt, key.ApprovedBy = c.now, by
	m.Key, m.Pending, m.Asked = &key, nil, 0
	c.log(audit.Entry{Action: action, Machine: m.Name, Detail: fmt.Sprintf("key %s, code %s%s", key.Fingerprint, key.Code, detail)})
	return c.bind(m, key.TPM)
}

// reject remembers keys that are never taken again for a machine.
func reject(m *store.Machine, fingerprints ...string) {
	m.Rejected = append(m.Rejected, fingerprints...)
	if n := len(m.Rejected) - enrol.MaxRejected; n > 0 {
		m.Rejected = slices.Delete(m.Rejected, 0, n)
	}
}
