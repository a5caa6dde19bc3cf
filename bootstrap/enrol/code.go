package enrol

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"strings"
)

// codeDomain keeps the hash of a code apart from every other hash of the same
// two keys, and names the version of the derivation.
const codeDomain = "imagectl enrolment code v1\n"

// crockford is Crockford's base32 alphabet: no I, L, O, U, so that a code
// survives being read aloud.
const crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// Code is what an operator compares between a machine's console and the
// server: 60 bits of SHA-256(domain ‖ SHA-256(CA SPKI) ‖ SHA-256(node SPKI)) as
// XXXX-XXXX-XXXX. Both sides derive it from what they themselves believe, so
// whoever swaps the CA or the key on the wire changes the code.
//
// nodePublicKeySPKI is the DER SubjectPublicKeyInfo of the node's key
// (x509.CertificateRequest.RawSubjectPublicKeyInfo).
//
// Sixty bits stand against a live forger, who must grind a key whose code
// collides while the operator reads; they are no commitment for the ages.
func Code(ca *x509.Certificate, nodePublicKeySPKI []byte) string {
	caSum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	nodeSum := sha256.Sum256(nodePublicKeySPKI)
	h := sha256.New()
	h.Write([]byte(codeDomain))
	h.Write(caSum[:])
	h.Write(nodeSum[:])
	bits := binary.BigEndian.Uint64(h.Sum(nil)) // the first 60 bits are used
	var b strings.Builder
	for i := range 12 {
		if i == 4 || i == 8 {
			b.WriteByte('-')
		}
		b.WriteByte(crockford[bits>>(59-5*i)&31])
	}
	return b.String()
}

// NormalCode brings a code as a person types it (lower case, spaces, no
// dashes, the letters O, I and L for digits) into the form that Code gives. What
// is no code at all stays different from every code.
func NormalCode(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range strings.ToUpper(s) {
		switch r {
		case '-', ' ':
			continue
		case 'O':
			r = '0'
		case 'I', 'L':
			r = '1'
		}
		if n == 4 || n == 8 {
			b.WriteByte('-')
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}
