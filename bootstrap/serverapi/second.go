package serverapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Danger is a kind of call that can be made to need two persons.
type Danger string

// The dangers.
const (
	// Wipe takes what is on a machine's disk.
	Wipe Danger = "wipe"
	// Destroy takes a machine out of the cluster for good.
	Destroy Danger = "destroy"
	// Admit lets a person in. Without it, one person could make a second one; so it is
	// guarded whenever anything is.
	Admit Danger = "admit"
	// Expel keeps a person out so that fewer than two are left, and is guarded as Admit is: or
	// one person could make everybody else go, and let in a second one of his own.
	Expel Danger = "expel"
)

// danger is what a request would do, in words for the person who is to agree; nil when
// one person is enough for it anywhere. One of the dangers in the policy is enough to hold it.
func danger(req any) ([]Danger, string) {
	switch r := req.(type) {
	case *api.ArmMachineRequest:
		if r.GetReinstall() {
			return []Danger{Wipe}, "wipe and install again " + selectionWords(r.GetSelection())
		}
	case *api.ActMachineRequest:
		if r.GetAction() == api.ActMachineRequest_ACTION_RESET {
			return []Danger{Wipe}, "reset, which wipes, " + selectionWords(r.GetSelection())
		}
		if r.GetAction() == api.ActMachineRequest_ACTION_RESET_KEEP {
			return []Danger{Wipe}, "have etcd's and Kubernetes' data wiped on " + selectionWords(r.GetSelection())
		}
	case *api.ReplaceMachineRequest:
		// The machine counts as one that was never installed, which is armed without a word: on the
		// same hardware that is a reinstallation.
		what := "give the name " + r.GetMachine() + " to other hardware"
		if r.GetArm() || r.GetNetboot() {
			what += " and arm it"
		}
		return []Danger{Destroy, Wipe}, what
	case *api.RestoreEtcdRequest:
		if r.GetCancel() {
			return nil, "" // it is what keeps data
		}
		if f := r.GetSnapshot(); f != nil {
			return []Danger{Destroy}, snapshotWords(r)
		}
		return []Danger{Destroy}, fmt.Sprintf("have etcd go on with what %s has, without %s", r.GetMachine(), strings.Join(r.GetLost(), ", "))
	case *api.RotateAuthorityRequest:
		return []Danger{Destroy}, "replace the CA " + r.GetCa()
	case *api.RetireMachineRequest:
		return []Danger{Destroy}, "retire " + selectionWords(r.GetSelection())
	case *api.AddOperatorRequest:
		if r.GetRole() == string(pki.RoleAdmin) || r.GetRole() == string(pki.RoleOperator) {
			return []Danger{Admit}, fmt.Sprintf("let in %s with role %s", r.GetName(), r.GetRole())
		}
	}
	return nil, ""
}

func selectionWords(s *api.Selection) string {
	if s.GetAll() {
		return "all machines"
	}
	return strings.Join(s.GetNames(), ", ")
}

const (
	valueRequests = "requests"
	// requestLife is how long a request waits, and how long it may be used after.
	requestLife = time.Hour
	// maxRequests bounds those that wait at a time.
	maxRequests = 64
)

// request is a call that waits for a second person, and is good once with it.
type request struct {
	ID string `json:"id"`
	// By is who asked, By's own word for it; Digest is of the whole call.
	By     string    `json:"by"`
	Digest string    `json:"digest"`
	Danger Danger    `json:"danger"`
	What   string    `json:"what"`
	At     time.Time `json:"at"`
	Until  time.Time `json:"until"`
	// ApprovedBy is empty until a second person agreed.
	ApprovedBy string `json:"approvedBy,omitempty"`
}

func (c *change) requests() ([]request, error) {
	var all []request
	_, err := c.tx.Value(valueRequests, &all)
	return slices.DeleteFunc(all, func(r request) bool { return c.now.After(r.Until) }), err
}

// secondPerson is the interceptor that holds back what one person alone may not do.
type secondPerson struct{ *Server }

