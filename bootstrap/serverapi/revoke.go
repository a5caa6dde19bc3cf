package serverapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/pki"
)

// valueRevocations is the name of revocations in the store.
const valueRevocations = "revocations"

// revocations is everything that is revoked and has not ended.
type revocations struct {
	// Seq counts changes.
	Seq uint64 `json:"seq"`
	// Lists are by CA.
	Lists map[string]revokedList `json:"lists"`
}

type revokedList struct {
	// Number is that of CRL.
	Number uint64 `json:"number"`
	// CRL is the signed list (DER). It is stored because a signature is another one
	// each time, and nodes would take each for news. Kubernetes' CA has none: nothing
	// there reads one.
	CRL     []byte         `json:"crl,omitempty"`
	Entries []revokedEntry `json:"entries,omitempty"`
	// Gaps are numbers that a lost server may have used; Learned are those of which a
	// node has told since.
	Gaps    []gap    `json:"gaps,omitempty"`
	Learned []uint64 `json:"learned,omitempty"`
}

type revokedEntry struct {
	certificate
	Holder holder    `json:"holder"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// revokedView is revocations in memory. It is immutable.
type revokedView struct {
	revocations
	entries map[string]revokedEntry // by CA/serial
}

// listSigners are the CAs whose lists somebody reads.
func (s *Server) listSigners() map[string]*pki.CA {
	return map[string]*pki.CA{caImagectl: s.signer(), caEtcd: s.etcd.Load().ca}
}

// loadRevocations reads what is revoked, and signs the first, empty lists.
func (s *Server) loadRevocations(ctx context.Context) error {
	var all revocations
	err := s.change(ctx, s.self(), func(c *change) error {
		var err error
		if all, err = c.readRevoked(); err != nil {
			return err
		}
		for ca := range s.listSigners() {
			if all.Lists[ca].Number > 0 {
				continue
			}
			if err := s.sign(c, &all, ca); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.keepRevoked(all)
	}
	return err
}

func (c *change) readRevoked() (revocations, error) {
	all := revocations{Lists: map[string]revokedList{}}
	_, err := c.tx.Value(valueRevocations, &all)
	return all, err
}

// sign makes the next list of a CA from its entries and stores it.
func (s *Server) sign(c *change, all *revocations, name string) error {
	return s.signWith(c, all, name, s.listSigners()[name])
}

// signWith is sign with another CA's key; nil for a list that nobody reads.
func (s *Server) signWith(c *change, all *revocations, name string, ca *pki.CA) error {
	l := all.Lists[name]
	l.Entries = slices.DeleteFunc(l.Entries, func(e revokedEntry) bool { return e.ended(c.now) && !c.countsLate(e.Holder) })
	l.Number++
	if ca != nil {
		revoked := make([]pki.Revocation, len(l.Entries))
		for i, e := range l.Entries {
			revoked[i] = pki.Revocation{Serial: e.Serial, At: e.At}
		}
		var err error
		if l.CRL, err = ca.RevocationList(l.Number, revoked, c.now); err != nil {
			return err
		}
	}
	all.Lists[name] = l
	all.Seq++
	c.revoked = all
	return c.tx.PutValue(valueRevocations, all)
}

// countsLate says whether nodes take a holder's certificates after their end (package nodeapi)
// and have nothing but their lists to refuse one: operators without an own key. What cannot be
// read counts.
func (c *change) countsLate(h holder) bool {
	name := h.operator()
	if name == "" {
		return false
	}
	p, known, err := c.person(name)
	return err != nil || known && p.standing() && p.Key == "" && p.Role == pki.RoleAdmin
}

// revoke revokes those of a holder's certificates for which which is true and that
// are good still, and returns how many.
func (s *Server) revoke(c *change, h holder, reason string, which func(certificate) bool) (int, error) {
	held, err := c.certificates(h)
	if err != nil {
		return 0, err
	}
	all, err := c.readRevoked()
	if err != nil {
		return 0, err
	}
	changed := map[string]bool{}
	n := 0
	for _, cert := range held {
		l := all.Lists[cert.CA]
		known := slices.ContainsFunc(l.Entries, func(e revokedEntry) bool { return e.Serial == cert.Serial })
		if known || cert.ended(c.now) || !which(cert) {
			continue
		}
		l.Entries = append(l.Entries, revokedEntry{certificate: cert, Holder: h, At: c.now, By: c.actor.Subject, Reason: reason})
		all.Lists[cert.CA], changed[cert.CA] = l, true
		n++
		c.log(audit.Entry{Action: "certificate-revoked", Machine: h.machine(),
			Detail: fmt.Sprintf("%s of %s, CA %s, serial %s: %s", cert.Profile, h, cert.CA, cert.Serial, reason)})
	}
	for ca := range changed {
		if err := s.sign(c, &all, ca); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func every(certificate) bool { return true }

// keepRevoked makes what is stored count, and wakes those who wait: nodes get the
// new lists, and revoked callers are sent away.
func (s *Server) keepRevoked(all revocations) {
	next := &revokedView{revocations: all, entries: map[string]revokedEntry{}}
	for ca, l := range all.Lists {
		for _, e := range l.Entries {
			next.entries[ca+"/"+e.Serial] = e
		}
	}
	for {
		old := s.revoked.Load()
		if old != nil && old.Seq >= next.Seq {
			return // two changes at once; the other one was later
		}
		if s.revoked.CompareAndSwap(old, next) {
			s.board.wake()
			return
		}
	}
}

// reloadRevoked is for a change of which nobody knows whether it was stored.
func (s *Server) reloadRevoked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var all revocations
	err := s.change(ctx, s.self(), func(c *change) error {
		var err error
		all, err = c.readRevoked()
		return err
	})
	if err != nil {
		s.cfg.Log.Error("reading what is revoked; restart imagectl serve", "error", err.Error())
		return
	}
	s.keepRevoked(all)
}

// allowSerial refuses a caller whose certificate is revoked.
func (s *Server) allowSerial(c caller) error {
	if c.serial == "" {
		return nil
	}
	e, ok := s.revoked.Load().entries[caImagectl+"/"+c.serial]
	if !ok {
		return nil
	}
	return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the client certificate (serial %s) was revoked at %s: %s", c.serial, e.At.UTC().Format(time.RFC3339), e.Reason))
}

// standing refuses, within the transaction that gives something away, a caller
// who has lost what it called with: a revocation that was stored before must win.
func (c *change) standing(from caller) error {
	all, err := c.readRevoked()
	if err != nil {
		return err
	}
	for _, e := range all.Lists[caImagectl].Entries {
		if e.Serial == from.serial {
			return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the client certificate (serial %s) was revoked this moment", from.serial))
		}
	}
	if from.identity.Kind != pki.KindNode {
		return nil
	}
	m, ok, err := c.tx.Machine(from.identity.Name)
	if err != nil {
		return err
	}
	return allowRecord(m, ok, from)
}

// lists are what a machine needs to refuse revoked certificates.
func (s *Server) lists(controlPlane bool) []*api.RevocationList {
	v := s.revoked.Load()
	out := []*api.RevocationList{{Ca: caImagectl, CrlDer: v.Lists[caImagectl].CRL}}
	if controlPlane {
		out = append(out, &api.RevocationList{Ca: caEtcd, CrlDer: v.Lists[caEtcd].CRL})
	}
	return out
}
