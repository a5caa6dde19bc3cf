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

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// Reason codes of outcomes about certificates.
const (
	codeUnknownSerial = "no-such-certificate"
	codeRevoked       = "revoked-before"
)

// held reads what every holder has.
func (s *Server) held(ctx context.Context) (map[holder][]certificate, error) {
	values, err := s.cfg.Store.Values(ctx, valueCertificates)
	if err != nil {
		return nil, err
	}
	out := make(map[holder][]certificate, len(values))
	for name, v := range values {
		var all []certificate
		if err := json.Unmarshal(v, &all); err != nil {
			return nil, fmt.Errorf("reading the certificates of %s: %w", name, err)
		}
		out[holder(name)] = all
	}
	return out, nil
}

// ListCertificates implements apiconnect.OperatorServiceHandler.
func (s operators) ListCertificates(ctx context.Context, _ *connect.Request[api.ListCertificatesRequest]) (*connect.Response[api.ListCertificatesResponse], error) {
	held, err := s.held(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	now, revoked := s.cfg.Now(), s.revoked.Load()
	var out []*api.CertificateView
	for h, all := range held {
		for _, c := range all {
			e, isRevoked := revoked.entries[c.CA+"/"+c.Serial]
			if now.After(c.NotAfter) {
				continue
			}
			v := &api.CertificateView{
				Serial: c.Serial, Ca: c.CA, Profile: c.Profile, Subject: c.Subject, Holder: string(h),
				NotBefore: timestamppb.New(c.NotBefore), NotAfter: timestamppb.New(c.NotAfter), Superseded: superseded(c, all),
			}
			if isRevoked {
				v.RevokedAt, v.RevokedBy, v.RevokedReason = timestamppb.New(e.At), e.By, e.Reason
			}
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b *api.CertificateView) int {
		return cmp.Or(strings.Compare(a.Holder, b.Holder), strings.Compare(a.Profile, b.Profile), a.NotBefore.AsTime().Compare(b.NotBefore.AsTime()), strings.Compare(a.Serial, b.Serial))
	})
	return connect.NewResponse(&api.ListCertificatesResponse{Certificates: out}), nil
}

// RevokeCertificates implements apiconnect.OperatorServiceHandler.
func (s operators) RevokeCertificates(ctx context.Context, req *connect.Request[api.RevokeCertificatesRequest]) (*connect.Response[api.RevokeCertificatesResponse], error) {
	if len(req.Msg.GetSerials()) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say which certificates: serial numbers, or holders such as operator/ada"))
	}
	held, err := s.held(ctx)
	if err != nil {
		return nil, s.storing("", err)
	}
	var out []*api.Outcome
	for _, asked := range req.Msg.GetSerials() {
		o := &api.Outcome{Machine: asked, ReasonCode: codeDone}
		if o.Message, err = s.revokeAsked(ctx, held, asked, reasoned("an operator revoked it", req.Msg.GetReason())); err == nil {
			o.Ok, o.State = true, "revoked"
		} else {
			o.ReasonCode, o.Message = codeStorage, err.Error()
			if refused := new(refusedError); errors.As(err, &refused) {
				o.ReasonCode = refused.code
			} else {
				s.cfg.Log.Error("revoking a certificate", "serial", asked, "error", err.Error())
			}
		}
		out = append(out, o)
	}
	return connect.NewResponse(&api.RevokeCertificatesResponse{Outcomes: out}), nil
}

// resolve finds what a serial number or a holder's name means; the holder has nothing where it
// means nothing.
func resolve(held map[holder][]certificate, asked string) (holder, func(certificate) bool) {
	if _, ok := held[holder(asked)]; ok {
		return holder(asked), every
	}
	h, serial := holder(""), strings.ToLower(strings.ReplaceAll(asked, ":", ""))
	which := func(c certificate) bool { return c.Serial == serial }
	for _, name := range slices.Sorted(maps.Keys(held)) {
		if slices.ContainsFunc(held[name], which) {
			h = name
		}
	}
	return h, which
}

