package serverapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/enrol"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
	"github.com/imagectl/imagectl/bootstrap/tpm"
)

// retryEnrol is when a machine that waits shall ask again.
const retryEnrol = 2 * time.Second

// maxAsked is how many keys of one machine are in the audit log one by one before
// an operator decides. Beyond it they only count: whoever can forge a MAC address
// must not be able to fill the log.
const maxAsked = 16

// maxFacts bounds what a stranger can make us keep.
const maxFacts = 32 << 10

// enrolment serves EnrolService.
type enrolment struct{ *Server }

// Enrol implements apiconnect.EnrolServiceHandler.
func (s enrolment) Enrol(ctx context.Context, req *connect.Request[api.EnrolRequest]) (*connect.Response[api.EnrolResponse], error) {
	resp, err := s.decideEnrol(ctx, req)
	if err == nil && s.cfg.Asked != nil && resp.Msg.GetTpmChallenge() == nil {
		hw := hardware(req.Msg.GetFacts())
		a := Asked{At: s.cfg.Now(), MACs: hw.MACs, Approved: resp.Msg.GetStatus() == api.EnrolResponse_STATUS_APPROVED,
			Code: resp.Msg.GetReasonCode(), Reason: resp.Msg.GetReason()}
		a.Waits = a.Code == enrol.CodePending
		if name, refusal := s.match(hw); refusal == nil {
			a.Machine = name
		}
		s.cfg.Asked(a)
	}
	return resp, err
}

func (s enrolment) decideEnrol(ctx context.Context, req *connect.Request[api.EnrolRequest]) (*connect.Response[api.EnrolResponse], error) {
	from := callerOf(ctx)
	key, err := pki.ParseRequest(req.Msg.GetCsrDer())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	facts := req.Msg.GetFacts()
	if n := proto.Size(facts); n > maxFacts {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("facts of %d bytes exceed %d", n, maxFacts))
	}
	hw := hardware(facts)
	name, refusal := s.match(hw)
	if refusal != nil {
		return s.answer(enrol.Decision{Status: enrol.Pending, Code: refusal.Code, Reason: refusal.Reason}), nil
	}
	if name == "" {
		if s.cfg.IgnoreUnknown {
			return s.answer(enrol.Decision{Status: enrol.Rejected, Code: enrol.CodeUnknownMachine,
				Reason: "cluster.yaml lists no such machine and says to ignore those"}), nil
		}
		if name = enrol.UnknownName(hw); name == "" {
			return s.answer(enrol.Decision{Status: enrol.Pending, Code: enrol.CodeNoFacts,
				Reason: "this machine shows neither a MAC address nor a UUID, so there is nothing to tell it by"}), nil
		}
	}

	a := asking{key: key, token: req.Msg.GetToken(), given: req.Msg.GetCaSha256()}
	if s.cfg.TPM {
		a.attested, a.refusal = s.attest(name, key, req.Msg)
	}
	// Most calls ask again and change nothing: they are answered from memory. Who holds
	// an approved key does not wait behind strangers: it gets one certificate, and is
	// answered from memory until that is due. Neither does the first key of a listed
	// machine: there are no more of those than machines.
	var ahead bool
	if r, ok := s.cfg.Store.Machine(name); ok {
		d := s.decideEnrolment(r, a, "", s.cfg.Now())
		if d.Code == enrol.CodeTPMChallenge {
			return s.challenge(d, key, req.Msg)
		}
		if d.Status == enrol.Approved && !d.Burn && !d.Bind && s.holdsFresh(r.Key) {
			return s.approved(d, r), nil
		}
		if d.Status != enrol.Approved && !d.Remember {
			if !r.Known || r.Key == nil && waits(r, key.Fingerprint()) {
				s.board.ask(name, facts)
			}
			return s.answer(d), nil
		}
		ahead = d.Status == enrol.Approved || r.Known && r.Key == nil && r.Asked == 0
	}
	if !ahead && !s.Server.fresh.AllowN(s.cfg.Now(), 1) {
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("too many new machines at once; ask again in a few seconds"))
	}
	d, r, err := s.enrol(ctx, from, name, a, req.Msg.GetFacts())
	if err != nil {
		s.cfg.Log.Error("enrolling", "machine", name, "error", err.Error())
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the server could not store the request; ask again"))
	}
	if d.Status == enrol.Approved {
		return s.approved(d, r), nil
	}
	if d.Code == enrol.CodeTPMChallenge { // the machine was listed this moment
		return s.challenge(d, key, req.Msg)
	}
	return s.answer(d), nil
}

