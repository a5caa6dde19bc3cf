package serverapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// ShowAuthority implements apiconnect.OperatorServiceHandler.
func (s operators) ShowAuthority(ctx context.Context, _ *connect.Request[api.ShowAuthorityRequest]) (*connect.Response[api.ShowAuthorityResponse], error) {
	v, err := s.authorityView(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(&api.ShowAuthorityResponse{Authority: v}), nil
}

// RollAuthority implements apiconnect.OperatorServiceHandler.
func (s operators) RollAuthority(ctx context.Context, req *connect.Request[api.RollAuthorityRequest]) (*connect.Response[api.RollAuthorityResponse], error) {
	step, ok := map[api.RollAuthorityRequest_Step]rollStep{
		api.RollAuthorityRequest_STEP_PREPARE: rollPrepare, api.RollAuthorityRequest_STEP_ACTIVATE: rollActivate,
		api.RollAuthorityRequest_STEP_FINISH: rollFinish, api.RollAuthorityRequest_STEP_CANCEL: rollCancel,
	}[req.Msg.GetStep()]
	if !ok {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which step: prepare, activate, finish or cancel"))
	}
	resp := &api.RollAuthorityResponse{}
	var err error
	if resp.Changed, resp.Message, err = s.roll(ctx, callerOf(ctx), step, req.Msg.GetWithout()); err != nil {
		return nil, s.storing("", err)
	}
	if resp.Authority, err = s.authorityView(ctx); err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(resp), nil
}

// roll does a step, or says why there was nothing to do.
func (s *Server) roll(ctx context.Context, from caller, step rollStep, without []string) (changed bool, message string, err error) {
	if len(without) > 0 && step != rollActivate && step != rollFinish {
		return false, "", connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%s waits for nobody, so there is nobody to leave out", step))
	}
	refused := func(text string) error { return connect.NewError(connect.CodeFailedPrecondition, errors.New(text)) }
	// Certificates that are issued behind this moment are by a CA that is trusted after it.
	view, err := s.rollView(ctx)
	if err != nil {
		return false, "", err
	}
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		changed, message = false, ""
		if err := c.standing(from); err != nil {
			return err
		}
		t, err := readTrust(c.tx)
		if err != nil {
			return err
		}
		v, why := decideRoll(step, t.rollover)
		switch v {
		case rollDone:
			message = why
			return nil
		case rollRefused:
			return refused(why)
		}
		if !t.Since.Equal(view.since) {
			return connect.NewError(connect.CodeAborted, errors.New("somebody else did a step this moment; look again: imagectl server ca show"))
		}
		left, unknown := leftOut(view.obstacles(step), without)
		if len(unknown) > 0 {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("nothing waits for %s", strings.Join(unknown, ", ")))
		}
		if len(left) > 0 {
			return refused(inTheWay(step, left))
		}
		next, detail, err := s.rolled(c, step, t)
		if err != nil {
			return err
		}
		if len(without) > 0 {
			detail += "; not waited for: " + strings.Join(without, ", ")
		}
		next.Since, next.By = c.now.UTC(), c.actor.Subject
		c.log(audit.Entry{Action: rollActions()[step], Before: string(t.phase()), After: string(next.phase()), Detail: detail})
		changed, message = true, detail
		return c.tx.PutValue(valueRollover, next)
	})
	if !changed {
		return false, message, err
	}
	// Also after an error: nobody may know whether it was stored.
	if loadErr := s.loadTrust(context.WithoutCancel(ctx)); loadErr != nil {
		s.cfg.Log.Error("reading which CA signs; restart imagectl serve", "error", loadErr.Error())
	}
	return changed, message, err
}

// inTheWay words what is in the way.
func inTheWay(step rollStep, left []obstacle) string {
	lines := []string{fmt.Sprintf("%s is refused, for:", step)}
	some := false
	for _, o := range left {
		lines = append(lines, "- "+o.text)
		some = some || o.holder != ""
	}
	if some {
		lines = append(lines, "Ask again when it has changed, or give somebody up with --without NAME.")
	}
	return strings.Join(lines, "\n")
}

