package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
)

// Bounds on what is accepted as a key.
const (
	maxRequestBytes = 16 << 10
	minRSABits      = 3072
	maxRSABits      = 8192 // above, verifying becomes the caller's lever on our CPU
)

// PublicKey is a key whose owner proved to hold the private part. Only
// ParseRequest and OwnKey make one.
type PublicKey struct {
	key  crypto.PublicKey
	spki []byte
}

// SPKI is the DER SubjectPublicKeyInfo; do not change it.
func (k PublicKey) SPKI() []byte { return k.spki }

// Fingerprint names the key in logs: SHA-256 of SPKI, lower-case hexadecimal.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k.spki)
	return hex.EncodeToString(sum[:])
}

// ParseRequest takes the public key out of a PKCS #10 request (DER) after
// checking the request's signature. Everything else in it is ignored.
func ParseRequest(der []byte) (PublicKey, error) {
	if len(der) > maxRequestBytes {
		return PublicKey{}, fmt.Errorf("parsing certificate request: %d bytes exceed %d", len(der), maxRequestBytes)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parsing certificate request: %w", err)
	}
	if err := checkKey(req.PublicKey); err != nil {
		return PublicKey{}, fmt.Errorf("parsing certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return PublicKey{}, fmt.Errorf("parsing certificate request: no proof of possession: %w", err)
	}
	return PublicKey{key: req.PublicKey, spki: req.RawSubjectPublicKeyInfo}, nil
}

// OwnKey is the public half of a key that this process holds.
func OwnKey(key crypto.Signer) (PublicKey, error) {
	if err := checkKey(key.Public()); err != nil {
		return PublicKey{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return PublicKey{}, fmt.Errorf("encoding public key: %w", err)
	}
	return PublicKey{key: key.Public(), spki: spki}, nil
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("a key on curve %s is not accepted; use P-256, P-384, Ed25519 or RSA of at least %d bits", k.Curve.Params().Name, minRSABits)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("an RSA key of %d bits is not accepted; use %d to %d bits, P-256, P-384 or Ed25519", n, minRSABits, maxRSABits)
		}
	default:
		return fmt.Errorf("a key of type %T is not accepted; use P-256, P-384, Ed25519 or RSA of at least %d bits", key, minRSABits)
	}
	return nil
}
