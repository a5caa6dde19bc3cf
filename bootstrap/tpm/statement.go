package tpm

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Claim is which TPM a machine says it has: the public areas (TPMT_PUBLIC) of its
// endorsement and its attestation key.
type Claim struct {
	EK, AK []byte
}

// Challenge is what only the TPM of a claim can answer.
type Challenge struct {
	Nonce []byte
	// Credential is a TPMS_ID_OBJECT, Secret a TPM2B_ENCRYPTED_SECRET's content.
	Credential, Secret []byte
}

// Proof is the answer.
type Proof struct {
	Nonce []byte
	// Activated is what was in the credential.
	Activated []byte
	// Key is the public area of the machine's key. Certified is the TPMS_ATTEST about
	// it, Quoted the one about the PCRs, each with its TPMT_SIGNATURE by the AK.
	Key                         []byte
	Certified, CertifySignature []byte
	Quoted, QuoteSignature      []byte
	// PCRs are the values of PCRIndexes, in that order.
	PCRs [][]byte
}

// PCRIndexes are the SHA-256 registers that are quoted: 0 to 7 are the firmware's,
// 8 and 9 GRUB's (commands, files), 14 shim's.
func PCRIndexes() []uint { return []uint{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14} }

// bindDomain keeps the digest apart from every other one of the same values.
const bindDomain = "imagectl TPM enrolment v1\n"

// bind is what both statements carry. ca and key are SubjectPublicKeyInfo.
func bind(nonce, ca, key []byte) []byte {
	h := sha256.New()
	h.Write([]byte(bindDomain))
	for _, b := range [][]byte{nonce, ca, key} {
		sum := sha256.Sum256(b)
		h.Write(sum[:])
	}
	return h.Sum(nil)
}

// ekOf makes the public area of the default EK with a modulus.
func ekOf(modulus []byte) tpm2.TPMTPublic {
	t := tpm2.RSAEKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: modulus})
	return t
}

// storageTemplate is the parent of our keys: the one that the key format of
// tpm2-tss-engine and OpenSSL's provider means by the owner hierarchy, so that other
// tools can read what we write.
func storageTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// signingKey is the public area of a P-256 key that stays in its TPM. A restricted one
// signs only what the TPM itself says.
func signingKey(restricted bool, at tpm2.TPMSECCPoint) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: restricted, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &at),
	}
}

// ekDigest names an EK: SHA-256 of its DER SubjectPublicKeyInfo, hexadecimal, which
// openssl makes of a manufacturer's certificate as well.
func ekDigest(ek *rsa.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(ek)
	if err != nil {
		return "", fmt.Errorf("encoding an endorsement key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}

// pointOf is the public key in a P-256 public area; false for another kind.
func pointOf(public *tpm2.TPMTPublic) (*ecdsa.PublicKey, *tpm2.TPMSECCPoint, bool) {
	if public.Type != tpm2.TPMAlgECC {
		return nil, nil, false
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, nil, false
	}
	point, err := public.Unique.ECC()
	if err != nil {
		return nil, nil, false
	}
	ec, ok := key.(*ecdsa.PublicKey)
	return ec, point, ok && ec.Curve.IsOnCurve(ec.X, ec.Y)
}

// digestOf is what a quote says about register values.
func digestOf(values [][]byte) []byte {
	h := sha256.New()
	for _, v := range values {
		h.Write(v)
	}
	return h.Sum(nil)
}

// selection names PCRs of the SHA-256 bank.
func selection(indexes []uint) tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(indexes...),
	}}}
}

// millis is a time as a nonce carries it.
func millis(ms int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(ms)) }
