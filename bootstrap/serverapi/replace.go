package serverapi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// ReplaceMachine implements apiconnect.OperatorServiceHandler. All of it is one transaction: a
// machine whose BMC cannot be asked, or that may not be lost, is as it was.
func (s operators) ReplaceMachine(ctx context.Context, req *connect.Request[api.ReplaceMachineRequest]) (*connect.Response[api.ReplaceMachineResponse], error) {
	name := req.Msg.GetMachine()
	if name == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which machine"))
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	by, code := callerOf(ctx).identity.Name, req.Msg.GetCode()
	why := reasoned("the machine's hardware was replaced", req.Msg.GetReason())
	netboot := req.Msg.GetNetboot()
	arm := netboot || req.Msg.GetArm()
	listedAs, _ := s.machineOf(name)
	outcomes := s.each(ctx, []string{name}, replaceNext(listedAs, arm, netboot, code != ""), func(c *change, m *store.Machine) error {
		if _, listed := s.machineOf(name); !listed {
			return &refusedError{enrol.CodeUnknownMachine, fmt.Sprintf("cluster.yaml does not list %s; add it there first", name)}
		}
		if err := s.loses(c, nodes, choices, name, "replacing"); err != nil {
			return err
		}
		if netboot {
			if _, err := s.canNetboot(*m); err != nil {
				return err
			}
		}
		if code != "" && m.Key != nil && m.Key.Code == enrol.NormalCode(code) {
			return &refusedError{enrol.CodeNothing, fmt.Sprintf("this is the code of the hardware that %s has now; the new one shows another", name)}
		}
		next := -1
		if code != "" {
			var refusal *enrol.Refusal
			if next, refusal = enrol.Approve(s.recordOf(*m), "", code, true); refusal != nil {
				return refusal
			}
		}
		if _, err := s.revoke(c, holderOf(pki.KindNode, name), why, every); err != nil {
			return err
		}
		if m.Key != nil {
			reject(m, m.Key.Fingerprint)
		}
		if m.State == machine.Approved { // it stays so, and other hardware is news all the same
			c.log(audit.Entry{Action: "machine-replaced", Machine: name, Before: string(m.State), After: string(m.State), Detail: req.Msg.GetReason()})
		}
		if err := c.move(m, "machine-replaced", req.Msg.GetReason(), machine.Replace); err != nil {
			return err
		}
		if err := c.unbind(m); err != nil {
			return err
		}
		*m = store.Machine{Name: m.Name, State: m.State, Since: m.Since, Reason: m.Reason, Known: m.Known, FirstSeen: m.FirstSeen, JoinedAt: m.JoinedAt, LostBoot: cmp.Or(m.NodeBoot, m.LostBoot), Pending: m.Pending, Asked: m.Asked, Rejected: m.Rejected}
		if next >= 0 {
			if err := c.approve(m, next, by); err != nil {
				return err
			}
		}
		if !arm {
			return nil
		}
		if err := s.armNow(c, m, machine.Arm, by); err != nil {
			return err
		}
		if netboot {
			s.askNetboot(c, m, false)
		}
		return nil
	})
	if o := outcomes[0]; o.GetOk() {
		s.board.forget(name)
	}
	return connect.NewResponse(&api.ReplaceMachineResponse{Outcome: outcomes[0]}), nil
}

// replaceNext is what was done and what is left to do, in order. Which hardware a machine is says
// cluster.yaml, which is reviewed: a file that names the old one by its MAC address, UUID or serial
// number has to be changed. One that names a switch port or a pattern fits the new hardware too.
func replaceNext(m Machine, armed, netbooted, approved bool) string {
	done, next := "its old key and certificates are refused", []string(nil)
	if approved {
		done += " and the new key is approved"
	}
	if netbooted {
		done += ", it is armed and its BMC starts it from the network"
	} else if armed {
		done += ", and its next netboot may install it, once"
	}
	if !approved && (len(m.MACs) > 0 || m.UUID != "" || m.Serial != "") {
		next = append(next, "put the new hardware's MAC address into cluster.yaml", "restart imagectl serve")
	}
	if !armed && !m.Diskless {
		next = append(next, "imagectl machines arm "+m.Name)
	}
	if !approved && !netbooted {
		next = append(next, "netboot it")
	}
	if !approved {
		next = append(next, fmt.Sprintf("imagectl machines approve %s --code %s=CODE", m.Name, m.Name))
	}
	if len(next) == 0 {
		return done
	}
	return done + "; next: " + strings.Join(next, ", ")
}