// match says which machine this is. A selector sees more than the machine says about
// itself: there the boot path remembers who it was.
func (s enrolment) match(seen enrol.Hardware) (string, *enrol.Refusal) {
	name, refusal := s.index.Match(seen)
	if name == "" && refusal == nil && s.cfg.Boot != nil {
		name = s.cfg.Boot.Named(seen.MACs)
	}
	return name, refusal
}

// waits tells whether a key is among those that wait for an operator.
func waits(r store.Machine, fingerprint string) bool {
	return slices.ContainsFunc(r.Pending, func(k store.Key) bool { return k.Fingerprint == fingerprint })
}

// asking is what a request to be enrolled brings.
type asking struct {
	key   pki.PublicKey
	token string
	// given is the digest of the CA that the machine was given; empty for not said.
	given string
	// Where machines prove themselves by their TPM, at most one is set.
	attested *tpm.Attested
	refusal  *enrol.Refusal
}

// decideEnrolment decides by the cluster's policy. elsewhere is the machine on record
// that has the TPM which asks.
func (s *Server) decideEnrolment(m store.Machine, a asking, elsewhere string, now time.Time) enrol.Decision {
	r := s.recordOf(m)
	if r.TPM == nil {
		return enrol.DecideToken(r, a.key.Fingerprint(), a.token, now)
	}
	if a.attested != nil {
		r.TPM.Elsewhere = s.otherOwner(m.Name, a.attested.EK, elsewhere)
	}
	return enrol.DecideTPM(r, a.key.Fingerprint(), a.attested, a.refusal)
}

// holdsFresh tells whether a key has a certificate that is good and not due yet, by the CA that
// signs now: another one's would be refused again when that is trusted no more. One that is
// good later only was signed while this machine's clock was wrong.
func (s *Server) holdsFresh(k *store.Key) bool {
	if k == nil || k.Certificate == "" || k.NotAfter.Sub(s.cfg.Now()) <= s.lifetimes.Agent-pki.RenewAfter(s.lifetimes.Agent) {
		return false
	}
	leaf, err := pki.ParseCertificatePEM([]byte(k.Certificate))
	return err == nil && !s.cfg.Now().Before(leaf.NotBefore) && s.trust.Load().signs(leaf)
}

