package serverapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Names of values in the store.
const (
	valuePersons    = "operators/"     // + name
	valuePersonKeys = "operator-keys/" // + fingerprint: whose it is
	// valueLocalPerson names who came in last by starting a server.
	valueLocalPerson = "operator-local"
)

// Reason codes of outcomes about operators.
const (
	codeUnknownOperator = "no-such-operator"
	codeOperatorRevoked = "operator-revoked"
)

// person is an operator on record. A name that was revoked stays on record, so that
// nobody comes in under it by starting the server again.
type person struct {
	Name string   `json:"name"`
	Role pki.Role `json:"role"`
	// Key is the fingerprint of the person's own key; empty for a local operator, who
	// gets another key with each certificate.
	Key string `json:"key,omitempty"`
	// Local: imagectl serve keeps a context file of this operator on its machine.
	Local   bool      `json:"local,omitempty"`
	AddedAt time.Time `json:"addedAt"`
	AddedBy string    `json:"addedBy"`
	// RevokedAt is the zero time for a person who may come in.
	RevokedAt time.Time `json:"revokedAt,omitzero"`
	RevokedBy string    `json:"revokedBy,omitempty"`
	Reason    string    `json:"reason,omitempty"`
}

func (p person) standing() bool { return p.RevokedAt.IsZero() }

func (p person) refusal() error {
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("operator %s was revoked at %s: %s", p.Name, p.RevokedAt.UTC().Format(time.RFC3339), p.Reason))
}

func (c *change) person(name string) (person, bool, error) {
	var p person
	ok, err := c.tx.Value(valuePersons+name, &p)
	return p, ok, err
}

// persons reads everybody on record.
func (s *Server) persons(ctx context.Context) (map[string]person, error) {
	values, err := s.cfg.Store.Values(ctx, valuePersons)
	if err != nil {
		return nil, err
	}
	out := make(map[string]person, len(values))
	for name, v := range values {
		var p person
		if err := json.Unmarshal(v, &p); err != nil {
			return nil, fmt.Errorf("reading operator %s: %w", name, err)
		}
		out[name] = p
	}
	return out, nil
}

// Local makes a certificate and key for the context file of the machine that runs this
// server. Only one person is let in that way: the first of a cluster, and another one
// when no admin is left. Everybody else has an own key, which an admin adds.
func (s *Server) Local(ctx context.Context, who string) (certificatePEM, keyPEM []byte, notAfter time.Time, err error) {
	return s.local(ctx, who, false)
}

// LocalNamed is Local for somebody whom the owner of the server's machine names on purpose. Where
// some things take two persons, that lets in one more while there are fewer than three: one who
// is alone, or whose only colleague is not to be trusted any more, gets a second person no other
// way.
func (s *Server) LocalNamed(ctx context.Context, who string) (certificatePEM, keyPEM []byte, notAfter time.Time, err error) {
	return s.local(ctx, who, true)
}

func (s *Server) local(ctx context.Context, who string, named bool) (certificatePEM, keyPEM []byte, notAfter time.Time, err error) {
	return s.operator(ctx, who, pki.RoleAdmin, func(c *change) error {
		// Of two servers that start at once on one store, the second looks again.
		var last string
		if _, err := c.tx.Value(valueLocalPerson, &last); err != nil {
			return err
		}
		all, err := s.persons(ctx)
		if err != nil {
			return err
		}
		p, known, err := c.person(who)
		switch {
		case err != nil:
			return err
		case known && !p.standing():
			return p.refusal()
		case known && p.Local:
			return nil
		case known:
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("operator %s has an own key and needs no context file of this machine", who))
		}
		why := "by starting the server: there is no other admin"
		admins := standing(all, pki.RoleAdmin)
		if len(admins) > 0 && named && len(s.cfg.SecondPerson) > 0 && len(standing(all, pki.RoleAdmin, pki.RoleOperator)) < 3 {
			admins, why = nil, "by starting the server with this name: some things take two persons"
		}
		if len(admins) > 0 {
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is no operator of this cluster; make a key with imagectl operators request, and have it added by %s", who, strings.Join(admins, ", ")))
		}
		if err := c.tx.PutValue(valueLocalPerson, who); err != nil {
			return err
		}
		c.log(audit.Entry{Action: "operator-added", Detail: fmt.Sprintf("%s with role %s, %s", who, pki.RoleAdmin, why)})
		return c.tx.PutValue(valuePersons+who, person{Name: who, Role: pki.RoleAdmin, Local: true, AddedAt: c.now, AddedBy: c.actor.Subject})
	})
}