// WrapUnary implements connect.Interceptor.
func (s secondPerson) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := s.hold(ctx, req); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (s secondPerson) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor; nothing that streams changes
// anything.
func (s secondPerson) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// hold returns nil when the call may go on now.
func (s secondPerson) hold(ctx context.Context, req connect.AnyRequest) error {
	kinds, what := danger(req.Any())
	if len(s.cfg.SecondPerson) == 0 || kinds == nil && !aboutPersons(req.Any()) {
		return nil
	}
	from := callerOf(ctx)
	all, err := s.persons(ctx)
	if err != nil {
		return s.storing("", err)
	}
	if kinds == nil {
		if kinds, what, err = s.expels(ctx, all, req.Any()); err != nil {
			return s.storing("", err)
		}
	}
	always := slices.Contains(kinds, Admit) || slices.Contains(kinds, Expel)
	if !always && !slices.ContainsFunc(kinds, func(d Danger) bool { return slices.Contains(s.cfg.SecondPerson, d) }) {
		return nil
	}
	kind := kinds[0]
	others := slices.DeleteFunc(standing(all, pki.RoleAdmin, pki.RoleOperator), func(name string) bool { return name == from.identity.Name })
	two, err := s.twoStood(ctx, from, all)
	if err != nil {
		return s.storing("", err)
	}
	if len(others) == 0 {
		if kind == Admit && !two {
			return nil // somebody has to let in the second person
		}
		way := "imagectl operators add"
		if two {
			way = "once there were two, whoever has the server's machine lets in the next one: imagectl serve --operator NAME"
		}
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("to %s takes a second person, and there is none: %s", what, way))
	}
	digest, err := digestOf(req)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	var waits error
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		waits = nil
		if err := c.standing(from); err != nil {
			return err
		}
		list, err := c.requests()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(r request) bool { return r.By == from.identity.Name && r.Digest == digest })
		switch {
		case i >= 0 && list[i].ApprovedBy != "":
			c.log(audit.Entry{Action: "request-used", Detail: fmt.Sprintf("%s: %s, with %s", list[i].ID, list[i].What, list[i].ApprovedBy)})
			return c.tx.PutValue(valueRequests, slices.Delete(list, i, i+1))
		case i < 0 && len(list) >= maxRequests:
			return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d requests wait for a second person already", len(list)))
		case i < 0:
			id, err := s.newID()
			if err != nil {
				return err
			}
			list = append(list, request{ID: id[:8], By: from.identity.Name, Digest: digest, Danger: kind, What: what, At: c.now, Until: c.now.Add(requestLife)})
			i = len(list) - 1
			c.log(audit.Entry{Action: "request-made", Detail: fmt.Sprintf("%s: %s", list[i].ID, what)})
			if err := c.tx.PutValue(valueRequests, list); err != nil {
				return err
			}
		}
		waits = connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("to %s takes a second person (%s): imagectl operators approve %s before %s, then repeat this command",
			what, strings.Join(others, ", "), list[i].ID, list[i].Until.UTC().Format(time.RFC3339)))
		return nil
	})
	if err != nil {
		return s.storing("", err)
	}
	return waits
}

// valueTwoPersons is the name of what remembers that two persons stood once.
const valueTwoPersons = "two-persons"

// twoStood says whether there were two once who could hold each other back, and remembers it: one
// who is alone since then may not choose the second one. Persons who were kept out are on record.
func (s secondPerson) twoStood(ctx context.Context, from caller, all map[string]person) (bool, error) {
	known := 0
	for _, p := range all {
		if guards(p.Role) {
			known++
		}
	}
	two := known >= 2
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		var before bool
		if _, err := c.tx.Value(valueTwoPersons, &before); err != nil || before || !two {
			two = two || before
			return err
		}
		return c.tx.PutValue(valueTwoPersons, true)
	})
	return two, err
}

// guards says whether who has a role can be the second person.
func guards(r pki.Role) bool { return r == pki.RoleAdmin || r == pki.RoleOperator }

