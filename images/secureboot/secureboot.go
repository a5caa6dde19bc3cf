// Package secureboot makes what firmware with UEFI Secure Boot asks for: the
// signature of a program (Microsoft's "Windows Authenticode Portable Executable
// Signature Format"), and the files that enrol the keys behind it (UEFI 2.10,
// sections 8.2 and 32.4).
//
// Three keys, each with a certificate of its own: db's signs programs; KEK's signs
// changes of db; PK's, the platform owner's, signs changes of KEK and PK.
//
// Keys are RSA, the only kind that all firmware takes, and signatures PKCS #1 v1.5
// over SHA-256 without a signing time: the same key and input give the same bytes.
// Times are arguments. There is no chain of certificates, no time stamp, and no dbx.
package secureboot

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Key sizes in bits: UEFI asks for the first, and firmware that verifies more than
// the second is rare (we believe).
const (
	minKey = 2048
	maxKey = 4096
)

// Signer is a private key and its certificate. Its methods may be called from
// several goroutines.
type Signer struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// NewSigner joins a private key (PKCS #8 or PKCS #1, in PEM) and the certificate
// of its public half.
func NewSigner(keyPEM []byte, cert *x509.Certificate) (*Signer, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("parsing private key: %w", err)
	}
	return WithKey(key, cert)
}

// WithKey joins a private key that signs by PKCS #1 v1.5, wherever it is, and the
// certificate of its public half.
func WithKey(key crypto.Signer, cert *x509.Certificate) (*Signer, error) {
	if public, ok := key.Public().(*rsa.PublicKey); !ok || !public.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the certificate %q belongs to another private key", cert.Subject)
	}
	return &Signer{key: key, cert: cert}, nil
}

// Certificate is the key's; do not change it.
func (s *Signer) Certificate() *x509.Certificate { return s.cert }

func parseKey(b []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errors.New("it is not PEM; make keys with: imagectl secureboot keys")
	}
	switch block.Type {
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] == "" {
			return x509.ParsePKCS1PrivateKey(block.Bytes)
		}
	case "PRIVATE KEY":
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if k, ok := key.(*rsa.PrivateKey); ok {
			return k, nil
		}
		return nil, fmt.Errorf("it is a %T, want RSA: firmware verifies nothing else", key)
	case "ENCRYPTED PRIVATE KEY":
	default:
		return nil, fmt.Errorf("it is a PEM block %q, want PRIVATE KEY", block.Type)
	}
	return nil, errors.New("it is encrypted; decrypt it for the build: openssl pkey -in KEY -out db.key")
}

// ParseCertificate reads a certificate in PEM or DER form whose key firmware can
// verify with. Dates are not looked at: firmware does not either.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	if block, _ := pem.Decode(b); block != nil {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it is a PEM block %q, want CERTIFICATE", block.Type)
		}
		b = block.Bytes
	} else if bytes.HasPrefix(b, []byte("-----")) {
		return nil, errors.New("it is damaged PEM")
	}
	cert, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("it is no certificate: %w", err)
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("its key is a %T, want RSA: firmware verifies nothing else", cert.PublicKey)
	}
	if n := key.N.BitLen(); n < minKey || n > maxKey {
		return nil, fmt.Errorf("its RSA key has %d bits, want %d to %d", n, minKey, maxKey)
	}
	return cert, nil
}
