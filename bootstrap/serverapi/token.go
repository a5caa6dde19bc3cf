package serverapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// How long a token is good for.
const (
	tokenMinutes    = 15
	maxTokenMinutes = 60
)

// IssueToken implements apiconnect.OperatorServiceHandler. A newer token takes an
// older one's place.
func (s operators) IssueToken(ctx context.Context, req *connect.Request[api.IssueTokenRequest]) (*connect.Response[api.IssueTokenResponse], error) {
	from, name := callerOf(ctx), req.Msg.GetMachine()
	minutes := req.Msg.GetMinutes()
	if minutes == 0 {
		minutes = tokenMinutes
	}
	switch _, listed := s.machineOf(name); {
	case !s.cfg.Tokens:
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("cluster.yaml takes no tokens; set identity.policy: token and restart imagectl serve"))
	case !listed:
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("cluster.yaml does not list %q; imagectl machines ls shows what it lists", name))
	case minutes > maxTokenMinutes:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d minutes exceed %d: a token is for a machine that starts now", minutes, maxTokenMinutes))
	}
	token, err := enrol.NewToken(name, s.cfg.Rand)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	var nodes []coordinator.Node
	var choices coordinator.Choices
	if req.Msg.GetReplaceKey() {
		if nodes, choices, err = s.decide(ctx); err != nil {
			return nil, s.storing(name, err)
		}
	}
	var end time.Time
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		m, err := c.machine(name)
		if err != nil {
			return err
		}
		switch {
		case m.State == machine.Retired:
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s was retired; imagectl machines replace %s gives its name to other hardware", name, name))
		case m.Key != nil && !req.Msg.GetReplaceKey():
			return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s has an approved key; if this machine is made anew, say --replace-key", name))
		}
		// It is asked again when the token is used; the person hears of it now.
		if !req.Msg.GetForce() {
			err := s.mayReplaceKey(c, m, nodes, choices)
			if refused := new(refusedError); errors.As(err, &refused) {
				return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s (%s): %w", name, refused.code, refused))
			} else if err != nil {
				return err
			}
		}
		end = c.now.Add(time.Duration(minutes) * time.Minute)
		m.Token = &store.Token{Digest: enrol.TokenDigest(token), At: c.now, By: from.identity.Name, NotAfter: end, Replace: req.Msg.GetReplaceKey(), Force: req.Msg.GetForce()}
		c.log(audit.Entry{Action: "token-made", Machine: name, Detail: "good until " + end.UTC().Format(time.RFC3339)})
		return c.tx.PutMachine(m)
	})
	if err != nil {
		return nil, s.storing(name, err)
	}
	return connect.NewResponse(&api.IssueTokenResponse{Token: token, NotAfter: timestamppb.New(end)}), nil
}

// burn takes a key by the machine's token, which lets no other one in after that.
func (s *Server) burn(c *change, m *store.Machine, key store.Key) error {
	if m.Key != nil {
		if _, err := s.revoke(c, holderOf(pki.KindNode, m.Name), "the machine's key was replaced", every); err != nil {
			return err
		}
	}
	m.Token.UsedBy, m.Token.UsedAt = key.Fingerprint, c.now
	c.log(audit.Entry{Action: "token-used", Machine: m.Name, Detail: "by key " + key.Fingerprint})
	m.Pending = append(m.Pending, key)
	if err := c.approve(m, len(m.Pending)-1, m.Token.By+" by token"); err != nil {
		return err
	}
	return c.move(m, "conflict-resolved", "", machine.ConflictResolved)
}