// rolled does the work of a step that nothing is in the way of.
func (s *Server) rolled(c *change, step rollStep, t *trust) (next rollover, detail string, err error) {
	next = t.rollover
	signs := t.ca.Certificate()
	switch step {
	case rollPrepare:
		ca, err := t.ca.Successor(s.lifetimes.CA, s.lifetimes.Backdate, c.now, s.cfg.Rand)
		if err != nil {
			return next, "", err
		}
		if end := ca.Certificate().NotAfter; end.Before(signs.NotAfter) {
			return next, "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("another CA would end at %s, before the one that signs (%s)", stamp(end), stamp(signs.NotAfter)))
		}
		byOld, err1 := t.ca.Cross(ca.Certificate(), s.cfg.Rand)
		byNew, err2 := ca.Cross(signs, s.cfg.Rand)
		sealed, err3 := sealCA(ca)
		if err := errors.Join(err1, err2, err3); err != nil {
			return next, "", err
		}
		next.Phase, next.Other = prepared, string(ca.CertificatePEM())
		next.Cross = string(pki.EncodeCertificates(append(t.crosses(func(x *x509.Certificate) bool { return x.NotAfter.After(c.now) }), byOld, byNew)))
		next.Trusted = []string{pki.KeyID(signs), pki.KeyID(ca.Certificate())}
		return next, "CA " + digest(ca.Certificate()) + " is trusted from now on, and signs nothing yet", c.tx.PutSecret(secretNextCA, sealed)
	case rollActivate:
		sealed, ok, err := c.tx.Secret(secretNextCA)
		if err == nil && !ok {
			err = errors.New("the key of the CA that was prepared is not there")
		}
		if err != nil {
			return next, "", err
		}
		ca, err := openCA(secretNextCA, sealed)
		if err != nil {
			return next, "", err
		}
		// Nothing needs the old key: lists and heads are signed anew, and who knows the old CA
		// only is shown the certificate that it has signed for the new one.
		if err := c.tx.PutSecret(secretCA, sealed); err != nil {
			return next, "", err
		}
		c.tx.DeleteSecret(secretNextCA)
		next.Phase, next.Other = activated, string(pki.EncodeCertificate(signs.Raw))
		all, err := c.readRevoked()
		if err != nil {
			return next, "", err
		}
		if err := s.signWith(c, &all, caImagectl, ca); err != nil {
			return next, "", err
		}
		return next, "CA " + digest(ca.Certificate()) + " signs from now on; the key of " + digest(signs) + " is deleted", nil
	case rollFinish:
		// A list that was signed in the moment of the activation may have the old signature.
		all, err := c.readRevoked()
		if err != nil {
			return next, "", err
		}
		if err := s.signWith(c, &all, caImagectl, t.ca); err != nil {
			return next, "", err
		}
		next.Phase, next.Former, next.Other = settled, t.Former+t.Other, ""
		next.Trusted = []string{pki.KeyID(signs)}
		return next, "CA " + digest(t.trusted[1]) + " is trusted no more", nil
	case rollCancel:
		c.tx.DeleteSecret(secretNextCA)
		next.Phase, next.Other = settled, ""
		next.Cross = string(pki.EncodeCertificates(t.crosses(func(x *x509.Certificate) bool { return !involves(x, t.trusted[1]) })))
		next.Trusted = []string{pki.KeyID(signs)}
		return next, "CA " + digest(t.trusted[1]) + " is taken back; it has signed nothing", nil
	}
	return next, "", fmt.Errorf("there is no step %q", step)
}

// rollActions are what steps are called in the audit log.
func rollActions() map[rollStep]string {
	return map[rollStep]string{rollPrepare: "ca-prepared", rollActivate: "ca-activated", rollFinish: "ca-finished", rollCancel: "ca-cancelled"}
}

// digest is enough of a digest to tell CAs apart.
func digest(c *x509.Certificate) string { return pki.Digest(c)[:16] }

// rollView is what the next step is decided by now.
func (s *Server) rollView(ctx context.Context) (rollView, error) {
	t, now := s.trust.Load(), s.cfg.Now()
	s.mu.Lock()
	led := s.led
	s.mu.Unlock()
	v := rollView{now: now, since: t.Since, started: led, signs: pki.KeyID(t.ca.Certificate())}
	other := ""
	if len(t.trusted) > 1 {
		other = pki.Digest(t.trusted[1])
	}
	for _, r := range s.cfg.Store.Machines() {
		if r.Key == nil || r.State == machine.Retired || r.Key.NotAfter.IsZero() {
			continue
		}
		m := rollMachine{name: r.Name, end: r.Key.NotAfter}
		if b, ok := s.board.get(r.Name); ok && b.last != nil {
			m.heard, m.agent = b.at, words(b.last.GetAgentVersion())
			m.trusts = slices.Contains(b.last.GetTrusts(), other)
			m.current = b.issuer == v.signs
		}
		v.machines = append(v.machines, m)
	}
	held, err := s.held(ctx)
	if err != nil {
		return rollView{}, err
	}
	revoked := s.revoked.Load()
	for h, all := range held {
		for _, c := range all {
			if _, gone := revoked.entries[c.CA+"/"+c.Serial]; c.CA == caImagectl && !gone && !now.After(c.NotAfter) {
				v.certificates = append(v.certificates, rollCertificate{h, c.Authority, c.NotAfter})
			}
		}
	}
	if s.cfg.Backups != nil {
		st := s.cfg.Backups.State()
		v.backups, v.backup = st.Dir != "", st.Good.At
	}
	return v, nil
}

