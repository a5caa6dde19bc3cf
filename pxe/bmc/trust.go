package bmc

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Trust is whose certificate a Redfish service may show. Exactly one must be set.
type Trust struct {
	// Pin is the SHA-256 digest of the BMC's own certificate (DER).
	Pin [sha256.Size]byte
	// CA are the authorities, PEM.
	CA []byte
	// Anybody accepts every certificate: who owns the network then owns the BMC.
	Anybody bool
}

// Config makes the TLS configuration. BMCs in use speak TLS 1.2 at best.
func (t Trust) Config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	pinned := t.Pin != [sha256.Size]byte{}
	set := 0
	for _, is := range []bool{pinned, t.CA != nil, t.Anybody} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return nil, errors.New("trusting a BMC: want exactly one of pin, ca, insecure")
	case pinned:
		// The pin says which certificate it is; names and dates in it say nothing more.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if got := sha256.Sum256(s.PeerCertificates[0].Raw); got != t.Pin {
				return &pinError{got: got, want: t.Pin}
			}
			return nil
		}
	case t.CA != nil:
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(t.CA) {
			return nil, errors.New("trusting a BMC: the file of bmc.tls.ca holds no certificate")
		}
	default:
		c.InsecureSkipVerify = true
	}
	return c, nil
}

// ParsePin reads a digest as openssl x509 -fingerprint -sha256 prints it: 64
// hexadecimal digits, with or without colons, in any case.
func ParsePin(s string) ([sha256.Size]byte, error) {
	var pin [sha256.Size]byte
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(s, "sha256:"), ":", ""))
	if err != nil || len(b) != len(pin) {
		return pin, fmt.Errorf("reading pin %q: want 64 hexadecimal digits", s)
	}
	copy(pin[:], b)
	return pin, nil
}

// pinError is a certificate that is not the pinned one.
type pinError struct{ got, want [sha256.Size]byte }

func (e *pinError) Error() string {
	return fmt.Sprintf("its certificate has the digest sha256:%x, and sha256:%x is pinned", e.got, e.want)
}
