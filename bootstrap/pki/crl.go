package pki

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Revocation is one certificate that must not be accepted any more.
type Revocation struct {
	// Serial is the serial number as Serial writes it.
	Serial string
	At     time.Time
}

// RevocationList signs an X.509 CRL (RFC 5280, section 5). Each list of a CA needs
// a number above the last one's, from 1. The result is DER.
//
// Its nextUpdate is the CA's own end: a node must run for weeks without its server,
// so a list is never too old to be used, only older than another.
func (c *CA) RevocationList(number uint64, revoked []Revocation, now time.Time) ([]byte, error) {
	name := c.cert.Subject.CommonName
	if number == 0 {
		return nil, fmt.Errorf("signing the revocation list of CA %s: its number is 0", name)
	}
	t := &x509.RevocationList{
		Number: new(big.Int).SetUint64(number), ThisUpdate: now.UTC().Truncate(time.Second), NextUpdate: c.cert.NotAfter,
	}
	for _, r := range revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok || serial.Sign() <= 0 {
			return nil, fmt.Errorf("signing the revocation list of CA %s: %q is no serial number", name, r.Serial)
		}
		t.RevokedCertificateEntries = append(t.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: r.At.UTC().Truncate(time.Second),
		})
	}
	der, err := x509.CreateRevocationList(rand.Reader, t, c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("signing the revocation list of CA %s: %w", name, err)
	}
	return der, nil
}

// RevocationList is a list that was read. The zero value revokes nothing and is
// older than every other. It is immutable.
type RevocationList struct {
	number  *big.Int
	serials map[string]bool
}

// PeekRevocationList reads a DER list without asking who signed it.
func PeekRevocationList(der []byte) (RevocationList, error) {
	_, out, err := readList(der)
	return out, err
}

func readList(der []byte) (*x509.RevocationList, RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, RevocationList{}, fmt.Errorf("reading a revocation list: %w", err)
	}
	if l.Number == nil {
		return nil, RevocationList{}, fmt.Errorf("reading the revocation list of %s: it has no number", l.Issuer)
	}
	out := RevocationList{number: l.Number, serials: make(map[string]bool, len(l.RevokedCertificateEntries))}
	for _, e := range l.RevokedCertificateEntries {
		out.serials[string(e.SerialNumber.Bytes())] = true
	}
	return l, out, nil
}

// ParseRevocationList reads a DER list and checks that one of cas signed it.
func ParseRevocationList(der []byte, cas ...*x509.Certificate) (RevocationList, error) {
	l, out, err := readList(der)
	if err != nil {
		return RevocationList{}, err
	}
	err = errors.New("no CA is known that could have")
	for _, ca := range cas {
		if err = l.CheckSignatureFrom(ca); err == nil {
			break
		}
	}
	if err != nil {
		return RevocationList{}, fmt.Errorf("reading the revocation list of %s: its CA did not sign it: %w", l.Issuer, err)
	}
	return out, nil
}

// Newer says whether this list follows another one of the same CA.
func (l RevocationList) Newer(than RevocationList) bool {
	return l.number != nil && (than.number == nil || l.number.Cmp(than.number) > 0)
}

// Number is for logs; empty for the zero value.
func (l RevocationList) Number() string {
	if l.number == nil {
		return ""
	}
	return l.number.String()
}

// Serials are the numbers of the certificates on it, as Serial writes them, sorted.
func (l RevocationList) Serials() []string {
	out := make([]string, 0, len(l.serials))
	for s := range l.serials {
		out = append(out, fmt.Sprintf("%032x", s))
	}
	slices.Sort(out)
	return out
}

// Len is how many certificates are on it.
func (l RevocationList) Len() int { return len(l.serials) }

// Has says whether a certificate is revoked, which must be one that the list's CA
// issued: serial numbers are one CA's own.
func (l RevocationList) Has(c *x509.Certificate) bool {
	return l.serials[string(c.SerialNumber.Bytes())]
}
