package serverapi

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// powerTime bounds a call about power, below what the server allows an answer.
const powerTime = 50 * time.Second

// PowerMachine implements apiconnect.OperatorServiceHandler.
func (s operators) PowerMachine(ctx context.Context, req *connect.Request[api.PowerMachineRequest]) (*connect.Response[api.PowerMachineResponse], error) {
	action := req.Msg.GetAction()
	word := strings.ToLower(strings.TrimPrefix(action.String(), "ACTION_"))
	if _, known := api.PowerMachineRequest_Action_name[int32(action)]; !known || action == api.PowerMachineRequest_ACTION_UNSPECIFIED {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say what to do: status, on, off, shutdown, cycle or reset"))
	}
	names, err := s.selected(req.Msg.GetSelection(), func(m store.Machine) bool { _, has := s.bmcOf(m.Name); return has })
	if err != nil {
		return nil, err
	}
	// What is asked is in the audit log before it is done.
	outcomes := s.each(ctx, names, "", func(c *change, m *store.Machine) error {
		bmc, ok := s.bmcOf(m.Name)
		if !ok {
			return &refusedError{codeNoBMC, fmt.Sprintf("cluster.yaml names no BMC for %s", m.Name)}
		}
		if action == api.PowerMachineRequest_ACTION_STATUS {
			return nil
		}
		if m.State == machine.Installing && action != api.PowerMachineRequest_ACTION_ON && !req.Msg.GetForce() {
			return &refusedError{codeWriting, "it is writing its disk, which would be left half written; wait, or say --force"}
		}
		c.log(audit.Entry{Action: "power-" + word, Machine: m.Name, Before: string(m.State), After: string(m.State), Detail: "by " + bmc})
		return nil
	})
	acting, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	var workers errgroup.Group
	workers.SetLimit(maxNetboots)
	for _, o := range outcomes {
		if !o.GetOk() {
			continue
		}
		workers.Go(func() error {
			power, err := s.cfg.BMC.Power(acting, o.GetMachine(), action)
			if err != nil {
				o.Ok, o.ReasonCode, o.Message = false, codeBMC, err.Error()
				return nil
			}
			o.Message = power
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&api.PowerMachineResponse{Outcomes: outcomes}), nil
}