// standing names those who have one of these roles and may come in, sorted.
func standing(all map[string]person, roles ...pki.Role) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if p := all[name]; p.standing() && slices.Contains(roles, p.Role) {
			out = append(out, name)
		}
	}
	return out
}

// admins are those who have the role admin now, for nodes. While the store does not answer it
// is who had it last: who waits for a directive must not be turned away for that.
func (s *Server) admins(ctx context.Context) []*api.Admin {
	all, err := s.persons(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.cfg.Log.Warn("who is an admin now is not read; nodes are told what was read last", "error", err.Error())
		}
		last, _ := s.lastAdmins.Load().([]*api.Admin)
		return last
	}
	var now []*api.Admin
	for _, name := range standing(all, pki.RoleAdmin) {
		now = append(now, &api.Admin{Name: name, Key: all[name].Key})
	}
	s.lastAdmins.Store(now)
	return now
}

// AddOperator implements apiconnect.OperatorServiceHandler.
func (s operators) AddOperator(ctx context.Context, req *connect.Request[api.AddOperatorRequest]) (*connect.Response[api.AddOperatorResponse], error) {
	from, name, role := callerOf(ctx), req.Msg.GetName(), pki.Role(req.Msg.GetRole())
	key, err := pki.ParseRequest(req.Msg.GetCsrDer())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	issued, err := s.signOperator(name, role, key)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	refused := func(format string, args ...any) error {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(format, args...))
	}
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		var owner string
		if _, err := c.tx.Value(valuePersonKeys+key.Fingerprint(), &owner); err != nil {
			return err
		}
		p, known, err := c.person(name)
		if err != nil {
			return err
		}
		switch {
		case owner != "" && owner != name:
			return refused("this key belongs to operator %s; each person has an own one", owner)
		case known && !p.standing() && owner == name:
			return refused("this key of operator %s was revoked; make another: imagectl operators request --new", name)
		case known && p.standing() && p.Key == key.Fingerprint() && p.Role == role:
			return c.issued(holderOf(pki.KindOperator, name), caImagectl, profileOperator, issued) // a lost reply
		case known && p.standing() && !req.Msg.GetReplace():
			return refused("operator %s is on record with role %s; say --replace to take that role and key away", name, p.Role)
		}
		what := "added"
		if known {
			what = "replaced"
			if _, err := s.revoke(c, holderOf(pki.KindOperator, name), "the operator has another key or role", every); err != nil {
				return err
			}
		}
		c.log(audit.Entry{Action: "operator-" + what, Detail: fmt.Sprintf("%s with role %s and key %s", name, role, key.Fingerprint())})
		if err := c.tx.PutValue(valuePersonKeys+key.Fingerprint(), name); err != nil {
			return err
		}
		if err := c.tx.PutValue(valuePersons+name, person{Name: name, Role: role, Key: key.Fingerprint(), AddedAt: c.now, AddedBy: c.actor.Subject}); err != nil {
			return err
		}
		return c.issued(holderOf(pki.KindOperator, name), caImagectl, profileOperator, issued)
	})
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.AddOperatorResponse{CertificatePem: s.chain(string(issued.PEM)), CaPem: string(s.CAPEM()), FormerPem: string(s.FormerCAPEM()), Cluster: s.cfg.Cluster}), nil
}

