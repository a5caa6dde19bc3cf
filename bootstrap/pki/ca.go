package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// CA is a certification authority: one self-signed certificate and its key. It
// is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes an authority with a fresh P-256 key. It may sign leaves only, never
// another authority.
func NewCA(commonName string, lifetime, backdate time.Duration, now time.Time, rand io.Reader) (*CA, error) {
	if commonName == "" {
		return nil, errors.New("making a CA: it has no name")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return nil, fmt.Errorf("making CA %s: %w", commonName, err)
	}
	serial, err := newSerial(rand)
	if err != nil {
		return nil, fmt.Errorf("making CA %s: %w", commonName, err)
	}
	notBefore, notAfter := validity(now, lifetime, backdate)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making CA %s: %w", commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making CA %s: %w", commonName, err)
	}
	return &CA{cert: cert, key: key}, nil
}

// LoadCA reads what CertificatePEM and KeyPEM wrote. It refuses a key that does
// not belong to the certificate.
func LoadCA(certificatePEM, keyPEM []byte) (*CA, error) {
	cert, err := ParseCertificatePEM(certificatePEM)
	if err != nil {
		return nil, fmt.Errorf("loading CA: %w", err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("loading CA: %s is no CA certificate", cert.Subject)
	}
	key, err := ParseKeyPEM(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("loading CA %s: %w", cert.Subject.CommonName, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("loading CA %s: %w", cert.Subject.CommonName, err)
	}
	if !bytes.Equal(spki, cert.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("loading CA %s: the private key belongs to another certificate", cert.Subject.CommonName)
	}
	return &CA{cert: cert, key: key}, nil
}

// Certificate returns the CA's certificate; do not change it.
func (c *CA) Certificate() *x509.Certificate { return c.cert }

// CertificatePEM returns the CA's certificate.
func (c *CA) CertificatePEM() []byte { return EncodeCertificate(c.cert.Raw) }

// KeyPEM returns the CA's private key, unencrypted PKCS #8: for the encrypting
// store, and for the Kubernetes CA on control planes.
func (c *CA) KeyPEM() ([]byte, error) { return EncodeKey(c.key) }

// NewKey makes a P-256 key.
func NewKey(rand io.Reader) (crypto.Signer, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand)
}

// EncodeCertificate wraps DER in PEM.
func EncodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// EncodeKey writes a private key as PKCS #8 PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// EncodePublicKey writes a public key as PKIX PEM.
func EncodePublicKey(key crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// ParseKeyPEM reads what EncodeKey wrote.
func ParseKeyPEM(b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("parsing private key: want exactly one PEM block PRIVATE KEY (PKCS #8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("parsing private key: a %T cannot sign", key)
	}
	return signer, nil
}

// ParseCertificatePEM reads the first certificate of a PEM text.
func ParseCertificatePEM(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("parsing certificate: there is no PEM block CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing certificate: %w", err)
	}
	return cert, nil
}

// validity is now-backdate to now+lifetime. RFC 5280 4.1.2.5 counts both ends,
// so the last second is taken off.
func validity(now time.Time, lifetime, backdate time.Duration) (notBefore, notAfter time.Time) {
	now = now.UTC().Truncate(time.Second)
	return now.Add(-backdate), now.Add(lifetime - time.Second)
}

// newSerial returns 127 random bits with the topmost set: RFC 5280 4.1.2.2 wants
// at most 20 octets and a positive INTEGER, and a fixed length keeps logs aligned.
func newSerial(rand io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, fmt.Errorf("reading randomness for a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// Attest signs a statement that is no certificate, always in the same way (RFC 6979, for want
// of randomness). domain says what kind it is, so that
// nobody takes one for another; it has no line break.
func (c *CA) Attest(domain string, statement []byte) ([]byte, error) {
	return Attest(c.key, nil, domain, statement)
}

// Attest is CA.Attest by another ECDSA key, such as a node's own; random may be nil for keys
// that are not in a TPM.
func Attest(key crypto.Signer, random io.Reader, domain string, statement []byte) ([]byte, error) {
	b, err := key.Sign(random, attested(domain, statement), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing a statement (%s): %w", domain, err)
	}
	return b, nil
}

// CheckAttested checks what Attest signed with the key of a certificate.
func CheckAttested(by *x509.Certificate, domain string, statement, signature []byte) error {
	key, ok := by.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, attested(domain, statement), signature) {
		return fmt.Errorf("checking a statement (%s): the signature is not by %s", domain, by.Subject.CommonName)
	}
	return nil
}

// attested is the digest of a statement. A certificate begins otherwise.
func attested(domain string, statement []byte) []byte {
	sum := sha256.Sum256(append([]byte("imagectl statement\n"+domain+"\n"), statement...))
	return sum[:]
}
