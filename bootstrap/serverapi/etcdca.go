package serverapi

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/imagectl/imagectl/bootstrap/api"
	"github.com/imagectl/imagectl/bootstrap/audit"
	"github.com/imagectl/imagectl/bootstrap/coordinator"
	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// etcd's CA is replaced while etcd runs (docs/ca-rotation.md). An operator begins it; from then on
// coordinator.NextEtcdCA advances it, and each stage is one transaction with what it needs: the
// choices, the keys, and the list of what is revoked.

const (
	secretEtcdCA     = "ca/etcd"
	secretNextEtcdCA = "ca/etcd-next"
	// valueEtcdCAs has the certificates of all CAs that etcd ever had (PEM), the newest last. There
	// is none where it was never replaced.
	valueEtcdCAs = "etcd-cas"
)

// etcdAuthority is etcd's CA as this server has read it last. It is immutable.
type etcdAuthority struct {
	// ca signs.
	ca *pki.CA
	// known are all that it ever was and will be next, oldest first.
	known []*x509.Certificate
}

// readEtcdCA reads it in a transaction.
func readEtcdCA(tx *store.Tx) (*etcdAuthority, error) {
	b, ok, err := tx.Secret(secretEtcdCA)
	if err == nil && !ok {
		err = errors.New("there is no CA " + caEtcd)
	}
	if err != nil {
		return nil, err
	}
	a := &etcdAuthority{}
	if a.ca, err = openCA(secretEtcdCA, b); err != nil {
		return nil, err
	}
	var text string
	if _, err := tx.Value(valueEtcdCAs, &text); err != nil {
		return nil, err
	}
	if a.known, err = pki.ParseCertificatesPEM([]byte(text)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", valueEtcdCAs, err)
	}
	if len(a.known) == 0 {
		a.known = []*x509.Certificate{a.ca.Certificate()}
	}
	return a, nil
}

// loadEtcdCA makes what is stored count.
func (s *Server) loadEtcdCA(ctx context.Context) error {
	s.trusting.Lock() // the later reader stores later
	defer s.trusting.Unlock()
	var a *etcdAuthority
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		var err error
		a, err = readEtcdCA(tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading CA %s: %w", caEtcd, err)
	}
	s.etcd.Store(a)
	return nil
}

// reloadEtcdCA is loadEtcdCA behind a change of it.
func (s *Server) reloadEtcdCA(ctx context.Context) {
	if err := s.loadEtcdCA(context.WithoutCancel(ctx)); err != nil {
		s.cfg.Log.Error("reading which CA of etcd signs; restart imagectl serve", "error", err.Error())
	}
	s.board.wake()
}

// trusted are the certificates of those that a rotation trusts, the one that signs first.
func (a *etcdAuthority) trusted(r coordinator.CARotation) []*x509.Certificate {
	if len(r.CAs) == 0 {
		return []*x509.Certificate{a.ca.Certificate()}
	}
	var out []*x509.Certificate
	for _, id := range r.CAs {
		for _, c := range a.known {
			if pki.KeyID(c) == id {
				out = append(out, c)
			}
		}
	}
	return out
}

// etcdCAs words what a machine is told of etcd's CAs; nothing where it was never replaced, or where
// this server has not read the newest yet.
func (s *Server) etcdCAs(c coordinator.Choices) (caPEM string, turn uint64) {
	all := s.etcd.Load().trusted(c.EtcdCA)
	if c.EtcdCA.Turn == 0 || len(all) != len(c.EtcdCA.CAs) {
		return "", 0
	}
	return string(pki.EncodeCertificates(all)), c.EtcdCA.Turn
}

// newEtcdCA has a name of its own: what etcd trusts is seen by names (etcd.Show).
func (s *Server) newEtcdCA(now time.Time) (*pki.CA, error) {
	b := make([]byte, 4)
	if _, err := io.ReadFull(s.cfg.Rand, b); err != nil {
		return nil, fmt.Errorf("making a CA for etcd: %w", err)
	}
	return pki.NewCA("etcd "+s.cfg.Cluster+" "+hex.EncodeToString(b), s.lifetimes.CA, s.lifetimes.Backdate, now, s.cfg.Rand)
}

