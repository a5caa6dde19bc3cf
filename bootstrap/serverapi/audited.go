package serverapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/api/apiconnect"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Actions of entries about calls that changed nothing.
const (
	// actionRefused: somebody or something had a reason against it.
	actionRefused = "call-refused"
	// actionFailed: it was tried.
	actionFailed = "call-failed"
)

// auditTime bounds an entry about a call that is over: whoever made it is answered after that
// only, and may be gone.
const auditTime = 5 * time.Second

type argumentsKey struct{}

// argumentsOf is the digest of the call that a context belongs to, which is computed when the
// first entry wants it; nil for none.
func argumentsOf(ctx context.Context) func() string {
	f, _ := ctx.Value(argumentsKey{}).(func() string)
	return f
}

// withArguments says which call a context belongs to. m is as its handler has it by the time of the
// entry: of an agent's report, without what was too long in it.
func withArguments(ctx context.Context, procedure string, m any) context.Context {
	return context.WithValue(ctx, argumentsKey{}, sync.OnceValue(func() string {
		message, ok := m.(proto.Message)
		if !ok {
			return ""
		}
		digest, err := digestOfCall(procedure, message)
		if err != nil {
			return ""
		}
		return digest
	}))
}

// digestOfCall names a call with all that it says: audit.Entry.Arguments.
func digestOfCall(procedure string, m proto.Message) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append([]byte(procedure+"\n"), b...))
	return hex.EncodeToString(sum[:]), nil
}

// audited is the interceptor that has entries name the call that they come of, and that has
// what operators were refused in the log: what they got is there with its change.
type audited struct {
	*Server
	table map[string]permission
}

// WrapUnary implements connect.Interceptor.
func (s audited) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		procedure := req.Spec().Procedure
		ctx = withArguments(ctx, procedure, req.Any())
		resp, err := next(ctx, req)
		if !s.acts(procedure) {
			return resp, err
		}
		if err != nil {
			s.auditRefusals(ctx, callerOf(ctx), nothingCameOf(path.Base(procedure), err))
		} else if all := refusedOutcomes(path.Base(procedure), resp.Any()); len(all) > 0 {
			s.auditRefusals(ctx, callerOf(ctx), all...)
		}
		return resp, err
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (s audited) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. What a call says comes after its
// beginning.
func (s audited) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		procedure := conn.Spec().Procedure
		hears := &hearing{StreamingHandlerConn: conn}
		ctx = context.WithValue(ctx, argumentsKey{}, func() string {
			digest, _ := withArguments(ctx, procedure, hears.message).Value(argumentsKey{}).(func() string)
			return digest()
		})
		err := next(ctx, hears)
		if err != nil && s.acts(procedure) {
			s.auditRefusals(ctx, callerOf(ctx), nothingCameOf(path.Base(procedure), err))
		}
		return err
	}
}

// hearing keeps the message that a call begins with. Handlers of a stream of answers have it
// before they run.
type hearing struct {
	connect.StreamingHandlerConn
	message any
}

// Receive implements connect.StreamingHandlerConn.
func (h *hearing) Receive(m any) error {
	err := h.StreamingHandlerConn.Receive(m)
	if err == nil && h.message == nil {
		h.message = m
	}
	return err
}

// acts says whether a call of a person's changes something or hands something out that not
// everybody may see. That somebody looks is in no log, so neither is that it failed.
func (s audited) acts(procedure string) bool {
	p, ok := s.table[procedure]
	return ok && len(p.roles) > 0 && !slices.Contains(p.roles, pki.RoleReader) || procedure == apiconnect.EnrolServiceRenewOperatorProcedure
}

// refusal is a call, or what it wanted of one machine, that came to nothing.
type refusal struct {
	// what is the call's name with the reason, machine what it was about if that is one.
	what, machine string
	// result is the reason's word.
	result string
	failed bool
}

func nothingCameOf(call string, err error) refusal {
	message := err.Error()
	if ce := new(connect.Error); errors.As(err, &ce) {
		message = ce.Message()
	}
	code := connect.CodeOf(err)
	r := refusal{what: call + ": " + message, result: code.String()}
	switch code {
	case connect.CodeInternal, connect.CodeUnknown, connect.CodeUnavailable, connect.CodeDataLoss, connect.CodeDeadlineExceeded, connect.CodeCanceled:
		r.failed = true
	}
	return r
}

// refusedOutcomes are those of an answer about many that are not what was asked for.
func refusedOutcomes(call string, answer any) (all []refusal) {
	var outcomes []*api.Outcome
	switch a := answer.(type) {
	case interface{ GetOutcomes() []*api.Outcome }:
		outcomes = a.GetOutcomes()
	case interface{ GetOutcome() *api.Outcome }:
		outcomes = []*api.Outcome{a.GetOutcome()}
	}
	for _, o := range outcomes {
		if !o.GetOk() {
			all = append(all, refusal{what: call + ": " + o.GetMessage(), machine: o.GetMachine(), result: o.GetReasonCode(), failed: o.GetReasonCode() == codeStorage})
		}
	}
	return all
}

// auditRefused puts into the log that a caller was turned away before the call was read, so
// there is no digest of it. That this server does not coordinate is no refusal.
func (s *Server) auditRefused(ctx context.Context, c caller, table map[string]permission, procedure string, err error) {
	code := connect.CodeOf(err)
	if code != connect.CodeUnauthenticated && code != connect.CodePermissionDenied {
		return
	}
	r := refusal{what: "what is not here", result: code.String()} // a stranger's words stay out
	if _, ok := table[procedure]; ok {
		r = nothingCameOf(path.Base(procedure), err)
	}
	s.auditRefusals(ctx, c, r)
}

// auditRefusals puts into the log what became of calls that changed nothing, as far as there
// is room for it (refusals).
func (s *Server) auditRefusals(ctx context.Context, c caller, all ...refusal) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTime)
	defer cancel()
	var entries []audit.Entry
	for _, r := range all {
		room, before := s.refusals.take(c.identity, s.cfg.Now())
		if !room {
			continue
		}
		e := audit.Entry{Action: actionRefused, Detail: words(strings.ToValidUTF8(r.what, "")), Result: r.result}
		if r.failed {
			e.Action = actionFailed
		}
		// Outcomes name serial numbers and persons too, and what there is not.
		if _, known := s.cfg.Store.Machine(r.machine); known {
			e.Machine = r.machine
		} else if r.machine != "" {
			e.Detail = words(r.machine) + ": " + e.Detail
		}
		if before > 0 {
			e.Detail += fmt.Sprintf(" (%d like it before are not in this log)", before)
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return
	}
	err := s.change(ctx, c.actor(), func(c *change) error {
		for _, e := range entries {
			c.log(e)
		}
		return nil
	})
	if err != nil {
		s.cfg.Log.Error("noting refused calls", "caller", c.identity.String(), "source", c.source, "calls", len(entries), "error", err.Error())
	}
}
