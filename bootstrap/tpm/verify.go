package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Reason codes of a proof that does not hold: stable words for the wire, metrics and
// tests.
const (
	CodeMalformed     = "tpm-malformed"
	CodeForeignEK     = "tpm-ek-form"
	CodeAKRestricted  = "tpm-ak-not-restricted"
	CodeAKFixed       = "tpm-ak-not-fixed"
	CodeAKForm        = "tpm-ak-form"
	CodeNonceForeign  = "tpm-nonce-foreign"
	CodeNonceStale    = "tpm-nonce-stale"
	CodeNotActivated  = "tpm-not-activated"
	CodeKeyForm       = "tpm-key-form"
	CodeKeyOther      = "tpm-key-not-certified"
	CodeCertifySigned = "tpm-certify-signature"
	CodeCertifyBound  = "tpm-certify-nonce"
	CodeQuoteSigned   = "tpm-quote-signature"
	CodeQuoteForm     = "tpm-quote-form"
	CodeQuoteBound    = "tpm-quote-nonce"
	CodeQuotePCRs     = "tpm-quote-pcrs"
)

// Answer is how long a machine has to answer a challenge. The slowest TPMs that we
// know of take some seconds for its three signatures.
const Answer = 2 * time.Minute

// ahead is how far in the future a challenge may have been made, when the clock of
// this server was set back.
const ahead = time.Minute

// maxStatement bounds each part of a claim or a proof; a TPM's own buffers hold about
// a kilobyte.
const maxStatement = 2 << 10

const (
	timeBytes, randomBytes, macBytes = 8, 16, 16
	nonceBytes                       = timeBytes + randomBytes + macBytes
)

// Refusal is a proof that does not hold, with its code and one sentence.
type Refusal struct {
	Code, Reason string
}

func (r *Refusal) Error() string { return r.Reason }

