package main

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/imagectl/imagectl/bootstrap/pki"
)

// certificates are one for all members and clients of etcd.
func (d *drill) certificates() error {
	now := time.Now()
	ca, err := pki.NewCA("etcd of the servers", 24*time.Hour, time.Hour, now, rand.Reader)
	if err != nil {
		return err
	}
	caKeyPEM, err := ca.KeyPEM()
	if err != nil {
		return err
	}
	caKey, err := pki.ParseKeyPEM(caKeyPEM)
	if err != nil {
		return err
	}
	key, err := pki.NewKey(rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for i := range members {
		leaf.IPAddresses = append(leaf.IPAddresses, net.ParseIP(d.member(i)))
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca.Certificate(), key.Public(), caKey)
	if err != nil {
		return err
	}
	keyPEM, err := pki.EncodeKey(key)
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{"ca.pem": ca.CertificatePEM(), "etcd.pem": pki.EncodeCertificate(der), "etcd.key": keyPEM} {
		if err := os.WriteFile(filepath.Join(d.dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}
