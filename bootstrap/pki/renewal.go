package pki

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// ErrOtherConnection says that a request was made for another TLS connection than the one that
// it came by: somebody sends again what he has seen.
var ErrOtherConnection = errors.New("the request was not made for this connection")

// RenewalRequest is a PKCS #10 request (DER) that is good on one TLS connection only, on its
// client's side: its subject names the connection, and the key signs that. So who has seen
// such a request, or one that was made for another purpose, has nothing. No clock is needed for it.
// EST links a request to its connection in the same way (RFC 7030, 3.5); what names a connection
// of TLS 1.3 is RFC 9266's tls-exporter.
func RenewalRequest(key crypto.Signer, on tls.ConnectionState, rand io.Reader) ([]byte, error) {
	name, err := connectionName(on)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return der, nil
}

// ParseRenewal is ParseRequest for what RenewalRequest made on the other side of a connection;
// ErrOtherConnection for anything else that is a request.
func ParseRenewal(der []byte, on tls.ConnectionState) (PublicKey, error) {
	key, err := ParseRequest(der)
	if err != nil {
		return PublicKey{}, err
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parsing certificate request: %w", err)
	}
	name, err := connectionName(on)
	if err != nil {
		return PublicKey{}, err
	}
	if req.Subject.CommonName != name {
		return PublicKey{}, fmt.Errorf("parsing certificate request: %w", ErrOtherConnection)
	}
	return key, nil
}

// connectionName is the same on both sides of a connection, and on no other one.
func connectionName(on tls.ConnectionState) (string, error) {
	if on.Version != tls.VersionTLS13 {
		return "", fmt.Errorf("naming a connection: it is of version %#x, want TLS 1.3", on.Version)
	}
	b, err := on.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	if err != nil {
		return "", fmt.Errorf("naming a connection: %w", err)
	}
	// X.520 gives a common name 64 characters.
	return "tls-exporter " + base64.RawURLEncoding.EncodeToString(b), nil
}