func refuse(code, format string, args ...any) *Refusal {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// Attested is what a proof has shown.
type Attested struct {
	// EK is SHA-256 of the endorsement key's DER SubjectPublicKeyInfo, hexadecimal;
	// AK is the attestation key's.
	EK, AK string
	// Challenged is when the challenge was made.
	Challenged time.Time
	// Resets counts the starts of the TPM and Clock the milliseconds that it ran,
	// both since somebody cleared it. Firmware is its maker's version.
	Resets   uint32
	Clock    uint64
	Firmware uint64
	// PCRs are the values of PCRIndexes.
	PCRs [][]byte
}

// Verifier makes challenges and judges proofs. It keeps no state about those who
// ask: what it has to know again is in its nonce, under its key. So nobody can fill
// it, and a challenge is void when the server has started anew. It is safe for
// concurrent use.
type Verifier struct {
	// ca is the SubjectPublicKeyInfo of the CA that machines trust.
	ca  []byte
	key []byte
}

// NewVerifier makes a Verifier with a key of its own.
func NewVerifier(ca *x509.Certificate, rand io.Reader) (*Verifier, error) {
	v := &Verifier{ca: ca.RawSubjectPublicKeyInfo, key: make([]byte, sha256.Size)}
	if _, err := io.ReadFull(rand, v.key); err != nil {
		return nil, fmt.Errorf("making the key of TPM challenges: reading randomness: %w", err)
	}
	return v, nil
}

// For is this verifier for a machine that was given another CA.
func (v *Verifier) For(ca *x509.Certificate) *Verifier {
	return &Verifier{ca: ca.RawSubjectPublicKeyInfo, key: v.key}
}

// Challenge makes one for a claim; spki is the machine's key. A claim that cannot be
// true is a *Refusal.
func (v *Verifier) Challenge(claim Claim, spki []byte, now time.Time, rand io.Reader) (Challenge, error) {
	ek, ak, refusal := parseClaim(claim)
	if refusal != nil {
		return Challenge{}, refusal
	}
	random := make([]byte, randomBytes)
	if _, err := io.ReadFull(rand, random); err != nil {
		return Challenge{}, fmt.Errorf("making a TPM challenge: reading randomness: %w", err)
	}
	nonce := append(millis(now.UnixMilli()), random...)
	nonce = append(nonce, v.mac(nonce, claim, spki)...)
	to, err := tpm2.ImportEncapsulationKey(&ek.area)
	if err != nil {
		return Challenge{}, refuse(CodeForeignEK, "its endorsement key is of no use: %v", err)
	}
	credential, secret, err := tpm2.CreateCredential(rand, to, ak.name, v.secret(nonce))
	if err != nil {
		return Challenge{}, refuse(CodeForeignEK, "its endorsement key is of no use: %v", err)
	}
	return Challenge{Nonce: nonce, Credential: credential, Secret: secret}, nil
}

// Verify judges a proof; spki is the machine's key. What does not hold is a *Refusal.
func (v *Verifier) Verify(claim Claim, proof Proof, spki []byte, now time.Time) (Attested, error) {
	ek, ak, refusal := parseClaim(claim)
	if refusal != nil {
		return Attested{}, refusal
	}
	at, refusal := v.opened(claim, proof, spki, now)
	if refusal != nil {
		return Attested{}, refusal
	}
	want := bind(proof.Nonce, v.ca, spki)
	if refusal := checkKey(ak, proof, spki, want); refusal != nil {
		return Attested{}, refusal
	}
	quoted, refusal := checkQuote(ak, proof, want)
	if refusal != nil {
		return Attested{}, refusal
	}
	sum := sha256.Sum256(ak.spki)
	return Attested{
		EK: ek.digest, AK: hex.EncodeToString(sum[:]), Challenged: at,
		Resets: quoted.ClockInfo.ResetCount, Clock: quoted.ClockInfo.Clock, Firmware: quoted.FirmwareVersion, PCRs: proof.PCRs,
	}, nil
}

// opened says when the challenge that a proof answers was made, and that the TPM has
// opened its credential.
func (v *Verifier) opened(claim Claim, proof Proof, spki []byte, now time.Time) (time.Time, *Refusal) {
	n := proof.Nonce
	if len(n) != nonceBytes || !hmac.Equal(n[timeBytes+randomBytes:], v.mac(n[:timeBytes+randomBytes], claim, spki)) {
		return time.Time{}, refuse(CodeNonceForeign, "it answers a challenge that was not made for it, or before this server started")
	}
	at := time.UnixMilli(int64(binary.BigEndian.Uint64(n)))
	if age := now.Sub(at); age > Answer || age < -ahead {
		return time.Time{}, refuse(CodeNonceStale, "it answers a challenge that was made %s ago; %s is the most", age.Round(time.Second), Answer)
	}
	if subtle.ConstantTimeCompare(proof.Activated, v.secret(n)) != 1 {
		return time.Time{}, refuse(CodeNotActivated, "its TPM did not open the credential, so its attestation key is not in the TPM of its endorsement key")
	}
	return at, nil
}

// mac seals the first part of a nonce for one claim and key.
func (v *Verifier) mac(head []byte, claim Claim, spki []byte) []byte {
	h := hmac.New(sha256.New, v.key)
	h.Write([]byte("nonce"))
	h.Write(head)
	for _, b := range [][]byte{claim.EK, claim.AK, spki} {
		sum := sha256.Sum256(b)
		h.Write(sum[:])
	}
	return h.Sum(nil)[:macBytes]
}

// secret is what the credential of a nonce holds.
func (v *Verifier) secret(nonce []byte) []byte {
	h := hmac.New(sha256.New, v.key)
	h.Write([]byte("credential"))
	h.Write(nonce)
	return h.Sum(nil)
}

// endorsement and attestation are keys that have the form they must have.
type endorsement struct {
	area   tpm2.TPMTPublic
	digest string
}

type attestation struct {
	key        *ecdsa.PublicKey
	name, spki []byte
}

// Endorsement is the digest of a claim's endorsement key, as in Attested and as
// cluster.yaml lists it. A claim that cannot be true is a *Refusal.
func (c Claim) Endorsement() (string, error) {
	ek, refusal := parseEK(c.EK)
	if refusal != nil {
		return "", refusal
	}
	return ek.digest, nil
}

func parseClaim(c Claim) (endorsement, attestation, *Refusal) {
	ek, refusal := parseEK(c.EK)
	if refusal != nil {
		return endorsement{}, attestation{}, refusal
	}
	ak, refusal := parseAK(c.AK)
	return ek, ak, refusal
}

// parsePublic reads a public area; what is not written as we would write it is none.
func parsePublic(b []byte, what string) (*tpm2.TPMTPublic, *Refusal) {
	if len(b) > maxStatement {
		return nil, refuse(CodeMalformed, "its %s of %d bytes exceeds %d", what, len(b), maxStatement)
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(*p), b) {
		return nil, refuse(CodeMalformed, "its %s is no public area of a TPM key", what)
	}
	return p, nil
}

func parseEK(b []byte) (endorsement, *Refusal) {
	p, refusal := parsePublic(b, "endorsement key")
	if refusal != nil {
		return endorsement{}, refusal
	}
	form := refuse(CodeForeignEK, "its endorsement key is not RSA-2048 of the TCG's default template")
	if p.Type != tpm2.TPMAlgRSA {
		return endorsement{}, form
	}
	modulus, err := p.Unique.RSA()
	if err != nil || len(modulus.Buffer) != 256 || modulus.Buffer[0] < 0x80 || !bytes.Equal(tpm2.Marshal(ekOf(modulus.Buffer)), b) {
		return endorsement{}, form
	}
	params, err := p.Parameters.RSADetail()
	if err != nil {
		return endorsement{}, form
	}
	key, err := tpm2.RSAPub(params, modulus)
	if err != nil {
		return endorsement{}, form
	}
	digest, err := ekDigest(key)
	if err != nil {
		return endorsement{}, form
	}
	return endorsement{area: *p, digest: digest}, nil
}

func parseAK(b []byte) (attestation, *Refusal) {
	p, refusal := parsePublic(b, "attestation key")
	if refusal != nil {
		return attestation{}, refusal
	}
	switch a := p.ObjectAttributes; {
	case !a.Restricted:
		return attestation{}, refuse(CodeAKRestricted, "its attestation key is not restricted: it signs what anybody hands it, not only what its TPM says")
	case !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin:
		return attestation{}, refuse(CodeAKFixed, "its attestation key is not fixed to its TPM: it may have been made outside, or be in another one too")
	}
	key, point, ok := pointOf(p)
	if !ok || !bytes.Equal(tpm2.Marshal(signingKey(true, *point)), b) {
		return attestation{}, refuse(CodeAKForm, "its attestation key is not of the form that this server takes (P-256, ECDSA with SHA-256, signing only)")
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return attestation{}, refuse(CodeAKForm, "its attestation key has no name: %v", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return attestation{}, refuse(CodeAKForm, "its attestation key is of no use: %v", err)
	}
	return attestation{key: key, name: name.Buffer, spki: spki}, nil
}

// signed reads a statement that the AK has signed; code and what name it in a refusal.
func (a attestation) signed(statement, signature []byte, code, what string) (*tpm2.TPMSAttest, *Refusal) {
	if len(statement) > maxStatement || len(signature) > maxStatement {
		return nil, refuse(CodeMalformed, "its %s is longer than %d bytes", what, maxStatement)
	}
	bad := refuse(code, "its %s is not signed by its attestation key", what)
	s, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature)
	if err != nil || s.SigAlg != tpm2.TPMAlgECDSA {
		return nil, bad
	}
	ec, err := s.Signature.ECDSA()
	if err != nil || ec.Hash != tpm2.TPMAlgSHA256 {
		return nil, bad
	}
	sum := sha256.Sum256(statement)
	if !verifyECDSA(a.key, sum[:], ec.SignatureR.Buffer, ec.SignatureS.Buffer) {
		return nil, bad
	}
	// A restricted key signs nothing that begins with the magic but what its TPM says.
	st, err := tpm2.Unmarshal[tpm2.TPMSAttest](statement)
	if err != nil || st.Magic != tpm2.TPMGeneratedValue {
		return nil, refuse(code, "its %s is signed, but it is none that a TPM made", what)
	}
	return st, nil
}

// checkKey says why a proof does not show that the machine's key is in the TPM.
func checkKey(ak attestation, proof Proof, spki, want []byte) *Refusal {
	p, refusal := parsePublic(proof.Key, "key")
	if refusal != nil {
		return refusal
	}
	key, point, ok := pointOf(p)
	if !ok || !bytes.Equal(tpm2.Marshal(signingKey(false, *point)), proof.Key) {
		return refuse(CodeKeyForm, "its key is not of the form that this server takes (P-256, made in its TPM and fixed to it, signing only)")
	}
	if own, err := x509.MarshalPKIXPublicKey(key); err != nil || !bytes.Equal(own, spki) {
		return refuse(CodeKeyOther, "the key in its TPM is not the one that its certificate request is for")
	}
	st, refusal := ak.signed(proof.Certified, proof.CertifySignature, CodeCertifySigned, "statement about its key")
	if refusal != nil {
		return refusal
	}
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return refuse(CodeKeyForm, "its key has no name: %v", err)
	}
	about, err := st.Attested.Certify()
	switch {
	case st.Type != tpm2.TPMSTAttestCertify || err != nil:
		return refuse(CodeKeyOther, "what it sent about its key is another kind of statement")
	case !bytes.Equal(about.Name.Buffer, name.Buffer):
		return refuse(CodeKeyOther, "the statement of its TPM is about another key")
	case !bytes.Equal(st.ExtraData.Buffer, want):
		return refuse(CodeCertifyBound, "the statement about its key was not made for this challenge, this server and this key")
	}
	return nil
}

