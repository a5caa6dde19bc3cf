package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// KeyType is the PEM type of a key's file, that of "ASN.1 Specification for TPM 2.0
// Key Files" (draft-bottomley-tpm2-keys), which tpm2-openssl reads too.
const KeyType = "TSS2 PRIVATE KEY"

// keyFile is TPMKey of that specification, for a loadable key without a password.
type keyFile struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool  `asn1:"optional,explicit,tag:0"`
	Parent    int64 // a permanent handle
	Public    []byte
	Private   []byte
}

// loadableKey is id-loadablekey. A function, because an identifier is a slice.
func loadableKey() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3} }

// Key is a P-256 key that was made in a TPM and cannot leave it: what is on disk is
// of use to that TPM only. It is a crypto.Signer, safe for concurrent use.
type Key struct {
	device  *Device
	key     *ecdsa.PublicKey
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate
}

// NewKey makes a key. An error may be ErrAbsent or ErrBusy.
func (d *Device) NewKey() (*Key, error) {
	k := &Key{device: d}
	return k, d.use("making a key in the TPM", func(t transport.TPM) error {
		parent, err := primary(t, tpm2.TPMRHOwner, storageTemplate())
		if err != nil {
			return fmt.Errorf("loading the storage key: %w", err)
		}
		defer parent.drop(t)
		made, err := tpm2.Create{ParentHandle: parent.auth(tpm2.PasswordAuth(nil)), InPublic: tpm2.New2B(signingKey(false, tpm2.TPMSECCPoint{}))}.Execute(t)
		if err != nil {
			return err
		}
		k.public, k.private = made.OutPublic, made.OutPrivate
		return k.parse()
	})
}

// OpenKey reads a file that PEM wrote, and tries whether the key is this TPM's. An
// error may be ErrAbsent, ErrBusy or ErrForeignKey.
func (d *Device) OpenKey(file []byte) (*Key, error) {
	block, _ := pem.Decode(file)
	if block == nil || block.Type != KeyType {
		return nil, fmt.Errorf("opening a TPM's key: there is no PEM block %s", KeyType)
	}
	var f keyFile
	if rest, err := asn1.Unmarshal(block.Bytes, &f); err != nil || len(rest) > 0 {
		return nil, errors.New("opening a TPM's key: the file is damaged")
	}
	if !f.Type.Equal(loadableKey()) || f.Parent != int64(tpm2.TPMRHOwner) {
		return nil, errors.New("opening a TPM's key: it is not of the kind that this program makes")
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](f.Public)
	if err != nil {
		return nil, fmt.Errorf("opening a TPM's key: reading its public area: %w", err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](f.Private)
	if err != nil {
		return nil, fmt.Errorf("opening a TPM's key: reading its private area: %w", err)
	}
	k := &Key{device: d, public: *public, private: *private}
	if err := k.parse(); err != nil {
		return nil, fmt.Errorf("opening a TPM's key: %w", err)
	}
	return k, d.use("opening a TPM's key", func(t transport.TPM) error {
		held, err := k.load(t)
		if err != nil {
			return err
		}
		held.drop(t)
		return nil
	})
}

// parse takes the public key out of the public area.
func (k *Key) parse() error {
	area, err := k.public.Contents()
	if err != nil {
		return fmt.Errorf("reading the key's public area: %w", err)
	}
	key, _, ok := pointOf(area)
	if !ok {
		return errors.New("reading the key's public area: it is no key on P-256")
	}
	k.key = key
	return nil
}

// load puts the key into the TPM.
func (k *Key) load(t transport.TPM) (loaded, error) {
	parent, err := primary(t, tpm2.TPMRHOwner, storageTemplate())
	if err != nil {
		return loaded{}, fmt.Errorf("loading the storage key: %w", err)
	}
	defer parent.drop(t)
	held, err := tpm2.Load{ParentHandle: parent.auth(tpm2.PasswordAuth(nil)), InPrivate: k.private, InPublic: k.public}.Execute(t)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return loaded{}, fmt.Errorf("%w (%w)", ErrForeignKey, err)
	}
	if err != nil {
		return loaded{}, fmt.Errorf("loading our key: %w", err)
	}
	return loaded{NamedHandle: tpm2.NamedHandle{Handle: held.ObjectHandle, Name: held.Name}, public: k.public}, nil
}

// PEM is the key's file: no secret, for it is encrypted by the TPM to itself.
func (k *Key) PEM() ([]byte, error) {
	der, err := asn1.Marshal(keyFile{
		Type: loadableKey(), EmptyAuth: true, Parent: int64(tpm2.TPMRHOwner),
		Public: tpm2.Marshal(k.public), Private: tpm2.Marshal(k.private),
	})
	if err != nil {
		return nil, fmt.Errorf("encoding a TPM's key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: KeyType, Bytes: der}), nil
}

// Public implements crypto.Signer; it is an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.key }

func (k *Key) spki() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.key) }

// Sign implements crypto.Signer for digests of SHA-256. The TPM brings its own
// randomness.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, fmt.Errorf("signing in the TPM: a digest of %s, %d bytes; this key signs SHA-256 only", opts.HashFunc(), len(digest))
	}
	var der []byte
	err := k.device.use("signing in the TPM", func(t transport.TPM) error {
		held, err := k.load(t)
		if err != nil {
			return err
		}
		defer held.drop(t)
		signed, err := tpm2.Sign{
			KeyHandle: held.auth(tpm2.PasswordAuth(nil)), Digest: tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(t)
		if err != nil {
			return err
		}
		ec, err := signed.Signature.Signature.ECDSA()
		if err != nil {
			return err
		}
		der, err = asn1.Marshal(struct{ R, S *big.Int }{number(ec.SignatureR.Buffer), number(ec.SignatureS.Buffer)})
		return err
	})
	return der, err
}

func verifyECDSA(key *ecdsa.PublicKey, digest, r, s []byte) bool {
	return ecdsa.Verify(key, digest, number(r), number(s))
}

func number(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
