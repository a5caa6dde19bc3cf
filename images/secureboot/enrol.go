package secureboot

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf16"

	"github.com/sassoftware/relic/v8/lib/pkcs7"
)

// GUIDs as UEFI stores them: vendors of variables (UEFI 2.10, 3.3 and 32.6.1), and
// kinds of entries and of signatures (32.4.1 and 8.2.2).
const (
	globalVariable = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	imageSecurity  = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
	certX509       = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"
	certPKCS7      = "\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7"
)

// authenticated are the variables' attributes: kept, seen by firmware and by
// operating systems, and changed only by who signs, with a time later than the last.
const authenticated = 0x01 | 0x02 | 0x04 | 0x20

// Keys are what a platform is to be enrolled with.
type Keys struct {
	PK, KEK *Signer
	// DB are the certificates that programs may be signed by; at least one.
	DB []*x509.Certificate
}

// File is one of the enrolment files. Name is PK, KEK or db with .esl (a signature
// list), .auth (the same as an authenticated change of the variable of that name)
// or .cer (the certificate in DER form; of db's only the first).
type File struct {
	Name    string
	Content []byte
}

// Enrolment makes the files. at is the time in the .auth files, to the second; a
// platform that is enrolled already takes only later ones.
func (k Keys) Enrolment(at time.Time) ([]File, error) {
	if len(k.DB) == 0 {
		return nil, fmt.Errorf("making enrolment files: there is no certificate for db")
	}
	owner := owner(k.PK.cert)
	var files []File
	for _, v := range []struct {
		name, vendor string
		certs        []*x509.Certificate
		by           *Signer
	}{
		{"PK", globalVariable, []*x509.Certificate{k.PK.cert}, k.PK},
		{"KEK", globalVariable, []*x509.Certificate{k.KEK.cert}, k.PK},
		{"db", imageSecurity, k.DB, k.KEK},
	} {
		var list []byte
		for _, c := range v.certs {
			list = append(list, signatureList(owner, c)...)
		}
		auth, err := v.by.change(v.name, v.vendor, at, list)
		if err != nil {
			return nil, fmt.Errorf("making %s.auth: %w", v.name, err)
		}
		files = append(files, File{v.name + ".auth", auth}, File{v.name + ".cer", v.certs[0].Raw}, File{v.name + ".esl", list})
	}
	return files, nil
}

// owner tells entries of one set of keys from those of others; nothing is decided
// by it.
func owner(pk *x509.Certificate) string {
	sum := sha256.Sum256(append([]byte("imagectl secure boot owner 1\n"), pk.Raw...))
	sum[7] = sum[7]&0x0f | 0x80 // version 8 (RFC 9562)
	sum[8] = sum[8]&0x3f | 0x80
	return string(sum[:16])
}

// signatureList is an EFI_SIGNATURE_LIST with one certificate: lists hold entries
// of one size, and certificates differ in theirs.
func signatureList(owner string, cert *x509.Certificate) []byte {
	const header, ownerSize = 28, 16
	b := []byte(certX509)
	b = binary.LittleEndian.AppendUint32(b, uint32(header+ownerSize+len(cert.Raw)))
	b = binary.LittleEndian.AppendUint32(b, 0) // there is no further header
	b = binary.LittleEndian.AppendUint32(b, uint32(ownerSize+len(cert.Raw)))
	b = append(b, owner...)
	return append(b, cert.Raw...)
}

// change is what SetVariable is given: an EFI_VARIABLE_AUTHENTICATION_2 with a
// signature over name, vendor, attributes, time and content, then the content.
func (s *Signer) change(name, vendor string, at time.Time, content []byte) ([]byte, error) {
	stamp := efiTime(at)
	var signed []byte
	for _, c := range utf16.Encode([]rune(name)) {
		signed = binary.LittleEndian.AppendUint16(signed, c)
	}
	signed = append(signed, vendor...)
	signed = binary.LittleEndian.AppendUint32(signed, authenticated)
	signed = append(signed, stamp...)
	sum := sha256.Sum256(append(signed, content...))
	b := s.builder()
	if err := b.SetDetachedContent(pkcs7.OidData, sum[:]); err != nil {
		return nil, err
	}
	p, err := b.Sign()
	if err != nil {
		return nil, err
	}
	// Without the ContentInfo around it, which older firmware does not take.
	der, err := asn1.Marshal(p.Content)
	if err != nil {
		return nil, err
	}
	// A WIN_CERTIFICATE_UEFI_GUID of revision 2.0.
	const header, efiGUID = 24, 0x0ef1
	out := binary.LittleEndian.AppendUint32(stamp, uint32(header+len(der)))
	out = binary.LittleEndian.AppendUint16(out, 0x0200)
	out = binary.LittleEndian.AppendUint16(out, efiGUID)
	out = append(out, certPKCS7...)
	out = append(out, der...)
	return append(out, content...), nil
}

// efiTime is an EFI_TIME as SetVariable wants it: with zeros in the fields after
// the second.
func efiTime(t time.Time) []byte {
	t = t.UTC()
	b := binary.LittleEndian.AppendUint16(nil, uint16(t.Year()))
	b = append(b, byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()))
	return append(b, make([]byte, 9)...)
}