func (s enrolment) enrol(ctx context.Context, from caller, name string, a asking, facts *api.Facts) (enrol.Decision, store.Machine, error) {
	key := a.key
	var d enrol.Decision
	var m store.Machine
	var issued pki.Issued
	var nodes []coordinator.Node
	var choices coordinator.Choices
	r, _ := s.cfg.Store.Machine(name)
	if before := s.decideEnrolment(r, a, "", s.cfg.Now()); r.Name != "" && before.Status == enrol.Approved {
		// Signed before the transaction, which may run twice, and worthless unless
		// it commits: only what is recorded leaves.
		var err error
		if issued, err = s.signNode(name, key); err != nil {
			return d, m, err
		}
		if before.Burn && r.Key != nil {
			if nodes, choices, err = s.decide(ctx); err != nil {
				return d, m, err
			}
		}
	}
	actor := from.actor()
	if actor.Subject == "" {
		actor.Subject = "key " + key.Fingerprint()
	}
	err := s.change(ctx, actor, func(c *change) error {
		var ok bool
		var err error
		if m, ok, err = c.tx.Machine(name); err != nil {
			return err
		}
		if !ok {
			if m, err = s.newUnknown(c, name); err != nil {
				return err
			}
		}
		elsewhere := ""
		if a.attested != nil {
			if elsewhere, err = c.ownerOf(a.attested.EK); err != nil {
				return err
			}
		}
		d = s.decideEnrolment(m, a, elsewhere, c.now)
		if d.Burn && m.Key != nil && !m.Token.Force {
			refused := new(refusedError)
			if err := s.mayReplaceKey(c, m, nodes, choices); errors.As(err, &refused) {
				d = enrol.Decision{Status: enrol.Pending, Code: refused.code, Remember: !waits(m, key.Fingerprint()),
					Reason: fmt.Sprintf("%s; an operator can: imagectl machines approve %s --replace-key --force", refused.message, m.Name)}
			} else if err != nil {
				return err
			}
		}
		asks := s.keyOf(key, a.given, c.now, from.source)
		asks.TPM = proofOf(a.attested)
		if b, err := protojson.Marshal(facts); err == nil && (m.Key == nil || d.Status == enrol.Approved) && (m.InstalledAt.IsZero() || len(m.Facts) == 0) {
			// A stranger's do not replace the machine's own, and those of a running system not
			// what it was installed with.
			m.Facts = b
		}
		if d.Remember {
			remember(&m, asks)
			c.logAsking(m, key, d)
		}
		if d.Conflict {
			if err := c.move(&m, "machine-quarantined", "a second key claims it", machine.KeyConflict); err != nil {
				return err
			}
		}
		if d.Burn {
			if err := s.burn(c, &m, asks); err != nil {
				return err
			}
		}
		if d.Bind {
			if err := s.admit(c, &m, asks); err != nil {
				return err
			}
		}
		if d.Status == enrol.Approved {
			if issued.Certificate == nil {
				return errors.New("the key was approved this moment")
			}
			hold(m.Key, issued)
			if err := c.issued(holderOf(pki.KindNode, name), caImagectl, profileNode, issued); err != nil {
				return err
			}
		}
		return c.tx.PutMachine(m)
	})
	if (d.Burn || d.Bind) && err == nil && r.Key != nil {
		s.board.forget(name) // what it said last, it said by the key before
	}
	if d.Conflict && err == nil {
		s.cfg.Log.Warn("a second key claims a machine", "machine", name, "source", from.source, "code", d.Code)
	}
	return d, m, err
}

// logAsking records that a key asks: once for each key, up to a bound.
func (c *change) logAsking(m store.Machine, key pki.PublicKey, d enrol.Decision) {
	token := ""
	if strings.HasPrefix(d.Code, "token-") {
		token = ", with a token that is refused: " + d.Code
	}
	switch {
	case m.Asked > maxAsked+1:
	case m.Asked == maxAsked+1:
		c.log(audit.Entry{Action: "enrol-flood", Machine: m.Name, Detail: fmt.Sprintf("more than %d keys asked; further ones are not recorded one by one until an operator approves or rejects", maxAsked)})
	case d.Conflict:
		c.log(audit.Entry{Action: "key-conflict", Machine: m.Name, Detail: fmt.Sprintf("key %s claims a machine whose approved key is %s%s", key.Fingerprint(), m.Key.Fingerprint, token)})
	default:
		c.log(audit.Entry{Action: "enrol-asked", Machine: m.Name, Detail: "key " + key.Fingerprint() + token})
	}
}

