package vm

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// FirmwareCAs is the Config.FirmwareKey under which OVMF looks for the CAs that it trusts.
const FirmwareCAs = "etc/edk2/https/cacerts"

// BootCertificates are for UEFI that boots by HTTPS.
type BootCertificates struct {
	// CA is what firmware trusts, in the form that OVMF takes.
	CA []byte
	// Server and Key are the server's, in PEM.
	Server, Key []byte
}

// NewBootCertificates makes a CA and a server's certificate, both of RSA and good for a day.
func NewBootCertificates(server netip.Addr, now time.Time) (BootCertificates, error) {
	var none BootCertificates
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return none, err
		}
	}
	// The guest's clock is the host's, and firmware does not look at it anyway.
	from, to := now.Add(-time.Hour), now.Add(24*time.Hour)
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test boot CA"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca, err := x509.CreateCertificate(rand.Reader, issuer, issuer, keys[0].Public(), keys[0])
	if err != nil {
		return none, err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "boot server"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{server.AsSlice()}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, keys[1].Public(), keys[0])
	if err != nil {
		return none, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		return none, err
	}
	return BootCertificates{CA: signatureList(ca),
		Server: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})}, nil
}

// signatureList is how OVMF takes a CA: EFI_SIGNATURE_LIST of UEFI 2.10, 32.4.1, of the
// type EFI_CERT_X509_GUID, with an owner of zeros.
func signatureList(der []byte) []byte {
	const x509Kind = "\xa1\x59\xc0\xa5\xe4\x94\xa7\x4a\x87\xb5\xab\x15\x5c\x2b\xf0\x72"
	b := []byte(x509Kind)
	for _, n := range []int{28 + 16 + len(der), 0, 16 + len(der)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	return append(append(b, make([]byte, 16)...), der...)
}
