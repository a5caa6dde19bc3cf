package serverapi

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/backup"
	"github.com/imagectl/imagectl/bootstrap/machine"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// valueMark is the name of what a restore leaves in the store (backup.MarkKey).
const valueMark = "restored"

// jump is more revocations than happen between a backup and the loss of its server.
const jump = 1 << 20

// gap is a range of numbers, both ends excluded, of lists that a lost server may have
// signed after the backup that this one came out of.
type gap struct {
	After  uint64 `json:"after"`
	Before uint64 `json:"before"`
}

// settleRestored brings a restored state in line with what may have happened since
// its backup. Nothing that was allowed once and may have been used since is allowed
// again: armings, or the next netboot would wipe a machine that has long been
// installed, and tokens. Revocation lists get numbers above all that the lost server
// can have used. It can be killed at any moment and begins again.
func (s *Server) settleRestored(ctx context.Context) error {
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		s.restored = backup.Mark{}
		_, err := tx.Value(valueMark, &s.restored)
		return err
	})
	if err != nil || s.restored.File == "" || s.restored.Settled {
		return err
	}
	// What the log says so far must be what was written.
	if _, err := s.VerifyAudit(ctx); err != nil {
		s.cfg.Log.Error("the audit log of the backup is not whole", "error", err.Error())
	}
	const batch = 30 // records a transaction; each makes up to three changes, and etcd takes 128
	var todo []string
	for _, m := range s.cfg.Store.Machines() {
		if m.Arming != nil || m.Token != nil {
			todo = append(todo, m.Name)
		}
	}
	for names := range slices.Chunk(todo, batch) {
		err := s.change(ctx, s.self(), func(c *change) error {
			c.tx.Prefetch(names)
			for _, name := range names {
				if err := c.forgetAllowed(name); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return s.change(ctx, s.self(), func(c *change) error {
		all, err := c.readRevoked()
		if err != nil {
			return err
		}
		for ca := range s.listSigners() {
			l := all.Lists[ca]
			next := max(l.Number+jump, uint64(max(c.now.Unix(), 0))*jump)
			l.Gaps = append(l.Gaps, gap{After: l.Number, Before: next})
			l.Number = next
			all.Lists[ca] = l
			if err := s.sign(c, &all, ca); err != nil {
				return err
			}
		}
		mark := s.restored
		mark.Settled = true
		c.log(audit.Entry{Action: "server-restored", Detail: fmt.Sprintf("from %s, made %s, restored %s; what happened between backup and loss is not in this log",
			mark.File, mark.Backup.Format(time.RFC3339), mark.At.Format(time.RFC3339))})
		return c.tx.PutValue(valueMark, mark)
	})
}

// forgetAllowed takes back what a machine was allowed to do once.
func (c *change) forgetAllowed(name string) error {
	m, err := c.machine(name)
	if err != nil {
		return err
	}
	if m.Arming != nil {
		const why = "the server was restored from a backup: arm it again if it is not installed"
		if err := c.move(&m, "machine-disarmed", why, machine.Disarm); err != nil {
			return err
		}
		m.Arming = nil
	}
	if m.Token != nil {
		c.log(audit.Entry{Action: "token-withdrawn", Machine: name, Detail: "the server was restored from a backup, and the token may have been used since"})
		m.Token = nil
	}
	return c.tx.PutMachine(m)
}

// unsure says whether choices that are made only once must wait: this server came out
// of a backup in which the cluster did not exist yet, and machines that have formed it
// since may not have called.
func (s *Server) unsure(now time.Time) bool {
	return s.restored.File != "" && now.Sub(s.led) < silence
}

// missed returns the lists that a node holds and that were signed by the server that
// was lost, after the backup.
func (s *Server) missed(held []*api.HeldList) []*api.HeldList {
	if s.restored.File == "" {
		return nil
	}
	lists := s.revoked.Load().Lists
	var out []*api.HeldList
	for _, h := range held {
		l := lists[h.GetCa()]
		if slices.ContainsFunc(l.Gaps, func(g gap) bool { return g.After < h.GetNumber() && h.GetNumber() < g.Before }) &&
			!slices.Contains(l.Learned, h.GetNumber()) {
			out = append(out, h)
		}
	}
	return out
}

// learn takes over what a node knows to be revoked and this server does not. It
// returns false when the node has to send its lists first.
func (s *Server) learn(ctx context.Context, from caller, held []*api.HeldList) (bool, error) {
	missed := s.missed(held)
	if len(missed) == 0 {
		return true, nil
	}
	for _, h := range missed {
		if len(h.GetCrlDer()) == 0 {
			return false, nil
		}
		cas := map[string][]*x509.Certificate{caImagectl: s.trust.Load().known(), caEtcd: s.etcdListSigners()}[h.GetCa()]
		if len(cas) == 0 {
			continue
		}
		list, err := pki.ParseRevocationList(h.GetCrlDer(), cas...)
		if err != nil || list.Number() != strconv.FormatUint(h.GetNumber(), 10) {
			// It is of no use, and nothing better will come from this node.
			s.cfg.Log.Warn("a node's revocation list is not what it says", "machine", from.identity.Name, "ca", h.GetCa(), "number", h.GetNumber())
			continue
		}
		if err := s.adopt(ctx, from, h, list); err != nil {
			return false, err
		}
	}
	return true, nil
}

// adopt revokes again what a list says.
func (s *Server) adopt(ctx context.Context, from caller, h *api.HeldList, list pki.RevocationList) error {
	held, err := s.held(ctx)
	if err != nil {
		return err
	}
	return s.change(ctx, from.actor(), func(c *change) error {
		all, err := c.readRevoked()
		if err != nil {
			return err
		}
		l := all.Lists[h.GetCa()]
		if slices.Contains(l.Learned, h.GetNumber()) {
			return nil // by another call, this moment
		}
		l.Learned = append(l.Learned, h.GetNumber())
		why := fmt.Sprintf("revoked after the backup of %s, says list %d that %s kept", s.restored.Backup.Format(time.RFC3339), h.GetNumber(), from.identity.Name)
		withdrawn := map[holder][]certificate{}
		for _, serial := range list.Serials() {
			if slices.ContainsFunc(l.Entries, func(e revokedEntry) bool { return e.Serial == serial }) {
				continue
			}
			who, cert := find(held, h.GetCa(), serial)
			if who == "" {
				// Issued after the backup too: it ends as late as any.
				cert = certificate{Serial: serial, CA: h.GetCa(), Profile: "unknown", NotBefore: c.now, NotAfter: c.now.Add(max(s.lifetimes.Agent, s.lifetimes.Leaf))}
			}
			withdrawn[who] = append(withdrawn[who], cert)
			l.Entries = append(l.Entries, revokedEntry{certificate: cert, Holder: who, At: c.now, By: c.actor.Subject, Reason: why})
			c.log(audit.Entry{Action: "certificate-revoked", Machine: who.machine(), Detail: fmt.Sprintf("CA %s, serial %s: %s", h.GetCa(), serial, why)})
		}
		all.Lists[h.GetCa()] = l
		if err := s.sign(c, &all, h.GetCa()); err != nil {
			return err
		}
		for who, certs := range withdrawn {
			if _, err := s.withdraw(c, who, certs, why); err != nil {
				return err
			}
		}
		return nil
	})
}

// find looks for a certificate by its serial number.
func find(held map[holder][]certificate, ca, serial string) (holder, certificate) {
	for who, all := range held {
		for _, c := range all {
			if c.CA == ca && c.Serial == serial {
				return who, c
			}
		}
	}
	return "", certificate{}
}

// known records a certificate that a machine calls with and that this server, out of
// a backup, has not on record: it was renewed since, and must be found by whoever
// revokes what the machine holds.
func (s *Server) known(ctx context.Context, from caller) error {
	if s.restored.File == "" {
		return nil
	}
	if _, ok := s.sure.Load(from.serial); ok {
		return nil
	}
	h := holderOf(pki.KindNode, from.identity.Name)
	err := s.change(ctx, from.actor(), func(c *change) error {
		if err := c.standing(from); err != nil {
			return err
		}
		all, err := c.certificates(h)
		if err != nil || slices.ContainsFunc(all, func(o certificate) bool { return o.CA == caImagectl && o.Serial == from.serial }) {
			return err
		}
		all = append(all, certificate{
			Serial: from.serial, CA: caImagectl, Profile: profileNode, Subject: from.leaf.Subject.String(), Key: from.fingerprint, Authority: from.issuer,
			NotBefore: from.leaf.NotBefore, NotAfter: from.notAfter,
		})
		c.log(audit.Entry{Action: "certificate-found", Machine: h.machine(), Detail: fmt.Sprintf("serial %s, until %s: it was issued after the backup", from.serial, from.notAfter.Format(time.RFC3339))})
		if err := c.tx.PutValue(valueCertificates+string(h), all); err != nil {
			return err
		}
		m, err := c.machine(h.machine())
		if err != nil {
			return err
		}
		if m.Key != nil && m.Key.NotAfter.Before(from.notAfter) {
			m.Key.Serial, m.Key.NotAfter, m.Key.Certificate = from.serial, from.notAfter, string(pki.EncodeCertificate(from.leaf.Raw))
		}
		return c.tx.PutMachine(m)
	})
	if err == nil {
		s.sure.Store(from.serial, true)
	}
	return err
}

// withoutLists is a directive for a node whose lists this server has to see first.
func withoutLists(r *api.SyncResponse) {
	r.SendLists = true
	if run := r.GetRun(); run != nil {
		run.Revocations = nil
	}
}
