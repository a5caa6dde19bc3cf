package secureboot

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/sassoftware/relic/v8/lib/pkcs7"
)

// The content of a program's signature, in that document's words
// SpcIndirectDataContent. Its links are CHOICEs, which encoding/asn1 does not
// know: a structure with the tag of the one that is chosen has the same bytes.
type indirectData struct {
	Data   programData
	Digest digestInfo
}

type programData struct {
	Type  asn1.ObjectIdentifier
	Value programInfo
}

type programInfo struct {
	Flags asn1.BitString
	File  link `asn1:"tag:0"`
}

type link struct {
	File text `asn1:"tag:2"`
}

type text struct {
	Unicode []byte `asn1:"tag:0"`
}

type digestInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Digest    []byte
}

// programName is an attribute that signatures without a name have empty.
type programName struct{}

// SignProgram signs the Authenticode digest of a program: SHA-256 over all of it
// but its checksum, the entry of the table of signatures and that table. The
// result is what such a table holds, PKCS #7 in DER form.
func (s *Signer) SignProgram(digest [sha256.Size]byte) ([]byte, error) {
	// Object identifiers are Microsoft's: SPC_PE_IMAGE_DATAOBJ,
	// SPC_INDIRECT_DATA and SPC_SP_OPUS_INFO.
	content := indirectData{
		Data: programData{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}},
		Digest: digestInfo{
			Algorithm: pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, Parameters: asn1.NullRawValue},
			Digest:    digest[:],
		},
	}
	b := s.builder()
	err := b.SetContent(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}, content)
	if err == nil {
		// Any attribute makes the builder add the two that are required, behind this
		// one: in DER's order, which strict readers want.
		err = b.AddAuthenticatedAttribute(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 12}, programName{})
	}
	if err != nil {
		return nil, fmt.Errorf("signing a program: %w", err)
	}
	signed, err := b.Sign()
	if err != nil {
		return nil, fmt.Errorf("signing a program: %w", err)
	}
	return signed.Marshal()
}

func (s *Signer) builder() *pkcs7.SignatureBuilder {
	return pkcs7.NewBuilder(s.key, []*x509.Certificate{s.cert}, crypto.SHA256)
}