func (s *Server) authorityView(ctx context.Context) (*api.AuthorityView, error) {
	view, err := s.rollView(ctx)
	if err != nil {
		return nil, err
	}
	t := s.trust.Load()
	out := &api.AuthorityView{Phase: string(t.phase())}
	if !t.Since.IsZero() {
		out.Since = timestamppb.New(t.Since)
	}
	use := []string{"signs", map[phase]string{prepared: "next", activated: "old"}[t.phase()]}
	for i, c := range t.known() {
		v := &api.AuthorityView_CA{Sha256: pki.Digest(c), NotBefore: timestamppb.New(c.NotBefore), NotAfter: timestamppb.New(c.NotAfter), Use: "former"}
		if i < len(t.trusted) {
			v.Use = use[i]
		}
		out.Cas = append(out.Cas, v)
	}
	step := map[phase]rollStep{prepared: rollActivate, activated: rollFinish}[t.phase()]
	for _, o := range view.obstacles(step) {
		out.Waits = append(out.Waits, o.text)
	}
	out.Next, out.Notes = string(step), append(s.rollNotes(), s.staleNotes()...)
	etcd, err := s.rotationView(ctx)
	if err != nil {
		return nil, err
	}
	out.Rotations = append(out.Rotations, etcd)
	return out, nil
}

// rollNotes are for status: which CA ends, and what a rollover means meanwhile.
func (s *Server) rollNotes() []string {
	t, now := s.trust.Load(), s.cfg.Now()
	var out []string
	switch t.phase() {
	case prepared:
		out = append(out, fmt.Sprintf("CA imagectl: another one is prepared since %s, and nodes learn of it; next: imagectl server ca activate", stamp(t.Since)))
	case activated:
		out = append(out, fmt.Sprintf("CA imagectl: a new one signs since %s, and nodes get its certificates; next: imagectl server ca finish", stamp(t.Since)))
	default:
		if note := caEndNote(caImagectl, t.ca.Certificate().NotAfter, "imagectl server ca prepare", now); note != "" {
			out = append(out, note)
		}
	}
	a := s.authority
	for _, c := range []struct {
		name string
		ca   *pki.CA
		how  string
	}{{caEtcd, s.etcd.Load().ca, "imagectl server ca rotate etcd"}, {caKubernetes, a.kubernetes, ""}, {caFrontProxy, a.frontProxy, ""}} {
		if note := caEndNote(c.name, c.ca.Certificate().NotAfter, c.how, now); note != "" {
			out = append(out, note)
		}
	}
	return out
}

// staleNotes tell of templates and media that name a CA of before, to which the server
// still shows what leads from there.
func (s *Server) staleNotes() []string {
	t, now := s.trust.Load(), s.cfg.Now()
	var out []string
	for _, c := range t.cross {
		if t.phase() != prepared && now.Before(c.NotAfter) {
			out = append(out, fmt.Sprintf("CA imagectl: templates, media and context files from before %s name the old one only, and are good until %s; imagectl machines config makes new ones, and imagectl serve gives installers the new one when it was started again", stamp(c.NotBefore.Add(s.lifetimes.Backdate)), stamp(c.NotAfter)))
		}
	}
	return out
}

// staleNotice is how long after a rollover, and before the end of its old CA, status tells of
// what names that only; imagectl server ca show always does.
const staleNotice = 30 * 24 * time.Hour

// staleNow says whether status is to tell of it.
func (s *Server) staleNow() bool {
	t, now := s.trust.Load(), s.cfg.Now()
	return t.phase() == activated || now.Sub(t.Since) < staleNotice || slices.ContainsFunc(t.cross, func(c *x509.Certificate) bool { return c.NotAfter.Sub(now) < caNotice })
}

// warnOfEnds says in the log what status says of CAs that end. It is called whenever the
// server renews its own certificate, which is every ten days.
func (s *Server) warnOfEnds() {
	for _, note := range s.rollNotes() {
		if text, ok := strings.CutPrefix(note, "warning: "); ok {
			s.cfg.Log.Warn("a CA ends", "detail", text)
		}
	}
}