// checkQuote says why a quote does not hold, or returns it.
func checkQuote(ak attestation, proof Proof, want []byte) (*tpm2.TPMSAttest, *Refusal) {
	st, refusal := ak.signed(proof.Quoted, proof.QuoteSignature, CodeQuoteSigned, "quote")
	if refusal != nil {
		return nil, refusal
	}
	quote, err := st.Attested.Quote()
	if st.Type != tpm2.TPMSTAttestQuote || err != nil {
		return nil, refuse(CodeQuoteForm, "what it sent as a quote is another kind of statement")
	}
	if !bytes.Equal(st.ExtraData.Buffer, want) {
		return nil, refuse(CodeQuoteBound, "its quote was not made for this challenge, this server and this key")
	}
	if !bytes.Equal(tpm2.Marshal(quote.PCRSelect), tpm2.Marshal(selection(PCRIndexes()))) || len(proof.PCRs) != len(PCRIndexes()) {
		return nil, refuse(CodeQuotePCRs, "its quote is not about the SHA-256 registers %d; its firmware may have that bank switched off", PCRIndexes())
	}
	for _, v := range proof.PCRs {
		if len(v) != sha256.Size {
			return nil, refuse(CodeQuotePCRs, "a register of its quote has %d bytes, want %d", len(v), sha256.Size)
		}
	}
	if !bytes.Equal(digestOf(proof.PCRs), quote.PCRDigest.Buffer) {
		return nil, refuse(CodeQuotePCRs, "the registers that it sent are not those of its quote")
	}
	return st, nil
}