// revokeAsked revokes a serial number or all that a holder has, and says what
// follows from it.
func (s *Server) revokeAsked(ctx context.Context, held map[holder][]certificate, asked, why string) (string, error) {
	h, which := resolve(held, asked)
	if _, ok := held[h]; !ok {
		return "", &refusedError{codeUnknownSerial, fmt.Sprintf("there is no certificate %s that has not ended; imagectl certs ls shows them", asked)}
	}
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return "", err
	}
	var message string
	err = s.coordinate(ctx, callerOf(ctx).actor(), func(c *change) error {
		message = ""
		all, err := c.certificates(h)
		if err != nil {
			return err
		}
		wanted := slices.DeleteFunc(slices.Clone(all), func(o certificate) bool { return !which(o) })
		n, err := s.revoke(c, h, why, which)
		if err != nil {
			return err
		}
		if n == 0 {
			return &refusedError{codeRevoked, "nothing is left to revoke"}
		}
		withdrawn, err := s.withdraw(c, h, wanted, why)
		if err == nil && !withdrawn && asked == string(h) {
			withdrawn, err = c.withdrawPerson(h, why, func(person) bool { return true })
		}
		if err != nil {
			return err
		}
		now, err := s.asOfNow(c, nodes, choices, h.machine())
		message = consequences(h, wanted, withdrawn, coordinator.Without(now, choices, h.machine()))
		return err
	})
	return message, err
}

// withdraw takes a machine's or a person's key away when a certificate for it is among
// those that were revoked: whoever has the key would get another one.
func (s *Server) withdraw(c *change, h holder, revoked []certificate, why string) (bool, error) {
	name := h.machine()
	if name == "" {
		return c.withdrawPerson(h, why, func(p person) bool {
			return p.Key != "" && slices.ContainsFunc(revoked, func(c certificate) bool { return c.CA == caImagectl && c.Key == p.Key })
		})
	}
	m, ok, err := c.tx.Machine(name)
	if err != nil || !ok || m.Key == nil {
		return false, err
	}
	key := m.Key.Fingerprint
	if !slices.ContainsFunc(revoked, func(c certificate) bool { return c.CA == caImagectl && c.Key == key }) {
		return false, nil
	}
	if _, err := s.revoke(c, h, why, func(c certificate) bool { return c.CA == caImagectl && c.Key == key }); err != nil {
		return false, err
	}
	reject(&m, key)
	m.Key = nil
	c.log(audit.Entry{Action: "key-withdrawn", Machine: name, Before: string(m.State), After: string(m.State), Detail: fmt.Sprintf("key %s: %s", key, why)})
	return true, c.tx.PutMachine(m)
}

// consequences says what revoking means for whoever relied on it. etcd is what etcd is without
// this machine; empty for a machine that it does without anyway.
func consequences(h holder, revoked []certificate, withdrawn bool, etcd string) string {
	var out []string
	has := func(ca string) bool {
		return slices.ContainsFunc(revoked, func(c certificate) bool { return c.CA == ca })
	}
	if has(caImagectl) {
		out = append(out, "the server refuses it now, nodes with their next call")
	}
	if name := h.operator(); withdrawn && name != "" {
		out = append(out, fmt.Sprintf("%s gets no other: an admin may add another key (imagectl operators add %s)", name, name))
	} else if withdrawn {
		out = append(out, fmt.Sprintf("the key of %s is refused too: install it again (imagectl machines arm %s --reinstall) to give it another", h.machine(), h.machine()))
	}
	if has(caEtcd) {
		then := "the node gets another certificate by itself"
		if withdrawn {
			then = "the node gets no other one before a key of it is approved again"
		}
		out = append(out, "etcd refuses new connections with it once its node has called, open ones stay; "+then)
		if etcd != "" {
			out = append(out, etcd)
		}
	}
	if has(caKubernetes) || has(caFrontProxy) {
		out = append(out, "Kubernetes cannot revoke: there it is good until its end")
	}
	if strings.HasPrefix(string(h), string(pki.KindServer)+"/") {
		out = append(out, "the server makes itself another")
	}
	return strings.Join(out, "; ")
}
