package secureboot

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"time"
)

// years that a certificate is valid for. Firmware does not look, people do.
const years = 20

// Pair is a new private key and its certificate, in PEM.
type Pair struct{ Key, Certificate []byte }

// Generate makes a key of 2048 bits, the size that all firmware takes, and a
// certificate of its own with that common name.
func Generate(name string, now time.Time, random io.Reader) (Pair, error) {
	p, err := generate(name, now, random)
	if err != nil {
		return Pair{}, fmt.Errorf("making the key %q: %w", name, err)
	}
	return p, nil
}

func generate(name string, now time.Time, random io.Reader) (Pair, error) {
	key, err := rsa.GenerateKey(random, minKey)
	if err != nil {
		return Pair{}, err
	}
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return Pair{}, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of one length
	now = now.UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now, NotAfter: now.AddDate(years, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(random, template, template, key.Public(), key)
	if err != nil {
		return Pair{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
	}, nil
}
