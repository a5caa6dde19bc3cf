package serverapi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// codeNotLost is the reason code when etcd need not or cannot go on with one voter.
const codeNotLost = "etcd-not-lost"

// RestoreEtcd implements apiconnect.OperatorServiceHandler. It stores what is wanted; the
// machine does it when it is told so.
func (s operators) RestoreEtcd(ctx context.Context, req *connect.Request[api.RestoreEtcdRequest]) (*connect.Response[api.RestoreEtcdResponse], error) {
	name, lost := req.Msg.GetMachine(), req.Msg.GetLost()
	if name == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which voter etcd is to go on with"))
	}
	if _, _, err := s.decide(ctx); err != nil {
		return nil, s.storing("", err)
	}
	id, err := s.newID()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	nodes := s.refresh()
	var stored coordinator.Choices
	message := fmt.Sprintf("it goes on as etcd's only member when it calls next; imagectl etcd status says how far that is. Then install the others anew: imagectl machines arm %s --reinstall", strings.Join(lost, " "))
	outcome := s.one(ctx, name, message, func(c *change, m *store.Machine) error {
		stored = coordinator.Choices{}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		next, why := coordinator.AskAlone(nodes, stored, m.Name, lost, id)
		if why != "" {
			return &refusedError{codeNotLost, why}
		}
		if next.Equal(stored) {
			return nil // asked before
		}
		stored = next
		c.log(audit.Entry{Action: "etcd-restore-asked", Machine: m.Name, Detail: reasoned("it goes on as the only member, without "+strings.Join(lost, ", "), req.Msg.GetReason())})
		return c.tx.PutValue(valueChoices, next)
	})
	if outcome.GetOk() {
		s.choices = stored
		s.board.wake()
	}
	return connect.NewResponse(&api.RestoreEtcdResponse{Outcome: outcome}), nil
}