// RotateAuthority implements apiconnect.OperatorServiceHandler.
func (s operators) RotateAuthority(ctx context.Context, req *connect.Request[api.RotateAuthorityRequest]) (*connect.Response[api.RotateAuthorityResponse], error) {
	switch name := req.Msg.GetCa(); name {
	case caEtcd:
	case caKubernetes, caFrontProxy:
		return nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("CA %s cannot be replaced yet: docs/ca-rotation.md says what can be done", name))
	case caImagectl:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("CA %s is replaced step by step: imagectl server ca prepare", name))
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("there is no CA %.64q to replace; there is %s", name, caEtcd))
	}
	resp := &api.RotateAuthorityResponse{}
	var err error
	if resp.Changed, resp.Message, err = s.rotateEtcdCA(ctx, callerOf(ctx)); err != nil {
		return nil, s.storing("", err)
	}
	if resp.Rotation, err = s.rotationView(ctx); err != nil {
		return nil, s.storing("", err)
	}
	return connect.NewResponse(resp), nil
}

// rotateEtcdCA begins, or says why there is nothing to begin.
func (s *Server) rotateEtcdCA(ctx context.Context, from caller) (changed bool, message string, err error) {
	nodes, choices, err := s.decide(ctx)
	if err != nil {
		return false, "", err
	}
	refused := func(format string, args ...any) error {
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(format, args...))
	}
	if ahead := coordinator.EtcdCAAhead(nodes, choices); len(ahead) > 0 && choices.EtcdCA.Stage == coordinator.CASettled {
		return false, "", refused("%s", etcdCAStrange(ahead))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var stored coordinator.Choices
	err = s.coordinate(ctx, from.actor(), func(c *change) error {
		changed, message, stored = false, "", coordinator.Choices{}
		if err := c.standing(from); err != nil {
			return err
		}
		if _, err := c.tx.Value(valueChoices, &stored); err != nil {
			return err
		}
		switch {
		case stored.EtcdCA.Stage != coordinator.CASettled:
			message = "nothing to do: etcd's CA is being replaced already; imagectl server ca show says how far that is"
			return nil
		case !stored.EtcdFormed:
			return refused("cluster %s has no etcd yet", s.cfg.Cluster)
		case stored.EtcdAlone != "":
			return refused("etcd begins anew with what %s has; replace its CA when that is done", stored.EtcdAlone)
		case stored.KubernetesFirst != "" && !stored.Policy:
			return refused("API servers of this cluster are from before imagectl started them anew by itself: imagectl server encryption-key rotate first")
		}
		a, err := readEtcdCA(c.tx)
		if err != nil {
			return err
		}
		old := a.ca.Certificate()
		next, err := s.newEtcdCA(c.now)
		if err != nil {
			return err
		}
		if end := next.Certificate().NotAfter; end.Before(old.NotAfter) {
			return refused("another CA would end at %s, before the one that signs (%s)", stamp(end), stamp(old.NotAfter))
		}
		sealed, err := sealCA(next)
		if err != nil {
			return err
		}
		if err := c.tx.PutSecret(secretNextEtcdCA, sealed); err != nil {
			return err
		}
		if err := c.tx.PutValue(valueEtcdCAs, string(pki.EncodeCertificates(append(a.known, next.Certificate())))); err != nil {
			return err
		}
		stored.EtcdCA = stored.EtcdCA.Rotate(pki.KeyID(old), pki.KeyID(next.Certificate()))
		changed = true
		message = fmt.Sprintf("etcd's CA %s is replaced by %s, by and by: imagectl server ca show", digest(old), digest(next.Certificate()))
		c.log(audit.Entry{Action: "etcd-ca-rotated", Before: digest(old), After: digest(next.Certificate()), Detail: "etcd's members, their clients and API servers learn to trust another CA"})
		return c.tx.PutValue(valueChoices, stored)
	})
	if err == nil && changed {
		s.choices = stored
	}
	if changed {
		s.reloadEtcdCA(ctx) // also after an error: nobody may know whether it was stored
	}
	return changed && err == nil, message, err
}

