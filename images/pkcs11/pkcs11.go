// Package pkcs11 signs with RSA keys that stay in a token: a smart card, an HSM, or
// SoftHSM, by its PKCS #11 library. Such a library is C, which imagectl does without,
// so OpenSC's pkcs11-tool talks to it.
//
// Signatures are PKCS #1 v1.5 over SHA-256, the only ones that firmware with Secure
// Boot takes everywhere: the same key and digest give the same bytes.
package pkcs11

import (
	"crypto"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Program is what Run runs.
const Program = "pkcs11-tool"

// pinVariable is by what Program takes the PIN: arguments are for everybody to see.
const pinVariable = "IMAGECTL_PKCS11_PIN"

// Run runs a program with more environment and standard input, and returns its
// standard output. Its error holds what the program said.
type Run func(argv, env []string, stdin []byte) ([]byte, error)

// Key is a private key in a token, a crypto.Signer. Its methods may be called from
// several goroutines if the token takes that.
type Key struct {
	uri    URI
	pin    string
	public *rsa.PublicKey
	run    Run
}

// NewKey is the key that a URI names and whose public half is known, from its
// certificate. Nothing is asked of the token before Sign.
func NewKey(uri URI, pin string, public *rsa.PublicKey, run Run) (*Key, error) {
	if pin == "" {
		// The program would read one from its standard input, and the token counts.
		return nil, errors.New("the PIN is empty")
	}
	return &Key{uri: uri, pin: pin, public: public, run: run}, nil
}

// Public implements crypto.Signer.
func (k *Key) Public() crypto.PublicKey { return k.public }

// digestInfo is what stands before a SHA-256 digest in a signature (RFC 8017, 9.2).
const digestInfo = "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"

// Sign implements crypto.Signer for PKCS #1 v1.5 over SHA-256; the reader is not
// used.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if _, pss := opts.(*rsa.PSSOptions); pss || opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("signing with a token: it signs PKCS #1 v1.5 over SHA-256 only")
	}
	argv := []string{Program}
	for _, o := range []struct{ name, value string }{{"--module", k.uri.Module}, {"--token-label", k.uri.Token}, {"--slot", k.uri.Slot}} {
		if o.value != "" {
			argv = append(argv, o.name, o.value)
		}
	}
	argv = append(argv, "--login", "--pin", "env:"+pinVariable, "--sign", "--mechanism", "RSA-PKCS", "--id", hex.EncodeToString([]byte(k.uri.ID)))
	signature, err := k.run(argv, []string{pinVariable + "=" + k.pin}, append([]byte(digestInfo), digest...))
	if err != nil {
		return nil, fmt.Errorf("signing with a token by OpenSC: %w", err)
	}
	if err := rsa.VerifyPKCS1v15(k.public, crypto.SHA256, digest, signature); err != nil {
		return nil, fmt.Errorf("signing with a token: its key with the ID %x is not that of the certificate: %w", k.uri.ID, err)
	}
	return signature, nil
}
