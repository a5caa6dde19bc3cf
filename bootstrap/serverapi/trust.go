package serverapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	"github.com/imagectl/imagectl/bootstrap/pki"
	"github.com/imagectl/imagectl/bootstrap/store"
)

// valueRollover is the name of the rollover in the store.
const valueRollover = "ca-rollover"

// trust is the CA imagectl as it is now. It is immutable.
type trust struct {
	rollover
	// ca signs.
	ca *pki.CA
	// trusted begins with the one that signs. former signed once.
	trusted, former []*x509.Certificate
	// cross are certificates of the one that signs by another one, of this rollover or
	// one before: who trusts only that can check the chain. allCross are those of others too.
	cross, allCross []*x509.Certificate
}

// crosses are those cross-certificates that are to be kept.
func (t *trust) crosses(keep func(*x509.Certificate) bool) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(t.allCross), func(c *x509.Certificate) bool { return !keep(c) })
}

// involves says whether a cross-certificate is of a CA, or by it.
func involves(cross, ca *x509.Certificate) bool {
	return pki.KeyID(cross) == pki.KeyID(ca) || pki.IssuerKeyID(cross) == pki.KeyID(ca)
}

// readTrust reads it in a transaction.
func readTrust(tx *store.Tx) (*trust, error) {
	t := &trust{}
	if _, err := tx.Value(valueRollover, &t.rollover); err != nil {
		return nil, err
	}
	b, ok, err := tx.Secret(secretCA)
	if err == nil && !ok {
		err = errors.New("there is no CA " + caImagectl)
	}
	if err != nil {
		return nil, err
	}
	if t.ca, err = openCA(secretCA, b); err != nil {
		return nil, err
	}
	other, err1 := pki.ParseCertificatesPEM([]byte(t.Other))
	cross, err2 := pki.ParseCertificatesPEM([]byte(t.Cross))
	former, err3 := pki.ParseCertificatesPEM([]byte(t.Former))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("reading %s: %w", valueRollover, err)
	}
	t.trusted, t.former = append([]*x509.Certificate{t.ca.Certificate()}, other...), former
	t.allCross = cross
	t.cross = t.crosses(func(c *x509.Certificate) bool { return pki.KeyID(c) == pki.KeyID(t.ca.Certificate()) })
	return t, nil
}

// loadTrust makes what is stored count, and wakes those who wait.
func (s *Server) loadTrust(ctx context.Context) error {
	s.trusting.Lock() // the later reader stores later
	defer s.trusting.Unlock()
	var t *trust
	err := s.cfg.Store.Change(ctx, func(tx *store.Tx) error {
		var err error
		t, err = readTrust(tx)
		return err
	})
	if err != nil {
		return fmt.Errorf("reading CA %s: %w", caImagectl, err)
	}
	s.trust.Store(t)
	// What was signed with another key is signed again.
	s.head.Store(nil)
	s.copy.Store(nil)
	s.board.wake()
	return nil
}

// signer is the CA that signs the certificates of machines, operators and servers now.
func (s *Server) signer() *pki.CA { return s.trust.Load().ca }

// CAPEM are the certificates to trust; the first signs.
func (s *Server) CAPEM() []byte { return pki.EncodeCertificates(s.trust.Load().trusted) }

// FormerCAPEM are those that are not trusted any more, to check what they have signed;
// empty when there are none.
func (s *Server) FormerCAPEM() []byte { return pki.EncodeCertificates(s.trust.Load().former) }

// FirstCAPEM is the certificate that the cluster began with. It never changes.
func (s *Server) FirstCAPEM() []byte {
	t := s.trust.Load()
	all := slices.Clone(t.former)
	if t.phase() == activated {
		all = append(all, t.trusted[1])
	}
	return pki.EncodeCertificates(append(all, t.trusted[0])[:1])
}

// known are all certificates that this CA ever had and that it may have next.
func (t *trust) known() []*x509.Certificate { return slices.Concat(t.trusted, t.former) }

// named is the certificate that a machine says it was given; the one that signs when it says
// nothing, or what is none of ours.
func (t *trust) named(digest string) *x509.Certificate {
	for _, c := range t.known() {
		if pki.Digest(c) == digest {
			return c
		}
	}
	return t.trusted[0]
}

// chain is a certificate that this CA has just signed, as whoever gets it shows it.
func (s *Server) chain(certificatePEM string) string {
	return certificatePEM + string(pki.EncodeCertificates(s.trust.Load().cross))
}

// signs says whether a certificate is by the CA that signs now.
func (t *trust) signs(c *x509.Certificate) bool {
	return pki.IssuerKeyID(c) == pki.KeyID(t.ca.Certificate())
}

// errRolled says that a certificate was signed by a CA that is not trusted any more.
func errRolled() error {
	return connect.NewError(connect.CodeUnavailable, errors.New("the CA was replaced this moment; ask again"))
}
