package provenance

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

// PrivateKey signs: Ed25519, or ECDSA on P-256 with SHA-256.
type PrivateKey struct {
	signer crypto.Signer
	public PublicKey
}

// PublicKey verifies.
type PublicKey struct {
	key crypto.PublicKey
	id  string
}

// keyHint makes a key pair that we take.
const keyHint = "openssl genpkey -algorithm ed25519 -out sign.pem && openssl pkey -in sign.pem -pubout -out sign.pub.pem"

// ParsePrivateKey reads PKCS#8 in PEM form.
func ParsePrivateKey(b []byte) (*PrivateKey, error) {
	block, _ := pem.Decode(b)
	switch {
	case block == nil:
		return nil, fmt.Errorf("parsing private key: it is not PEM; make a pair with: %s", keyHint)
	case block.Type == "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("parsing private key: it is encrypted; decrypt it for the build: openssl pkey -in KEY -out sign.pem")
	case block.Type != "PRIVATE KEY":
		return nil, fmt.Errorf("parsing private key: it is a PEM block %q, want PKCS#8 (PRIVATE KEY): openssl pkey -in KEY -out sign.pem", block.Type)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("parsing private key: a %T cannot sign; make a pair with: %s", key, keyHint)
	}
	public, err := newPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("parsing private key: %w", err)
	}
	return &PrivateKey{signer: signer, public: public}, nil
}

// Public is the other half.
func (k *PrivateKey) Public() PublicKey { return k.public }

// sign gives the same signature for the same message: Ed25519 does by itself,
// ECDSA by RFC 6979, which crypto/ecdsa follows when it is given no randomness.
func (k *PrivateKey) sign(message []byte) ([]byte, error) {
	if k, ok := k.signer.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(message)
		sig, err := k.Sign(nil, sum[:], crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		return sig, nil
	}
	sig, err := k.signer.Sign(nil, message, crypto.Hash(0))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return sig, nil
}

// ParsePublicKey reads a public key in PKIX PEM form.
func ParsePublicKey(b []byte) (PublicKey, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return PublicKey{}, errors.New("parsing public key: it is no PEM block PUBLIC KEY; make it from the private key: openssl pkey -in sign.pem -pubout -out sign.pub.pem")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parsing public key: %w", err)
	}
	p, err := newPublicKey(key)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parsing public key: %w", err)
	}
	return p, nil
}

func newPublicKey(key crypto.PublicKey) (PublicKey, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return PublicKey{}, fmt.Errorf("its curve is %s, want P-256", k.Curve.Params().Name)
		}
	default:
		return PublicKey{}, fmt.Errorf("it is a %T, want Ed25519 or ECDSA on P-256; make a pair with: %s", key, keyHint)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, err
	}
	sum := sha256.Sum256(der)
	return PublicKey{key: key, id: hex.EncodeToString(sum[:])}, nil
}

// ID is the SHA-256 digest of the key in PKIX DER form.
func (k PublicKey) ID() string { return k.id }

func (k PublicKey) verify(message, sig []byte) bool {
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, sig)
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, sum[:], sig)
	}
	return false
}