// aboutPersons says whether a call may take something away from a person.
func aboutPersons(req any) bool {
	switch req.(type) {
	case *api.RevokeOperatorsRequest, *api.RevokeCertificatesRequest, *api.AddOperatorRequest:
		return true
	}
	return false
}

// expels says whether a call keeps so many people out, or takes their roles away, that fewer than two
// are left of those who hold each other back.
func (s secondPerson) expels(ctx context.Context, all map[string]person, req any) ([]Danger, string, error) {
	var names []string
	switch r := req.(type) {
	case *api.RevokeOperatorsRequest:
		names = r.GetNames()
	case *api.AddOperatorRequest: // with another role than those two, or it is Admit
		names = []string{r.GetName()}
	case *api.RevokeCertificatesRequest:
		held, err := s.held(ctx)
		if err != nil {
			return nil, "", err
		}
		for _, asked := range r.GetSerials() {
			h, which := resolve(held, asked)
			p, known := all[h.operator()]
			if known && (asked == string(h) || slices.ContainsFunc(held[h], func(c certificate) bool { return which(c) && c.CA == caImagectl && c.Key == p.Key })) {
				names = append(names, p.Name)
			}
		}
	}
	before := standing(all, pki.RoleAdmin, pki.RoleOperator)
	gone := slices.DeleteFunc(slices.Clone(before), func(name string) bool { return !slices.Contains(names, name) })
	if len(before) < 2 || len(gone) == 0 || len(before)-len(gone) >= 2 {
		return nil, "", nil
	}
	return []Danger{Expel}, fmt.Sprintf("keep out %s, which leaves %d", strings.Join(gone, ", "), len(before)-len(gone)), nil
}

// digestOf names a call with all that it says.
func digestOf(req connect.AnyRequest) (string, error) {
	m, ok := req.Any().(proto.Message)
	if !ok {
		return "", errors.New("the call has no message")
	}
	return digestOfCall(req.Spec().Procedure, m)
}

func (r request) view() *api.RequestView {
	return &api.RequestView{Id: r.ID, By: r.By, What: r.What, At: timestamppb.New(r.At), Until: timestamppb.New(r.Until), ApprovedBy: r.ApprovedBy}
}

// ListRequests implements apiconnect.OperatorServiceHandler.
func (s operators) ListRequests(ctx context.Context, _ *connect.Request[api.ListRequestsRequest]) (*connect.Response[api.ListRequestsResponse], error) {
	resp := &api.ListRequestsResponse{}
	err := s.coordinate(ctx, callerOf(ctx).actor(), func(c *change) error {
		list, err := c.requests()
		resp.Requests = nil
		for _, r := range list {
			resp.Requests = append(resp.Requests, r.view())
		}
		return err
	})
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(resp), nil
}

// ApproveRequest implements apiconnect.OperatorServiceHandler.
func (s operators) ApproveRequest(ctx context.Context, req *connect.Request[api.ApproveRequestRequest]) (*connect.Response[api.ApproveRequestResponse], error) {
	from := callerOf(ctx)
	var out request
	err := s.coordinate(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		list, err := c.requests()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(r request) bool { return r.ID == req.Msg.GetId() })
		if i < 0 {
			return connect.NewError(connect.CodeNotFound, fmt.Errorf("no request %q waits; imagectl operators requests lists them", req.Msg.GetId()))
		}
		r := &list[i]
		p, known, err := c.person(from.identity.Name)
		switch {
		case err != nil:
			return err
		case r.By == from.identity.Name:
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s asked for it: another person has to agree", r.By))
		case !known || !p.standing():
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is no operator on record", from.identity.Name))
		case r.Danger == Admit && p.Role != pki.RoleAdmin:
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s has role %s, and letting in takes an admin", p.Name, p.Role))
		case r.ApprovedBy == "":
			r.ApprovedBy = from.identity.Name
			c.log(audit.Entry{Action: "request-approved", Detail: fmt.Sprintf("%s: %s, asked by %s", r.ID, r.What, r.By)})
		}
		out = *r
		return c.tx.PutValue(valueRequests, list)
	})
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.ApproveRequestResponse{Request: out.view()}), nil
}