// advanceEtcdCA does what a stage needs that the choices have come to, in their transaction.
func (s *Server) advanceEtcdCA(c *change, before, next coordinator.CARotation) error {
	if before.Stage == next.Stage {
		return nil
	}
	c.log(audit.Entry{Action: "etcd-ca-stage", Before: stageWord(before.Stage), After: stageWord(next.Stage), Detail: "CAs of etcd that are trusted, the first signs: " + strings.Join(next.CAs, ", ")})
	if next.Stage != coordinator.CASigning {
		return nil
	}
	sealed, ok, err := c.tx.Secret(secretNextEtcdCA)
	if err == nil && !ok {
		err = errors.New("the key of etcd's next CA is not there")
	}
	if err != nil {
		return err
	}
	ca, err := openCA(secretNextEtcdCA, sealed)
	if err != nil {
		return err
	}
	// Nothing needs the old key.
	if err := c.tx.PutSecret(secretEtcdCA, sealed); err != nil {
		return err
	}
	c.tx.DeleteSecret(secretNextEtcdCA)
	all, err := c.readRevoked()
	if err != nil {
		return err
	}
	return s.signWith(c, &all, caEtcd, ca)
}

// stillSigns refuses what was signed by a CA of etcd that does not sign any more by the time of the
// commit.
func (c *change) stillSigns(i pki.Issued) error {
	var choices coordinator.Choices
	if _, err := c.tx.Value(valueChoices, &choices); err != nil {
		return err
	}
	if cas := choices.EtcdCA.CAs; len(cas) > 0 && cas[0] != pki.IssuerKeyID(i.Certificate) {
		return errRolled()
	}
	return nil
}

// etcdCAHolds is what the replacement waits for besides machines.
func (s *Server) etcdCAHolds(c coordinator.Choices) []string {
	if s.cfg.Backups == nil || c.EtcdCA.Stage != coordinator.CATrusting {
		return nil
	}
	all := s.etcd.Load().trusted(c.EtcdCA)
	if len(all) < 2 {
		return []string{"this server has not read the new CA yet"}
	}
	// Certificates know whole seconds: it was made within the one that begins then.
	made := all[1].NotBefore.Add(s.lifetimes.Backdate + time.Second)
	if st := s.cfg.Backups.State(); st.Dir != "" && !st.Good.At.After(made) {
		return []string{fmt.Sprintf("no backup was made since %s, when the new CA was: with an older one nobody could give out certificates for etcd; imagectl server backup", stamp(made))}
	}
	return nil
}

func stageWord(s coordinator.CAStage) string {
	if s == coordinator.CASettled {
		return "settled"
	}
	return string(s)
}

func etcdCAStrange(ahead []string) string {
	return fmt.Sprintf("etcd on %s trusts CAs that this server does not know: it was restored from a backup that is older than they are; restore a newer one", strings.Join(ahead, ", "))
}

// etcdCANotes are for status.
func (s *Server) etcdCANotes(nodes []coordinator.Node, c coordinator.Choices) []string {
	if c.EtcdCA.Stage == coordinator.CASettled {
		if ahead := coordinator.EtcdCAAhead(nodes, c); len(ahead) > 0 {
			return []string{"alarm: " + etcdCAStrange(ahead)}
		}
		return nil
	}
	doing := map[coordinator.CAStage]string{
		coordinator.CATrusting: "etcd's members and API servers learn to trust another one too", coordinator.CASigning: "certificates are made anew by the new one",
		coordinator.CADropping: "the old one is trusted no more",
	}
	notes := []string{"etcd's CA is being replaced: " + doing[c.EtcdCA.Stage]}
	for _, w := range coordinator.EtcdCAWaits(nodes, c, s.etcdCAHolds(c)) {
		notes = append(notes, "that waits: "+w)
	}
	return notes
}

// rotationView is how far the replacement of etcd's CA is.
func (s *Server) rotationView(ctx context.Context) (*api.RotationView, error) {
	nodes, c, err := s.decide(ctx)
	if err != nil {
		return nil, err
	}
	v := &api.RotationView{Ca: caEtcd, Stage: stageWord(c.EtcdCA.Stage), Waits: coordinator.EtcdCAWaits(nodes, c, s.etcdCAHolds(c))}
	other := map[coordinator.CAStage]string{coordinator.CATrusting: "next", coordinator.CASigning: "old"}[c.EtcdCA.Stage]
	for i, cert := range s.etcd.Load().trusted(c.EtcdCA) {
		use := "signs"
		if i > 0 {
			use = other
		}
		v.Cas = append(v.Cas, &api.AuthorityView_CA{Sha256: pki.Digest(cert), NotBefore: timestamppb.New(cert.NotBefore), NotAfter: timestamppb.New(cert.NotAfter), Use: use})
	}
	return v, nil
}

// etcdListSigners are the CAs that may have signed a list of etcd's that a machine keeps.
func (s *Server) etcdListSigners() []*x509.Certificate { return slices.Clone(s.etcd.Load().known) }
