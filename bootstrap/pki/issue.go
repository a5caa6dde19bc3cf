package pki

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync/atomic"
	"time"
)

// Prepared is a certificate whose every field is decided and that is not signed
// yet. It belongs to the CA that prepared it and can be issued once.
type Prepared struct {
	ca       *CA
	template *x509.Certificate
	key      PublicKey
	spent    atomic.Bool
}

// Issued is a signed certificate.
type Issued struct {
	Certificate *x509.Certificate
	// PEM is the certificate alone.
	PEM []byte
}

// Serial is the serial number in lower-case hexadecimal.
func (i Issued) Serial() string { return Serial(i.Certificate) }

// Serial writes a certificate's serial number in lower-case hexadecimal.
func Serial(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }

// Prepare decides a certificate for a key. rand makes the serial number.
func (c *CA) Prepare(p Profile, key PublicKey, now time.Time, random io.Reader) (*Prepared, error) {
	if p.lifetime == 0 {
		return nil, errors.New("preparing a certificate: the profile is the zero value; make it with one of the profile functions")
	}
	if key.key == nil {
		return nil, fmt.Errorf("preparing certificate %s: there is no public key", p.commonName)
	}
	notBefore, notAfter := validity(now, p.lifetime, p.backdate)
	if end := c.cert.NotAfter; notAfter.After(end) {
		return nil, fmt.Errorf("preparing certificate %s: it would end %s, after its CA %s, which ends %s",
			p.commonName, notAfter.Format(time.RFC3339), c.cert.Subject.CommonName, end.Format(time.RFC3339))
	}
	serial, err := newSerial(random)
	if err != nil {
		return nil, fmt.Errorf("preparing certificate %s: %w", p.commonName, err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: p.commonName},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           p.usages(),
		BasicConstraintsValid: true,
		DNSNames:              p.dnsNames,
	}
	if p.organization != "" {
		t.Subject.Organization = []string{p.organization}
	}
	for _, a := range p.addresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	if p.uri != nil {
		t.URIs = []*url.URL{p.uri}
	}
	return &Prepared{ca: c, template: t, key: key}, nil
}

// Subject is the subject that the certificate will have, for the record that is
// made before the signature.
func (p *Prepared) Subject() string { return p.template.Subject.String() }

// SerialNumber is the serial that the certificate will have, as Serial writes it.
func (p *Prepared) SerialNumber() string { return Serial(p.template) }

// NotAfter is when the certificate will end.
func (p *Prepared) NotAfter() time.Time { return p.template.NotAfter }

// Issue signs. A second call with the same Prepared is refused, and so is one of
// another CA.
func (c *CA) Issue(p *Prepared) (Issued, error) {
	if p.ca != c {
		return Issued{}, fmt.Errorf("issuing certificate %s: it was prepared by another CA", p.template.Subject.CommonName)
	}
	if p.spent.Swap(true) {
		return Issued{}, fmt.Errorf("issuing certificate %s: it was issued already", p.template.Subject.CommonName)
	}
	der, err := x509.CreateCertificate(rand.Reader, p.template, c.cert, p.key.key, c.key)
	if err != nil {
		return Issued{}, fmt.Errorf("issuing certificate %s: %w", p.template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Issued{}, fmt.Errorf("issuing certificate %s: %w", p.template.Subject.CommonName, err)
	}
	// A faulty signature can give the key away: look before it leaves.
	if err := cert.CheckSignatureFrom(c.cert); err != nil {
		return Issued{}, fmt.Errorf("issuing certificate %s: %w", p.template.Subject.CommonName, err)
	}
	return Issued{Certificate: cert, PEM: EncodeCertificate(der)}, nil
}

// Sign prepares and issues in one go, for callers with nothing to record between.
func (c *CA) Sign(p Profile, key PublicKey, now time.Time, random io.Reader) (Issued, error) {
	prepared, err := c.Prepare(p, key, now, random)
	if err != nil {
		return Issued{}, err
	}
	return c.Issue(prepared)
}