// ListOperators implements apiconnect.OperatorServiceHandler.
func (s operators) ListOperators(ctx context.Context, _ *connect.Request[api.ListOperatorsRequest]) (*connect.Response[api.ListOperatorsResponse], error) {
	all, err := s.persons(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	resp := &api.ListOperatorsResponse{}
	for _, p := range all {
		v := &api.OperatorView{Name: p.Name, Role: string(p.Role), Key: p.Key, Local: p.Local, AddedAt: timestamppb.New(p.AddedAt), AddedBy: p.AddedBy}
		if !p.standing() {
			v.RevokedAt, v.RevokedBy, v.RevokedReason = timestamppb.New(p.RevokedAt), p.RevokedBy, p.Reason
		}
		resp.Operators = append(resp.Operators, v)
	}
	slices.SortFunc(resp.Operators, func(a, b *api.OperatorView) int { return cmp.Compare(a.Name, b.Name) })
	return connect.NewResponse(resp), nil
}

// RevokeOperators implements apiconnect.OperatorServiceHandler.
func (s operators) RevokeOperators(ctx context.Context, req *connect.Request[api.RevokeOperatorsRequest]) (*connect.Response[api.RevokeOperatorsResponse], error) {
	if len(req.Msg.GetNames()) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say whom: imagectl operators ls shows them"))
	}
	from, why := callerOf(ctx), reasoned("an operator revoked it", req.Msg.GetReason())
	resp := &api.RevokeOperatorsResponse{}
	for _, name := range req.Msg.GetNames() {
		o := &api.Outcome{Machine: name, Ok: true, ReasonCode: codeDone, State: "revoked"}
		err := s.coordinate(ctx, from.actor(), func(c *change) error {
			if err := c.standing(from); err != nil {
				return err
			}
			p, known, err := c.person(name)
			switch {
			case err != nil:
				return err
			case !known:
				return &refusedError{codeUnknownOperator, fmt.Sprintf("there is no operator %s; imagectl operators ls shows them", name)}
			case !p.standing():
				return nil // a lost reply
			}
			if _, err := s.revoke(c, holderOf(pki.KindOperator, name), why, every); err != nil {
				return err
			}
			return c.revokePerson(p, why)
		})
		refused := new(refusedError)
		switch {
		case errors.As(err, &refused):
			o.Ok, o.ReasonCode, o.Message, o.State = false, refused.code, refused.message, ""
		case err != nil:
			return nil, s.storing("", err)
		default:
			o.Message = s.afterRevoking(ctx)
		}
		resp.Outcomes = append(resp.Outcomes, o)
	}
	return connect.NewResponse(resp), nil
}

// revokePerson keeps a person out; the certificates are the caller's business.
func (c *change) revokePerson(p person, why string) error {
	p.RevokedAt, p.RevokedBy, p.Reason = c.now, c.actor.Subject, why
	c.log(audit.Entry{Action: "operator-revoked", Detail: fmt.Sprintf("%s with role %s: %s", p.Name, p.Role, why)})
	return c.tx.PutValue(valuePersons+p.Name, p)
}

// withdrawPerson revokes the person on record who holds certificates that were revoked,
// if which says so.
func (c *change) withdrawPerson(h holder, why string, which func(person) bool) (bool, error) {
	name := h.operator()
	if name == "" {
		return false, nil
	}
	p, known, err := c.person(name)
	if err != nil || !known || !p.standing() || !which(p) {
		return false, err
	}
	return true, c.revokePerson(p, why)
}

// afterRevoking is what to know once somebody was revoked.
func (s *Server) afterRevoking(ctx context.Context) string {
	const done = "the server refuses it now, nodes with their next call; Kubernetes when the kubeconfig ends, which is hours"
	all, err := s.persons(ctx)
	if err == nil && len(standing(all, pki.RoleAdmin)) == 0 {
		return done + "; no admin is left: start imagectl serve with --operator and another name"
	}
	return done
}