// newUnknown makes room for an unlisted machine and starts its record.
func (s enrolment) newUnknown(c *change, name string) (store.Machine, error) {
	var unknown []store.Machine
	for _, r := range s.cfg.Store.Machines() {
		if !r.Known && r.State == machine.Discovered {
			unknown = append(unknown, r)
		}
	}
	if len(unknown) >= maxUnknown {
		oldest := slices.MinFunc(unknown, func(a, b store.Machine) int { return a.FirstSeen.Compare(b.FirstSeen) })
		c.tx.DeleteMachine(oldest.Name)
	}
	// Not in the audit log: nothing is granted, and strangers must not fill it.
	s.cfg.Log.Info("an unlisted machine asks", "machine", name)
	return store.Machine{Name: name, State: machine.Discovered, Since: c.now, FirstSeen: c.now}, nil
}

// signNode issues the agent's certificate. Names come from the plan.
func (s *Server) signNode(name string, key pki.PublicKey) (pki.Issued, error) {
	m, _ := s.machineOf(name)
	profile, err := pki.Node(pki.Machine{Cluster: s.cfg.Cluster, Name: name, Address: m.Address}, s.lifetimes)
	if err != nil {
		return pki.Issued{}, err
	}
	return s.signer().Sign(profile, key, s.cfg.Now(), s.cfg.Rand)
}

// given is the CA that the machine says it was given.
func (s *Server) keyOf(key pki.PublicKey, given string, now time.Time, source string) store.Key {
	return store.Key{
		SPKI: key.SPKI(), Fingerprint: key.Fingerprint(), Code: enrol.Code(s.trust.Load().named(given), key.SPKI()),
		FirstSeen: now, Source: source,
	}
}

// remember puts a key among the pending ones; the oldest gives way.
func remember(m *store.Machine, k store.Key) {
	m.Asked++
	m.Pending = slices.DeleteFunc(m.Pending, func(p store.Key) bool { return p.Fingerprint == k.Fingerprint })
	m.Pending = append(m.Pending, k)
	if n := len(m.Pending) - enrol.MaxPending; n > 0 {
		m.Pending = slices.Delete(m.Pending, 0, n)
	}
}

// hold notes a key's newest certificate.
func hold(k *store.Key, i pki.Issued) {
	k.Certificate, k.Serial, k.NotAfter = string(i.PEM), i.Serial(), i.Certificate.NotAfter
}

// recordOf is what enrolment looks at.
func (s *Server) recordOf(m store.Machine) enrol.Record {
	listed, _ := s.machineOf(m.Name)
	r := enrol.Record{Name: m.Name, State: m.State, Known: m.Known, Diskless: listed.Diskless, Rejected: m.Rejected, Tokens: s.cfg.Tokens}
	if t := m.Token; t != nil {
		r.Token = &enrol.Token{Digest: t.Digest, NotAfter: t.NotAfter, UsedBy: t.UsedBy, UsedAt: t.UsedAt, Replace: t.Replace}
	}
	if m.Key != nil {
		r.Approved = m.Key.Fingerprint
	}
	for _, k := range m.Pending {
		r.Pending = append(r.Pending, enrol.Waiting{Fingerprint: k.Fingerprint, Code: k.Code})
	}
	if s.cfg.TPM {
		r.TPM = s.tpmOf(m)
	}
	return r
}

func (s *Server) answer(d enrol.Decision) *connect.Response[api.EnrolResponse] {
	status := api.EnrolResponse_STATUS_PENDING
	if d.Status == enrol.Rejected {
		status = api.EnrolResponse_STATUS_REJECTED
	}
	return connect.NewResponse(&api.EnrolResponse{
		Status: status, ReasonCode: d.Code, Reason: d.Reason,
		RetryAfterMs: uint32(retryEnrol.Milliseconds()), ServerTime: timestamppb.New(s.cfg.Now()),
	})
}

func (s *Server) approved(d enrol.Decision, m store.Machine) *connect.Response[api.EnrolResponse] {
	return connect.NewResponse(&api.EnrolResponse{
		Status: api.EnrolResponse_STATUS_APPROVED, ReasonCode: d.Code, Reason: d.Reason,
		CertificatePem: s.chain(m.Key.Certificate), Machine: m.Name, ServerTime: timestamppb.New(s.cfg.Now()),
	})
}
