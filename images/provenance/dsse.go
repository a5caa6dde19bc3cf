package provenance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// PayloadType is what our envelopes carry.
const PayloadType = "application/vnd.in-toto+json"

// maxEnvelope bounds an envelope file, in bytes.
const maxEnvelope = 64 << 20

// Envelope is a DSSE envelope (secure-systems-lab/dsse, envelope.md). Without
// signatures it is only a wrapper.
type Envelope struct {
	PayloadType string `json:"payloadType"`
	// Payload is base64 in JSON.
	Payload    []byte      `json:"payload"`
	Signatures []Signature `json:"signatures"`
}

// Signature is one signature over [PAE].
type Signature struct {
	// KeyID is the SHA-256 digest of the public key in PKIX DER form, lower-case
	// hexadecimal. It is a hint and is not trusted.
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// ErrSignature is wrapped when no signature of an envelope is by the given key.
var ErrSignature = errors.New("the signature does not hold")

// PAE is DSSE's pre-authentication encoding (protocol.md): what is signed.
func PAE(payloadType string, payload []byte) []byte {
	return append(fmt.Appendf(nil, "DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload)), payload...)
}

// Wrap puts a statement into an envelope; key nil leaves it unsigned.
func Wrap(statement []byte, key *PrivateKey) (Envelope, error) {
	e := Envelope{PayloadType: PayloadType, Payload: statement, Signatures: []Signature{}}
	if key == nil {
		return e, nil
	}
	sig, err := key.sign(PAE(e.PayloadType, e.Payload))
	if err != nil {
		return Envelope{}, err
	}
	e.Signatures = append(e.Signatures, Signature{KeyID: key.Public().ID(), Sig: sig})
	return e, nil
}

// Verify wants at least one signature by the key.
func (e Envelope) Verify(key PublicKey) error {
	if len(e.Signatures) == 0 {
		return fmt.Errorf("%w: it is not signed", ErrSignature)
	}
	pae := PAE(e.PayloadType, e.Payload)
	var ids []string
	for _, s := range e.Signatures {
		if key.verify(pae, s.Sig) {
			return nil
		}
		ids = append(ids, s.KeyID)
	}
	return fmt.Errorf("%w: it is signed by key %q, the given key is %s", ErrSignature, ids, key.ID())
}

// Encode writes the envelope as one line of JSON, as attestation bundles have it
// (in-toto/attestation, spec/v1/bundle.md).
func (e Envelope) Encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding envelope: %w", err)
	}
	return append(b, '\n'), nil
}

// ParseEnvelope reads one envelope. It does not judge signatures.
func ParseEnvelope(b []byte) (Envelope, error) {
	if len(b) > maxEnvelope {
		return Envelope{}, fmt.Errorf("parsing envelope: it has %d bytes, more than %d", len(b), maxEnvelope)
	}
	var e Envelope
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&e); err != nil {
		return Envelope{}, fmt.Errorf("parsing envelope: %w", err)
	}
	if d.More() {
		return Envelope{}, errors.New("parsing envelope: there is more than one")
	}
	if e.PayloadType != PayloadType {
		return Envelope{}, fmt.Errorf("parsing envelope: its payload is %q, want %s", e.PayloadType, PayloadType)
	}
	return e, nil
}
