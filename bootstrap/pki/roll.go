package pki

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"
)

// A CA is rolled over as RFC 4210, section 4.4 has it: the next one has the same name and
// another key, and each signs the other's certificate. Who trusts one of them only can
// then check what the other signed ("new with old", "old with new").

// Successor makes an authority with this one's name and a fresh key.
func (c *CA) Successor(lifetime, backdate time.Duration, now time.Time, rand io.Reader) (*CA, error) {
	return NewCA(c.cert.Subject.CommonName, lifetime, backdate, now, rand)
}

// Cross signs another authority of the same name. The certificate is good while both of
// theirs are.
//
// Its issuer is its subject, so it does not count for the path length of 0 that ours have
// (RFC 5280, 4.2.1.9). OpenSSL builds such a chain; crypto/x509 counts it all the same and
// does not, hence Anchors.
func (c *CA) Cross(other *x509.Certificate, rand io.Reader) (*x509.Certificate, error) {
	name := c.cert.Subject.CommonName
	if !other.IsCA || !bytes.Equal(other.RawSubject, c.cert.RawSubject) {
		return nil, fmt.Errorf("cross-signing by CA %s: %s is no CA of that name", name, other.Subject)
	}
	if bytes.Equal(other.RawSubjectPublicKeyInfo, c.cert.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("cross-signing by CA %s: it is the same key", name)
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, fmt.Errorf("cross-signing by CA %s: %w", name, err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: other.Subject, SubjectKeyId: other.SubjectKeyId, AuthorityKeyId: c.cert.SubjectKeyId,
		NotBefore: later(other.NotBefore, c.cert.NotBefore), NotAfter: earlier(other.NotAfter, c.cert.NotAfter),
		KeyUsage: other.KeyUsage, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand, t, c.cert, other.PublicKey, c.key)
	if err != nil {
		return nil, fmt.Errorf("cross-signing by CA %s: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cross-signing by CA %s: %w", name, err)
	}
	return cert, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// Anchors is roots and those of presented that one of roots has cross-signed (CA.Cross)
// and that are good at now: what a chain may end at. presented is what the other side of a
// handshake has shown; nobody but a CA in roots can add to the result, and an addition
// adds no further one.
func Anchors(roots, presented []*x509.Certificate, now time.Time) []*x509.Certificate {
	out := append([]*x509.Certificate(nil), roots...)
	for _, c := range presented {
		if !c.IsCA || !c.BasicConstraintsValid || now.Before(c.NotBefore) || now.After(c.NotAfter) {
			continue
		}
		for _, root := range roots {
			if bytes.Equal(c.RawSubject, root.RawSubject) && c.CheckSignatureFrom(root) == nil {
				out = append(out, c)
				break
			}
		}
	}
	return out
}

// Verify checks the chain of what the other side of a handshake has shown, leaf first, up to
// one of roots or to what one of them has cross-signed. name is the leaf's DNS name or IP
// address; empty for any.
func Verify(roots, presented []*x509.Certificate, name string, usage x509.ExtKeyUsage, now time.Time) error {
	if len(presented) == 0 {
		return errors.New("there is no certificate")
	}
	o := x509.VerifyOptions{
		Roots: Pool(Anchors(roots, presented[1:], now)), Intermediates: x509.NewCertPool(),
		DNSName: name, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	}
	_, err := presented[0].Verify(o)
	return err
}

// Pool is a pool of certificates.
func Pool(certs []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certs {
		p.AddCert(c)
	}
	return p
}

// KeyID names the key of a CA, as certificates that it signs name it: lower-case
// hexadecimal.
func KeyID(ca *x509.Certificate) string { return hex.EncodeToString(ca.SubjectKeyId) }

// IssuerKeyID is the KeyID of the CA that signed a certificate, which must be verified.
func IssuerKeyID(c *x509.Certificate) string { return hex.EncodeToString(c.AuthorityKeyId) }

// Digest names a certificate: SHA-256 of its DER, lower-case hexadecimal.
func Digest(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// EncodeCertificates wraps certificates in PEM, one after the other.
func EncodeCertificates(certs []*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, EncodeCertificate(c.Raw)...)
	}
	return b
}

// ParseCertificatesPEM reads what EncodeCertificates wrote; nothing else may be among it.
// Nothing for no text.
func ParseCertificatesPEM(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("parsing certificates: there is something else than PEM blocks CERTIFICATE")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing certificates: %w", err)
		}
		out, b = append(out, c), rest
	}
	return out, nil
}

// CheckAttestedByAny is CheckAttested for the keys of several certificates.
func CheckAttestedByAny(by []*x509.Certificate, domain string, statement, signature []byte) error {
	err := fmt.Errorf("checking a statement (%s): no CA is known that could have signed it", domain)
	for _, c := range by {
		if err = CheckAttested(c, domain, statement, signature); err == nil {
			return nil
		}
	}
	return err
}
